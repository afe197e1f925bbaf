// Negative sampling on CUDA tensors: allocates memory and launches the kernels of negative_sampling.cu.
#include "cuda/negative_sampling.h"

#include <algorithm>

#include "cuda/launching.h"
#include "cuda/operators.h"
#include "tensors.h"

namespace sskd_fast::cuda {
namespace {

// One of the tables, after a check of its layout.
template <typename T>
const T* table_data(const char* name, const Tensor& table, int64_t size) {
  check_value(table.is_contiguous() && (size < 0 || table.numel() == size), name, ": found shape ",
              sskd_fast::shape_of(table), ", expected ", size, " numbers, contiguous");
  return table.const_data_ptr<T>();
}

// Score vectors that the kernels can read, undefined if there are none.
Tensor score_rows(const char* name, const std::optional<Tensor>& scores) {
  return scores ? readable_rows(name, *scores) : Tensor();
}

template <typename S>
Rows<S> rows_or_none(const Tensor& scores, int64_t count) {
  return scores.defined() ? rows_of<S>(scores) : Rows<S>{nullptr, count, 0};
}

}  // namespace

Tensor negative_sampling_by_tables(const Tensor& anchor_scores, const Tensor& anchor_group,
                                   const std::optional<Tensor>& candidate_scores,
                                   const std::optional<Tensor>& candidate_weight, const Tensor& candidate_group,
                                   bool same, int64_t num_negatives, const Tensor& seed, const Tensor& entries,
                                   const Tensor& ratio, const Tensor& table, const Tensor& first, const Tensor& count,
                                   const Tensor& skip_from, const Tensor& skip_length, const Tensor& bound,
                                   const Tensor& available, const Tensor& order, const Tensor& own_from,
                                   const Tensor& own_until) {
  const OnDevice device(anchor_group);
  const int64_t total = anchor_group.size(0), size = candidate_group.size(0), wanted = num_negatives;
  const Options ints = options_of(anchor_group).with(ScalarType::Int);
  check_value(size <= INT32_MAX && wanted <= INT32_MAX / 4, "candidate_group: found ", size, " candidates and ", wanted,
              " negatives, expected fewer than 2^31 and 2^29");
  const Tensor picks = empty({total, wanted}, ints);
  if (total == 0) return picks;
  if (size == 0) return torch::stable::fill_(picks, -1);
  const Tensor candidates = score_rows("candidate_scores", candidate_scores);
  const Tensor anchors = candidates.defined() ? score_rows("anchor_scores", anchor_scores) : Tensor();
  const Tensor weight = packed(candidate_weight);
  const Tensor sets = scratch(drawn_set_is_shared(wanted), total, drawn_set_size(wanted), ints);
  const bool race_is_shared = race_buffer_is_shared(wanted);
  const int64_t blocks = std::min<int64_t>(total, kRaceBlocks), buffer = race_buffer_size(wanted);
  const Tensor arrivals = scratch(race_is_shared, blocks, buffer, ints.with(ScalarType::Double));
  const Tensor racers = scratch(race_is_shared, blocks, buffer, ints);
  const Tensor marks = zeros({blocks, (size + 31) / 32}, ints);
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
