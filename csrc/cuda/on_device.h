// The target of a launch: makes the device of a tensor current while this object lives, and gives its current stream.
#pragma once

#include "cuda/device.h"
#include "tensors.h"

#if !defined(SSKD_EMULATION)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace sskd_fast::cuda {

class OnDevice {
 public:
#if defined(SSKD_EMULATION)
  explicit OnDevice(const Tensor& /*tensor*/) {}
  Stream stream() const { return 0; }
#else
  explicit OnDevice(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {}
  Stream stream() const {
    void* current = nullptr;
    check_torch(aoti_torch_get_current_cuda_stream(index_, &current), "aoti_torch_get_current_cuda_stream");
    return static_cast<Stream>(current);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

}  // namespace sskd_fast::cuda
