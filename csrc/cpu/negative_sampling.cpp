// Negative sampling on the CPU: rejection in linear time, then the exact race for the missing negatives.

#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/compressed_scores.h"
#include "cpu/first_wrong.h"
#include "cpu/lane_selection.h"
#include "cpu/lanes.h"
#include "cpu/operators.h"
#include "cpu/philox_lanes.h"
#include "cpu/proposals.h"
#include "cpu/recycled.h"
#include "cpu/threads.h"
#include "math/negative_sampling.h"
#include "tensors.h"

namespace sskd_fast {
namespace {

// Number of trials that are made, and settled by their bounds, at a time.
constexpr int64_t kChunk = 16;  // as many as philox_lanes gives words for
constexpr int64_t kLargestBatch = 4096, kChunksAhead = 4;
constexpr double kNormTolerance = 1e-2, kLeastEntry = 1e-6;

// The candidates that an anchor has drawn already, one bit each.
class Drawn {
 public:
  explicit Drawn(int64_t candidates) : bits_((candidates + 63) / 64, 0) {}
  bool insert(int64_t q) {
    uint64_t& word = bits_[q >> 6];
    const uint64_t bit = uint64_t{1} << (q & 63);
    const bool fresh = (word & bit) == 0;
    word |= bit;
    return fresh;
  }
  bool holds(int64_t q) const { return bits_[q >> 6] >> (q & 63) & 1; }
  // Forgets the candidates of a row (n), which are all that it holds; ends at the first -1.
  void clear(const int32_t* row, int64_t n) {
    if (static_cast<int64_t>(bits_.size()) < n) return std::fill(bits_.begin(), bits_.end(), 0);
    for (int64_t r = 0; r < n && row[r] >= 0; ++r) bits_[row[r] >> 6] = 0;
  }

 private:
  std::vector<uint64_t> bits_;
};

// Trials of one anchor, in chunks: the proposed candidates, and the levels that the acceptance ratios must exceed, as
// random words and rounded to float. Trials that cannot be accepted (unfair slots, trials past the last) have an
// infinite level. Each step of a batch loops over all of its trials.
struct Batch {
  explicit Batch(int64_t size)
      : slot(size), level_word(size), candidate(size), level(size), accepted(size / kChunk), open(size / kChunk) {}
  std::vector<uint32_t> slot, level_word;
  std::vector<int32_t> candidate;
  std::vector<float> level;
  std::vector<uint32_t> accepted, open;  // a bit a trial of a chunk: settled by the bounds, left to the exact score
  int64_t chunks = 0;
};

// A number of trials that suffices for most anchors: the mean plus one standard deviation, in whole chunks.
int64_t first_batch(double acceptance, int64_t num_negatives) {
  const double rate = std::clamp(acceptance, 0.05, 1.0), wanted = static_cast<double>(num_negatives);
  const double trials = (wanted + std::sqrt(wanted * (1 - rate))) / rate;
  return (static_cast<int64_t>(trials) / kChunk + 1) * kChunk;
}

// The sampler of one thread.
template <typename T>
class Sampler {
 public:
  Sampler(const SamplingInput<T>& in, const Proposals& proposals, const CompressedScores* compressed, const T* centre,
          PhiloxKey key, int64_t num_negatives)
      : in_(in), proposals_(proposals), compressed_(compressed), centre_(centre), key_(key),
        num_negatives_(num_negatives), slack_(rounding_slack(in.width)), drawn_(in.candidates),
        batch_(std::min(kLargestBatch, (trial_limit(num_negatives) / kChunk + 2) * kChunk)),
        integers_(compressed == nullptr ? 0 : 64 * compressed->chunks(), 0), scratch_(in.width) {}

  // Fills the row (R) of an anchor.
  void draw(int64_t anchor, int32_t* row) {
    std::fill_n(row, num_negatives_, -1);
    int64_t held = 0;
    const bool many = proposals_.available[anchor] > 2 * num_negatives_ && proposals_.anchor[anchor].count > 0;
    if (many) held = reject(anchor, row);
    if (held < num_negatives_ && held < proposals_.available[anchor]) race(anchor, row, held);
    drawn_.clear(row, num_negatives_);
  }

 private:
  int64_t reject(int64_t anchor, int32_t* row) {
    const AnchorProposals& p = proposals_.anchor[anchor];
    const SlotTable& table = p.spread ? proposals_.spread : proposals_.even;
    const int64_t limit = trial_limit(num_negatives_);
    unfair_ = unfair_below(p.count);
    if (compressed_ != nullptr) compress(anchor);
    int64_t held = 0;
    int64_t size = std::min<int64_t>(first_batch(p.acceptance, num_negatives_), batch_.level.size());
    for (int64_t begin = 0; begin < limit; begin += size, size = 2 * kChunk) {
      batch_.chunks = size / kChunk;
      make_trials(anchor, p, begin, limit);
      look_up(table);
      settle(p, table);
      for (int64_t chunk = 0; chunk < batch_.chunks && held < num_negatives_; ++chunk)
        held = insert(decide(anchor, p, table, chunk), batch_.candidate.data() + chunk * kChunk, row, held);
      if (held == num_negatives_) return held;
    }
    row[held] = -1;  // `insert` may have left a candidate there
    return held;
  }

  // Adds the accepted candidates of a chunk to the row of an anchor; returns how many it then holds.
  int64_t insert(uint32_t accepted, const int32_t* candidate, int32_t* row, int64_t held) {
    int32_t fresh[2 * kChunk];
    const int64_t count = compress_by_bits(accepted, candidate, fresh);
    // Without a jump for candidates that are held already, which would be mispredicted.
    for (int64_t i = 0; i < count && held < num_negatives_; ++i) {
      row[held] = fresh[i];
      held += drawn_.insert(fresh[i]);
    }
    return held;
  }

  void make_trials(int64_t anchor, const AnchorProposals& p, int64_t begin, int64_t limit) {
    for (int64_t chunk = 0; chunk < batch_.chunks; ++chunk) {
      uint64_t words[4][kChunk / 2];
      const int64_t from = begin + chunk * kChunk, at = chunk * kChunk;
      philox_lanes(key_, static_cast<uint32_t>(from / 2), static_cast<uint32_t>(anchor), kStreamTrials, words);
      propose_lanes(words, p, unfair_, limit - from, batch_.slot.data() + at, batch_.level_word.data() + at,
                    batch_.level.data() + at);
    }
  }

  // The level that the acceptance ratio of a trial must exceed.
  double exact_level(const AnchorProposals& p, int64_t i) const {
    return unit_interval(batch_.level_word[i]) * p.bound;
  }

  void look_up(const SlotTable& table) {
    const int32_t* const entries = table.entries.data();
    const uint32_t* const slot = batch_.slot.data();
    int32_t* const candidate = batch_.candidate.data();
    for (int64_t i = 0; i < batch_.chunks * kChunk; ++i) candidate[i] = entries[slot[i]];
  }

  // Prefetches the compressed scores of a chunk, a few chunks ahead of their use and between other work. A core has
  // no more than about twenty cache misses in flight.
  void fetch(int64_t chunk) const {
    if (compressed_ == nullptr || chunk >= batch_.chunks) return;
    for (int64_t i = 0; i < kChunk; ++i) compressed_->prefetch(batch_.candidate[chunk * kChunk + i]);
  }

  // Settles trials by their bounds, or by their ratios alone if there are no scores.
  void settle(const AnchorProposals& p, const SlotTable& table) {
    for (int64_t chunk = 0; chunk < kChunksAhead; ++chunk) fetch(chunk);
    for (int64_t chunk = 0; chunk < batch_.chunks; ++chunk) {
      fetch(chunk + kChunksAhead);
      const int32_t* candidate = batch_.candidate.data() + chunk * kChunk;
      const float* level = batch_.level.data() + chunk * kChunk;
      uint32_t accepted = 0, open = 0;
      if (compressed_ == nullptr) {
        for (int64_t i = 0; i < kChunk; ++i)
          accepted |= static_cast<uint32_t>(std::isfinite(level[i]) &&
                                            exact_level(p, chunk * kChunk + i) < table.ratio[candidate[i]])
                      << i;
      } else {
        float low[kChunk], high[kChunk];
        bounds(p, table, candidate, low, high);
        accepted = bits_of_less(level, low), open = ~bits_of_less(high, level) & ((1u << kChunk) - 1);
        open &= ~accepted;
        for (uint32_t left = open; left != 0; left &= left - 1)
          prefetch_row(in_.candidate_scores + candidate[__builtin_ctz(left)] * in_.width, in_.width);
      }
      batch_.accepted[chunk] = accepted, batch_.open[chunk] = open;
    }
  }

  // A bit for every accepted trial of a chunk.
  uint32_t decide(int64_t anchor, const AnchorProposals& p, const SlotTable& table, int64_t chunk) const {
    uint32_t accepted = batch_.accepted[chunk];
    const T* own = in_.anchor_scores + anchor * in_.width;
    for (uint32_t left = batch_.open[chunk]; left != 0; left &= left - 1) {
      const int bit = __builtin_ctz(left);
      const int64_t i = chunk * kChunk + bit, q = batch_.candidate[i];
      const T s = half_squared_distance(own, in_.candidate_scores + q * in_.width, in_.width);
      accepted |= static_cast<uint32_t>(exact_level(p, i) < table.ratio[q] * static_cast<double>(s)) << bit;
    }
    return accepted;
  }

  // Bounds of the acceptance ratio, with room for the rounding of the level to float.
  void bounds(const AnchorProposals& p, const SlotTable& table, const int32_t* candidate, float* low,
              float* high) const {
    CompressedProducts<kChunk> x;
    compressed_->products(candidate, integers_.data(), offset_, x);
    if (!p.spread)
      for (int64_t i = 0; i < kChunk; ++i)
        x.ratio[i] = in_.weight == nullptr ? 1.0f : static_cast<float>(table.ratio[candidate[i]]);
    const float own_square = own_.norm * own_.norm, norm = own_.norm * (1 + slack_) + own_.error;
    for (int64_t i = 0; i < kChunk; ++i) {
      const float square = x.norm[i] * x.norm[i], squares = own_square + square;
      const float s = 0.5f * squares - own_.scale * x.scale[i] * x.product[i];
      const float bound = own_.error * x.norm[i] + norm * x.error[i] + slack_ * squares;
      const float margin = std::min(own_square, square) < kLeastSquare ? 4.0f : bound;
      low[i] = x.ratio[i] * std::max(s - margin, 0.0f) * (1 - slack_);
      high[i] = x.ratio[i] * (s + margin) * (1 + slack_);
    }
  }

  void compress(int64_t anchor) {
    int32_t total = 0;
    const T* row = in_.anchor_scores + anchor * in_.width;
    own_ = compress_row(row, centre_, in_.width, scratch_.data(), reinterpret_cast<uint8_t*>(integers_.data()), 0);
    for (const int8_t integer : integers_) total += integer;
    offset_ = 128 * total;
  }

  // One exact pass over the candidates not yet drawn: those that arrive first fill up the row.
  void race(int64_t anchor, int32_t* row, int64_t held) {
    using Entry = std::pair<double, int32_t>;
    std::vector<Entry> heap;
    const int64_t wanted = num_negatives_ - held;
    heap.reserve(std::min(wanted, in_.candidates) + 1);
    const T* own = in_.anchor_scores + anchor * in_.width;
    Words words{};
    for (int64_t q = 0; q < in_.candidates; ++q) {
      if (q % 4 == 0) words = philox(key_, static_cast<uint32_t>(q / 4), static_cast<uint32_t>(anchor), kStreamRace);
      if (!in_.in_scope(anchor, q) || drawn_.holds(q)) continue;
      double weight = in_.weight_of(q);
      if (in_.candidate_scores != nullptr) weight *= exact_dissimilarity(own, in_.candidate_scores + q * in_.width);
      if (!(weight > 0)) continue;
      const Entry entry{arrival(words.w[q % 4], weight), static_cast<int32_t>(q)};
      if (static_cast<int64_t>(heap.size()) == wanted) {
        if (!(entry < heap.front())) continue;
        std::pop_heap(heap.begin(), heap.end());
        heap.pop_back();
      }
      heap.push_back(entry);
      std::push_heap(heap.begin(), heap.end());
    }
    std::sort_heap(heap.begin(), heap.end());
    for (const Entry& entry : heap) row[held++] = entry.second;
  }

  double exact_dissimilarity(const T* a, const T* b) const {
    double total = 0;
    for (int64_t e = 0; e < in_.width; ++e) {
      const double difference = static_cast<double>(a[e]) - static_cast<double>(b[e]);
      total += difference * difference;
    }
    return total / 2;
  }

  const SamplingInput<T>& in_;
  const Proposals& proposals_;
  const CompressedScores* compressed_;
  const T* centre_;
  PhiloxKey key_;
  int64_t num_negatives_;
  float slack_;
  Drawn drawn_;
  Batch batch_;
  std::vector<int8_t> integers_;
  std::vector<float> scratch_;
  CompressedRow own_{};
  int32_t offset_ = 0;
  uint32_t unfair_ = 0;
};

// Checks that rows are non-negative and of unit norm, as the even envelope assumes; returns the largest squared norm.
template <typename T>
double check_unit_rows(const char* name, const Tensor& scores) {
  const int64_t rows = scores.size(0), width = scores.size(1);
  const T* data = scores.const_data_ptr<T>();
  const auto norm_of = [&](int64_t i) { return std::sqrt(squared_norm(data + i * width, width)); };
  const auto least_of = [&](int64_t i) { return smallest_below_zero(data + i * width, width); };
  std::vector<double> squares(rows);
  const int64_t row = first_wrong(rows, 512, [&](int64_t i) {
    squares[i] = squared_norm(data + i * width, width);
    return !(std::abs(std::sqrt(squares[i]) - 1) <= kNormTolerance) || least_of(i) < -kLeastEntry;
  });
  if (row < rows) {
    check_value(std::abs(norm_of(row) - 1) <= kNormTolerance, name, ": row ", row, " has norm ", norm_of(row),
                ", expected rows of unit norm");
    check_value(false, name, ": row ", row, " has entries down to ", least_of(row), ", expected non-negative rows");
  }
  return rows == 0 ? 0.0 : *std::max_element(squares.begin(), squares.end());
}

template <typename T>
std::unique_ptr<CompressedScores> compress_candidates(const SamplingInput<T>& in, const Proposals& proposals,
                                                      const std::vector<T>& centre) {
  auto result = std::make_unique<CompressedScores>(in.candidates, in.width);
  parallel_for(0, in.candidates, 512, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(in.width);
    for (int64_t q = begin; q < end; ++q)
      result->set_row(q, in.candidate_scores + q * in.width, centre.data(), in.width,
                      static_cast<float>(proposals.spread.ratio[q]), scratch.data());
  });
  return result;
}

template <typename T>
void sample(const SamplingInput<T>& in, int64_t num_negatives, int64_t seed, int32_t* out) {
  const Cells cells = cells_of(in);
  std::optional<Spread> envelope;
  if (in.candidate_scores != nullptr) envelope = spread_envelope(in, cells);
  const Proposals proposals = build_proposals(in, cells, envelope ? &*envelope : nullptr);
  std::vector<T> centre;
  std::unique_ptr<CompressedScores> compressed;
  if (envelope) {
    // Any vector works; the centre of the first cell keeps the rows short.
    centre.assign(envelope->centre.begin(), envelope->centre.begin() + in.width);
    compressed = compress_candidates(in, proposals, centre);
  }
  const PhiloxKey key = philox_key(seed);
  parallel_for(0, in.anchors, 16, [&](int64_t begin, int64_t end) {
    Sampler<T> sampler(in, proposals, compressed.get(), centre.data(), key, num_negatives);
    for (int64_t a = begin; a < end; ++a) sampler.draw(a, out + a * num_negatives);
  });
}

}  // namespace

Tensor negative_sampling(const Tensor& anchor_scores, const Tensor& anchor_group,
                         const std::optional<Tensor>& candidate_scores, const std::optional<Tensor>& candidate_weight,
                         const Tensor& candidate_group, bool same, int64_t num_negatives, const Tensor& seed) {
  const Tensor anchors = packed(anchor_scores), own = packed(anchor_group);
  const Tensor group = packed(candidate_group);
  const Tensor scores = packed(candidate_scores);
  const Tensor weight = packed(candidate_weight);
  check_value(group.size(0) <= std::numeric_limits<int32_t>::max() / (2 * kSlots), "found ", group.size(0),
              " candidates, more than int32 indices of their slots can address");
  check_value(anchors.size(1) <= kWidestRow, "anchor_scores: found rows of ", anchors.size(1),
              " numbers, expected at most ", kWidestRow);
  const Tensor out = recycled_empty({anchors.size(0), num_negatives}, options_of(anchors).with(ScalarType::Int));
  if (out.numel() == 0) return out;
  if (group.size(0) == 0) return torch::stable::fill_(out, -1);
  if (candidate_weight) {
    const double* v = weight.const_data_ptr<double>();
    check_value(std::all_of(v, v + group.size(0), [](double x) { return x >= 0 && std::isfinite(x); }),
                "candidate_weight: found negative or non-finite values, expected finite weights of at least 0");
  }
  by_float("negative_sampling", anchors, [&](auto zero) {
    using scalar_t = decltype(zero);
    double even_bound = 1;
    if (candidate_scores) {
      const double norms = check_unit_rows<scalar_t>("anchor_scores", anchors);
      const bool same_rows = scores.const_data_ptr() == anchors.const_data_ptr() && same_sizes(scores, anchors);
      const double others = same_rows ? norms : check_unit_rows<scalar_t>("candidate_scores", scores);
      even_bound = std::max(1.0, (norms + others) / 2);
    }
    const SamplingInput<scalar_t> in{anchors.size(0),
                                     group.size(0),
                                     anchors.size(1),
                                     anchors.const_data_ptr<scalar_t>(),
                                     candidate_scores ? scores.const_data_ptr<scalar_t>() : nullptr,
                                     candidate_weight ? weight.const_data_ptr<double>() : nullptr,
                                     own.const_data_ptr<int64_t>(),
                                     group.const_data_ptr<int64_t>(),
                                     same,
                                     even_bound};
    sample(in, num_negatives, *seed.const_data_ptr<int64_t>(), out.mutable_data_ptr<int32_t>());
  });
  return out;
}

}  // namespace sskd_fast
