// Result tensors: not initialised, in huge pages where they are large, since the next operator reads them at random.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "cpu/buffer.h"

namespace sskd_fast {

inline at::Tensor new_result(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor result = at::empty(sizes, options);
  advise_huge_pages(result.mutable_data_ptr(), static_cast<int64_t>(result.nbytes()));
  return result;
}

}  // namespace sskd_fast
