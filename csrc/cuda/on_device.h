// The target of a launch: makes the device of a tensor current while this object lives, and gives its current stream.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/device.h"

#if !defined(SSKD_EMULATION)
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace sskd_fast::cuda {

class OnDevice {
 public:
#if defined(SSKD_EMULATION)
  explicit OnDevice(const at::Tensor& /*tensor*/) {}
  Stream stream() const { return 0; }
#else
  explicit OnDevice(const at::Tensor& tensor) : guard_(tensor.device()) {}
  Stream stream() const { return c10::cuda::getCurrentCUDAStream(); }

 private:
  c10::cuda::CUDAGuard guard_;
#endif
};

}  // namespace sskd_fast::cuda
