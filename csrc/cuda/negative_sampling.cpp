// Negative sampling on CUDA tensors: allocates memory and launches the kernels of proposals.cu, compressed_rows.cu and
// negative_sampling.cu.
#include "cuda/negative_sampling.h"

#include <algorithm>
#include <vector>

#include "cuda/launching.h"
#include "cuda/operators.h"
#include "cuda/proposals.h"
#include "math/compressed_rows.h"
#include "tensors.h"

namespace sskd_fast::cuda {
namespace {

// Score vectors that the kernels can read, undefined if there are none.
Tensor score_rows(const char* name, const std::optional<Tensor>& scores) {
  return scores ? readable_rows(name, *scores) : Tensor();
}

template <typename S>
Rows<S> rows_or_none(const Tensor& scores, int64_t count) {
  return scores.defined() ? rows_of<S>(scores) : Rows<S>{nullptr, count, 0};
}

Blocks blocks_of(int64_t count) {
  int64_t length = kShortestBlock;
  while ((count + length - 1) / length > kMostBlocks) length *= 2;
  return {count, length, (count + length - 1) / length};
}

// Memory for rows in bytes; none for no rows.
CompressedRows bytes_for(const Tensor& rows, std::vector<Tensor>& kept) {
  if (!rows.defined()) return {nullptr, 0};
  const int64_t stride = compressed_stride(rows.size(1));
  kept.push_back(empty({rows.size(0), stride}, options_of(rows).with(ScalarType::Byte)));
  return {data<uint8_t>(kept.back()), static_cast<int32_t>(stride)};
}

// The memory of the tables and of what is summed for them. Tensors keep what the pointers refer to.
struct Memory {
  TableMemory m{};
  std::vector<Tensor> kept;

  template <typename T>
  T* keep(const Tensor& x) {
    kept.push_back(x);
    return data<T>(x);
  }
  double* doubles(int64_t count, const Options& of) {
    return keep<double>(empty({count}, of.with(ScalarType::Double)));
  }
  int64_t* longs(int64_t count, const Options& of) { return keep<int64_t>(empty({count}, of.with(ScalarType::Long))); }
};

// The order of the candidates by group, with the ranges of the anchors. One group needs no sort, if its stride says so.
void sort_by_group(Memory& memory, const Tensor& anchor_group, const Tensor& candidate_group) {
  TableMemory& m = memory.m;
  m.one_group = m.candidates.count == 1 || candidate_group.stride(0) == 0;
  const Options options = options_of(anchor_group);
  if (m.one_group) {
    m.anchor_group = const_data<int64_t>(anchor_group), m.candidate_group = const_data<int64_t>(candidate_group);
    m.anchor_group_stride = anchor_group.stride(0);
    m.own_from = memory.longs(m.anchors.count, options), m.own_until = memory.longs(m.anchors.count, options);
    return;
  }
  const auto [grouped, order] = stable_sort(candidate_group);
  const Tensor own = packed(anchor_group);
  m.order = memory.keep<int64_t>(order);
  m.own_from = memory.keep<int64_t>(count_below(grouped, own));
  m.own_until = memory.keep<int64_t>(count_below(grouped, own, true));
  if (m.same && m.scored) m.start = memory.keep<int64_t>(count_below(grouped, grouped));
}

template <typename S>
Memory build_tables(const Tensor& anchor_group, const Tensor& candidate_group, bool same, const Rows<S>& anchors,
                    const Rows<S>& candidates, const Tensor& weight, Stream stream) {
  Memory memory;
  TableMemory& m = memory.m;
  const Options options = options_of(anchor_group);
  const int64_t total = anchor_group.size(0), size = candidate_group.size(0);
  m.candidates = blocks_of(size), m.anchors = blocks_of(total), m.same = same, m.scored = candidates.data != nullptr;
  sort_by_group(memory, anchor_group, candidate_group);
  if (weight.defined()) m.weight = memory.keep<double>(weight), m.mean_weight = memory.keep<double>(mean(weight));
  m.unit = memory.doubles(2 * m.candidates.blocks, options);
  if (m.scored) {
    const int64_t parts = 2 * m.candidates.blocks, cells = m.start == nullptr ? 1 : size;
    m.part_rows = memory.doubles(parts * candidates.width, options), m.part_mass = memory.doubles(parts, options);
    m.part_moment = memory.doubles(parts, options), m.part_cell = memory.longs(parts, options);
    m.centre = memory.doubles(cells * candidates.width, options), m.beta = memory.doubles(cells, options);
    m.distance = memory.doubles(size, options), m.alpha = memory.doubles(total, options);
    m.longest = memory.doubles(m.candidates.blocks + m.anchors.blocks, options);
    launch_envelope<S>(m, anchors, candidates, stream);
  }
  const int64_t rows = (m.scored ? 1 : 0) + (m.weighted() ? 2 : 0);
  if (rows > 0) {
    const Tensor counts = empty({rows * size}, options.with(ScalarType::Int));
    m.counts = memory.keep<int32_t>(counts);
    launch_slots(m, stream);
    m.sums = memory.keep<int64_t>(cumulative(counts));
  }
  const int64_t slots = m.even_slots() + (m.scored ? m.most_slots() : 0);
  m.entries = memory.keep<int32_t>(empty({slots}, options.with(ScalarType::Int)));
  m.places = memory.keep<int32_t>(empty({size}, options.with(ScalarType::Int)));
  m.ratio = memory.doubles((m.scored ? 2 : 1) * size, options), m.bound = memory.doubles(total, options);
  for (int64_t** range : {&m.table, &m.first, &m.count, &m.skip_from, &m.skip_length, &m.available})
    *range = memory.longs(total, options);
  launch_layout(m, stream);
  return memory;
}

}  // namespace

Tensor negative_sampling(const Tensor& anchor_scores, const Tensor& anchor_group,
                         const std::optional<Tensor>& candidate_scores, const std::optional<Tensor>& candidate_weight,
                         const Tensor& candidate_group, bool same, int64_t num_negatives, const Tensor& seed) {
  const OnDevice device(anchor_group);
  const int64_t total = anchor_group.size(0), size = candidate_group.size(0), wanted = num_negatives;
  const Options ints = options_of(anchor_group).with(ScalarType::Int);
  check_value(size <= INT32_MAX / (2 * kSlots) && wanted <= INT32_MAX / 4, "candidate_group: found ", size,
              " candidates and ", wanted, " negatives, expected at most ", INT32_MAX / (2 * kSlots), " and ",
              INT32_MAX / 4);
  const Tensor picks = empty({total, wanted}, ints);
  if (total == 0) return picks;
  if (size == 0) return torch::stable::fill_(picks, -1);
  const Tensor candidates = score_rows("candidate_scores", candidate_scores);
  const bool same_rows = candidates.defined() && candidate_scores->const_data_ptr() == anchor_scores.const_data_ptr() &&
                         same_sizes(*candidate_scores, anchor_scores) &&
                         candidate_scores->strides().equals(anchor_scores.strides());
  const Tensor anchors = !candidates.defined() || same_rows ? candidates : score_rows("anchor_scores", anchor_scores);
  const Tensor weight = packed(candidate_weight);
  const Tensor sets = scratch(drawn_set_is_shared(wanted), total, drawn_set_size(wanted), ints);
  const bool race_is_shared = race_buffer_is_shared(wanted);
  const int64_t blocks = std::min<int64_t>(total, kRaceBlocks), buffer = race_buffer_size(wanted);
  const Tensor arrivals = scratch(race_is_shared, blocks, buffer, ints.with(ScalarType::Double));
  const Tensor racers = scratch(race_is_shared, blocks, buffer, ints);
  const Tensor marks = zeros({blocks, (size + 31) / 32}, ints);
  with_storage(anchor_scores.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    const Rows<S> own = rows_or_none<S>(anchors, total), others = rows_or_none<S>(candidates, size);
    Memory memory = build_tables<S>(anchor_group, candidate_group, same, own, others, weight, device.stream());
    const TableMemory& m = memory.m;
    const CompressedRows coarse = bytes_for(anchors, memory.kept), fine = bytes_for(anchors, memory.kept);
    const CompressedRows compressed = same_rows ? coarse : bytes_for(candidates, memory.kept);
    if (candidates.defined()) launch_compression<S>(own, m.centre, coarse, fine, device.stream());
    if (candidates.defined() && !same_rows)
      launch_compression<S>(others, m.centre, compressed, {nullptr, 0}, device.stream());
    const SamplingTables<S> tables{.anchors = own,
                                   .candidates = others,
                                   .coarse = coarse,
                                   .fine = fine,
                                   .compressed = compressed,
                                   .slack = rounding_slack(own.width),
                                   .weight = m.weight,
                                   .same = same,
                                   .entries = m.entries,
                                   .ratio = m.ratio,
                                   .bound = m.bound,
                                   .table = m.table,
                                   .first = m.first,
                                   .count = m.count,
                                   .skip_from = m.skip_from,
                                   .skip_length = m.skip_length,
                                   .available = m.available,
                                   .order = m.places,
                                   .own_from = m.own_from,
                                   .own_until = m.own_until,
                                   .seed = seed.const_data_ptr<int64_t>()};
    launch_trials<S>(tables, wanted, data_or_null<int32_t>(sets), data<int32_t>(picks), device.stream());
    launch_race<S>(tables, wanted, data<uint32_t>(marks), data_or_null<double>(arrivals), data_or_null<int32_t>(racers),
                   data<int32_t>(picks), device.stream());
  });
  return picks;
}

}  // namespace sskd_fast::cuda
