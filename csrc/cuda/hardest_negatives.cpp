// Hardest negatives on CUDA tensors: allocates memory and launches the kernel of hardest_negatives.cu.
#include "cuda/hardest_negatives.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "cuda/launching.h"
#include "cuda/operators.h"

namespace sskd_fast::cuda {

at::Tensor hardest_negatives(const at::Tensor& anchors, const at::Tensor& candidates, const at::Tensor& drawn,
                             int64_t num_negatives) {
  const OnDevice device(anchors);
  const at::Tensor own = readable_rows("anchors", anchors), others = readable_rows("candidates", candidates);
  const at::Tensor index = narrowed_indices(drawn);
  const int64_t total = own.size(0), given = index.size(1);
  if (total == 0) return at::empty({0, num_negatives}, index.options());
  TORCH_CHECK_VALUE(others.size(0) <= INT32_MAX, "candidates: found ", others.size(0), ", expected fewer than 2^31");
  const at::Tensor hardest = at::empty({total, num_negatives}, index.options());
  with_storage(own.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const at::Tensor similarities = scratch(similarities_are_shared<S>(given), total, given, compute_options(own));
    launch_hardest_negatives<S>(rows_of<S>(own), rows_of<S>(others), const_data<int32_t>(index),
                                static_cast<int32_t>(given), static_cast<int32_t>(num_negatives),
                                data_or_null<Compute<S>>(similarities), data<int32_t>(hardest), device.stream());
  });
  return hardest;
}

}  // namespace sskd_fast::cuda
