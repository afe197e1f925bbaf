// Hardest negatives on CUDA tensors: allocates memory and launches the kernel of hardest_negatives.cu.
#include "cuda/hardest_negatives.h"

#include "cuda/launching.h"
#include "cuda/operators.h"
#include "tensors.h"

namespace sskd_fast::cuda {

Tensor hardest_negatives(const Tensor& anchors, const Tensor& candidates, const Tensor& drawn, int64_t num_negatives) {
  const OnDevice device(anchors);
  const Tensor own = readable_rows("anchors", anchors), others = readable_rows("candidates", candidates);
  const Tensor index = narrowed_indices(drawn);
  const int64_t total = own.size(0), given = index.size(1);
  if (total == 0) return empty({0, num_negatives}, options_of(index));
  check_value(others.size(0) <= INT32_MAX, "candidates: found ", others.size(0), ", expected fewer than 2^31");
  check_value(given <= kMostDraws, "drawn: found ", given, " draws of an anchor, expected at most ", kMostDraws);
  const Tensor hardest = empty({total, num_negatives}, options_of(index));
  with_storage(own.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const bool is_shared = order_is_shared<S>(given);
    const Tensor similarities = scratch(is_shared, total, given, compute_options(own));
    const Tensor order = scratch(is_shared, total, order_size(given), options_of(own).with(ScalarType::Short));
    launch_hardest_negatives<S>(rows_of<S>(own), rows_of<S>(others), const_data<int32_t>(index),
                                static_cast<int32_t>(given), static_cast<int32_t>(num_negatives),
                                data_or_null<Compute<S>>(similarities), data_or_null<uint16_t>(order),
                                data<int32_t>(hardest), device.stream());
  });
  return hardest;
}

}  // namespace sskd_fast::cuda
