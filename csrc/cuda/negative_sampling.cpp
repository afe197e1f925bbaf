// Negative sampling on CUDA tensors: allocates memory and launches the kernels of negative_sampling.cu.
#include "cuda/negative_sampling.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "cuda/launching.h"
#include "cuda/operators.h"

namespace sskd_fast::cuda {
namespace {

// One of the tables, after a check of its layout.
template <typename T>
const T* table_data(const char* name, const at::Tensor& table, int64_t size) {
  TORCH_CHECK_VALUE(table.is_contiguous() && (size < 0 || table.numel() == size), name, ": found shape ", table.sizes(),
                    ", expected ", size, " numbers, contiguous");
  return table.const_data_ptr<T>();
}

// Score vectors that the kernels can read, undefined if there are none.
at::Tensor score_rows(const char* name, const std::optional<at::Tensor>& scores) {
  return scores ? readable_rows(name, *scores) : at::Tensor();
}

template <typename S>
Rows<S> rows_or_none(const at::Tensor& scores, int64_t count) {
  return scores.defined() ? rows_of<S>(scores) : Rows<S>{nullptr, count, 0};
}

}  // namespace

at::Tensor negative_sampling_by_tables(
    const at::Tensor& anchor_scores, const at::Tensor& anchor_group, const std::optional<at::Tensor>& candidate_scores,
    const std::optional<at::Tensor>& candidate_weight, const at::Tensor& candidate_group, bool same,
    int64_t num_negatives, const at::Tensor& seed, const at::Tensor& entries, const at::Tensor& ratio,
    const at::Tensor& table, const at::Tensor& first, const at::Tensor& count, const at::Tensor& skip_from,
    const at::Tensor& skip_length, const at::Tensor& bound, const at::Tensor& available, const at::Tensor& order,
    const at::Tensor& own_from, const at::Tensor& own_until) {
  const OnDevice device(anchor_group);
  const int64_t total = anchor_group.size(0), size = candidate_group.size(0), wanted = num_negatives;
  const at::TensorOptions ints = anchor_group.options().dtype(at::kInt);
  TORCH_CHECK_VALUE(size <= INT32_MAX && wanted <= INT32_MAX / 4, "candidate_group: found ", size, " candidates and ",
                    wanted, " negatives, expected fewer than 2^31 and 2^29");
  const at::Tensor picks = at::empty({total, wanted}, ints);
  if (total == 0) return picks;
  if (size == 0) return picks.fill_(-1);
  const at::Tensor candidates = score_rows("candidate_scores", candidate_scores);
  const at::Tensor anchors = candidates.defined() ? score_rows("anchor_scores", anchor_scores) : at::Tensor();
  const at::Tensor weight = candidate_weight ? candidate_weight->contiguous() : at::Tensor();
  const at::Tensor sets = scratch(drawn_set_is_shared(wanted), total, drawn_set_size(wanted), ints);
  const bool race_is_shared = race_buffer_is_shared(wanted);
  const int64_t blocks = std::min<int64_t>(total, kRaceBlocks), buffer = race_buffer_size(wanted);
  const at::Tensor arrivals = scratch(race_is_shared, blocks, buffer, ints.dtype(at::kDouble));
  const at::Tensor racers = scratch(race_is_shared, blocks, buffer, ints);
  const at::Tensor marks = at::zeros({blocks, (size + 31) / 32}, ints);
  with_storage(anchor_scores.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const SamplingTables<S> tables{.anchors = rows_or_none<S>(anchors, total),
                                   .candidates = rows_or_none<S>(candidates, size),
                                   .weight = data_or_null<const double>(weight),
                                   .same = same,
                                   .entries = table_data<int32_t>("entries", entries, -1),
                                   .ratio = table_data<double>("ratio", ratio, -1),
                                   .bound = table_data<double>("bound", bound, total),
                                   .table = table_data<int64_t>("table", table, total),
                                   .first = table_data<int64_t>("first", first, total),
                                   .count = table_data<int64_t>("count", count, total),
                                   .skip_from = table_data<int64_t>("skip_from", skip_from, total),
                                   .skip_length = table_data<int64_t>("skip_length", skip_length, total),
                                   .available = table_data<int64_t>("available", available, total),
                                   .order = table_data<int32_t>("order", order, size),
                                   .own_from = table_data<int64_t>("own_from", own_from, total),
                                   .own_until = table_data<int64_t>("own_until", own_until, total),
                                   .seed = table_data<int64_t>("seed", seed, 1)};
    launch_trials<S>(tables, wanted, data_or_null<int32_t>(sets), data<int32_t>(picks), device.stream());
    launch_race<S>(tables, wanted, data<uint32_t>(marks), data_or_null<double>(arrivals),
                   data_or_null<int32_t>(racers), data<int32_t>(picks), device.stream());
  });
  return picks;
}

}  // namespace sskd_fast::cuda
