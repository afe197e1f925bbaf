// The tables of slots from which trials propose candidates, and the envelope of every anchor. The same computation as
// `build_proposals` of sskd_fast/reference/proposals.py, in the same double-precision arithmetic.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/group_ids.h"
#include "cpu/lanes.h"
#include "cpu/threads.h"
#include "math/negative_sampling.h"

namespace sskd_fast {

// The sampler's input. Shapes: A anchors, M candidates, E width; scores (all alike) and weight may be null.
template <typename T>
struct SamplingInput {
  int64_t anchors, candidates, width;
  const T* anchor_scores;
  const T* candidate_scores;
  const double* weight;
  const int64_t* anchor_group;
  const int64_t* candidate_group;
  bool same;
  double even_bound;  // upper bound of the dissimilarities: 1, or slightly more for rows slightly longer than 1

  double weight_of(int64_t q) const { return weight == nullptr ? 1.0 : weight[q]; }
  bool in_scope(int64_t a, int64_t q) const { return (anchor_group[a] == candidate_group[q]) == same; }
};

// Candidates by group: cells number the group ids that occur, in ascending order.
struct Cells {
  int64_t count = 0;
  std::vector<int32_t> of_candidate, of_anchor;  // of_anchor: -1 for a group without candidates
  std::vector<int32_t> order;                    // candidates by cell, ascending within
  std::vector<int64_t> start;                    // (count + 1): start of each cell in `order`
};

template <typename T>
Cells cells_of(const SamplingInput<T>& in) {
  Cells cells;
  const GroupIds ids(in.candidate_group, in.candidates);
  cells.count = ids.count();
  cells.of_candidate = ids.numbers(in.candidate_group, in.candidates);
  cells.of_anchor = ids.numbers(in.anchor_group, in.anchors);
  cells.start.assign(cells.count + 1, 0);
  for (const int32_t cell : cells.of_candidate) ++cells.start[cell + 1];
  std::partial_sum(cells.start.begin(), cells.start.end(), cells.start.begin());
  cells.order.resize(in.candidates);
  std::vector<int64_t> next(cells.start.begin(), cells.start.end() - 1);
  for (int64_t q = 0; q < in.candidates; ++q) cells.order[next[cells.of_candidate[q]]++] = static_cast<int32_t>(q);
  return cells;
}

// One table of slots: every candidate has slots in proportion to its mass, rounded up; kSlots for the mean mass.
struct SlotTable {
  Buffer<int32_t> entries;     // the candidate of a slot
  std::vector<double> ratio;   // (M): weight of a candidate divided by the envelope that its slots stand for
  std::vector<int64_t> start;  // (cells + 1): start of the slots of each cell
};

template <typename T>
SlotTable slot_table(const SamplingInput<T>& in, const Cells& cells, const std::vector<double>* mass, double mean) {
  SlotTable table;
  table.start.assign(cells.count + 1, 0);
  if (mass == nullptr) {
    table.entries = Buffer<int32_t>(in.candidates, true);
    std::copy(cells.order.begin(), cells.order.end(), table.entries.data());
    table.ratio.assign(in.candidates, 1.0);
    table.start = cells.start;
    return table;
  }
  const double scale = kSlots / std::max(mean, std::numeric_limits<double>::min());
  std::vector<int64_t> slots(in.candidates);
  double unit = 0;
  for (int64_t q = 0; q < in.candidates; ++q) {
    const double wanted = std::ceil((*mass)[q] * scale * (1 - kSlotSlack));
    slots[q] = (*mass)[q] > 0 ? std::max<int64_t>(1, static_cast<int64_t>(wanted)) : 0;
    unit = std::max(unit, (*mass)[q] / static_cast<double>(std::max<int64_t>(slots[q], 1)));
  }
  unit = std::max(unit, std::numeric_limits<double>::min());
  table.ratio.resize(in.candidates);
  for (int64_t q = 0; q < in.candidates; ++q)
    table.ratio[q] = in.weight_of(q) / (static_cast<double>(std::max<int64_t>(slots[q], 1)) * unit);
  table.entries = Buffer<int32_t>(std::accumulate(slots.begin(), slots.end(), int64_t{0}), true);
  int64_t next = 0;
  for (int64_t cell = 0; cell < cells.count; ++cell) {
    table.start[cell] = next;
    for (int64_t i = cells.start[cell]; i < cells.start[cell + 1]; ++i)
      for (int64_t slot = 0; slot < slots[cells.order[i]]; ++slot) table.entries[next++] = cells.order[i];
  }
  table.start[cells.count] = next;
  return table;
}

template <typename T>
double squared_norm(const T* row, int64_t width) {
  constexpr int64_t step = Lanes<double>::count;
  Vector<double> lanes{};
  int64_t e = 0;
  for (; e + step <= width; e += step) {
    Vector<double> x;
    for (int64_t i = 0; i < step; ++i) x[i] = row[e + i];
    lanes += x * x;
  }
  double total = sum(lanes);
  for (; e < width; ++e) total += static_cast<double>(row[e]) * static_cast<double>(row[e]);
  return total;
}

template <typename T>
double squared_distance(const T* row, const double* centre, int64_t width) {
  constexpr int64_t step = Lanes<double>::count;
  Vector<double> lanes{};
  int64_t e = 0;
  for (; e + step <= width; e += step) {
    Vector<double> difference;
    for (int64_t i = 0; i < step; ++i) difference[i] = row[e + i] - centre[e + i];
    lanes += difference * difference;
  }
  double total = sum(lanes);
  for (; e < width; ++e) total += (row[e] - centre[e]) * (row[e] - centre[e]);
  return total;
}

// The spread envelope: (alpha + beta) / 2 of every anchor and the mass v_q (1 + t_q) of every candidate.
struct Spread {
  std::vector<double> centre;  // (cells, E)
  std::vector<double> half;    // (A)
  std::vector<double> mass;    // (M)
};

constexpr int64_t kRowsPerPart = 512;

template <typename T>
Spread spread_envelope(const SamplingInput<T>& in, const Cells& cells) {
  // With scope "same", each group has its own centre; otherwise all candidates share one.
  const int64_t centres = in.same ? cells.count : 1, width = in.width;
  const auto cell = [&](int64_t q) { return in.same ? cells.of_candidate[q] : 0; };
  Spread result;
  std::vector<double> mass(centres, 0.0);
  for (int64_t q = 0; q < in.candidates; ++q) mass[cell(q)] += in.weight_of(q);
  for (double& m : mass) m = std::max(m, std::numeric_limits<double>::min());
  // Sums over parts of fixed size, added in order: the same bits for any number of threads.
  const int64_t parts = (in.candidates + kRowsPerPart - 1) / kRowsPerPart;
  const auto sum_by_parts = [&](int64_t size, auto&& add) {
    std::vector<double> total(size, 0.0);
    const int64_t batch = std::max<int64_t>(1, (int64_t{1} << 20) / std::max<int64_t>(size, 1));
    std::vector<double> partial;
    for (int64_t from = 0; from < parts; from += batch) {
      const int64_t to = std::min(parts, from + batch);
      partial.assign((to - from) * size, 0.0);
      parallel_for(from, to, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part)
          for (int64_t q = part * kRowsPerPart; q < std::min(in.candidates, (part + 1) * kRowsPerPart); ++q)
            add(q, partial.data() + (part - from) * size);
      });
      for (int64_t i = 0; i < to - from; ++i)
        for (int64_t j = 0; j < size; ++j) total[j] += partial[i * size + j];
    }
    return total;
  };
  result.centre = sum_by_parts(centres * width, [&](int64_t q, double* total) {
    const double share = in.weight_of(q) / mass[cell(q)];
    const T* row = in.candidate_scores + q * width;
    double* out = total + cell(q) * width;
    for (int64_t e = 0; e < width; ++e) out[e] += share * row[e];
  });
  std::vector<double> distance(in.candidates);
  std::vector<double> beta = sum_by_parts(centres, [&](int64_t q, double* total) {
    distance[q] = squared_distance(in.candidate_scores + q * width, result.centre.data() + cell(q) * width, width);
    total[cell(q)] += distance[q] * in.weight_of(q);
  });
  for (int64_t c = 0; c < centres; ++c) beta[c] = beta[c] / mass[c] > kAlike ? beta[c] / mass[c] : kAlikeBeta;
  result.mass.resize(in.candidates);
  for (int64_t q = 0; q < in.candidates; ++q) result.mass[q] = in.weight_of(q) * (1 + distance[q] / beta[cell(q)]);
  result.half.resize(in.anchors);
  parallel_for(0, in.anchors, 256, [&](int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; ++a) {
      const int64_t c = in.same ? std::max(cells.of_anchor[a], 0) : 0;
      const double* centre = result.centre.data() + c * width;
      result.half[a] = (squared_distance(in.anchor_scores + a * width, centre, width) + beta[c]) / 2;
    }
  });
  return result;
}

// Both tables, and the ranges of them that each anchor uses.
struct Proposals {
  SlotTable even, spread;
  std::vector<AnchorProposals> anchor;
  std::vector<int64_t> available;  // (A): candidates of positive weight in scope
};

template <typename T>
Proposals build_proposals(const SamplingInput<T>& in, const Cells& cells, const Spread* envelope) {
  Proposals result;
  std::vector<double> weight;
  if (in.weight != nullptr) weight.assign(in.weight, in.weight + in.candidates);
  const double total =
      in.weight == nullptr ? static_cast<double>(in.candidates) : std::accumulate(weight.begin(), weight.end(), 0.0);
  const double mean = total / static_cast<double>(in.candidates);
  result.even = slot_table(in, cells, in.weight == nullptr ? nullptr : &weight, mean);
  // The weighted mean of t is 1 by its definition, 0 for rows that are alike.
  if (envelope != nullptr) result.spread = slot_table(in, cells, &envelope->mass, 2 * mean);
  std::vector<int64_t> drawable(cells.count + 1, 0);
  for (int64_t q = 0; q < in.candidates; ++q) drawable[cells.of_candidate[q] + 1] += in.weight_of(q) > 0;
  const int64_t every = std::accumulate(drawable.begin(), drawable.end(), int64_t{0});
  result.anchor.resize(in.anchors);
  result.available.resize(in.anchors);
  for (int64_t a = 0; a < in.anchors; ++a) {
    const int32_t cell = cells.of_anchor[a];
    const bool spread = envelope != nullptr && envelope->half[a] < kEvenFrom;
    const SlotTable& table = spread ? result.spread : result.even;
    const int64_t total = table.entries.size();
    const int64_t first = cell < 0 ? 0 : table.start[cell], own = cell < 0 ? 0 : table.start[cell + 1] - first;
    const double bound = spread ? envelope->half[a] * kEnvelopeMargin : in.even_bound;
    const double acceptance = envelope == nullptr ? 1.0 : spread ? 0.5 * kSlots / (kSlots + 0.5) : envelope->half[a];
    result.anchor[a] = in.same ? AnchorProposals{first, own, total, 0, bound, acceptance, spread}
                               : AnchorProposals{0, total - own, first, own, bound, acceptance, spread};
    const int64_t in_cell = cell < 0 ? 0 : drawable[cell + 1];
    result.available[a] = in.same ? in_cell : every - in_cell;
  }
  return result;
}

}  // namespace sskd_fast
