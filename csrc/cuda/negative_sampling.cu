// Negative sampling on the GPU: one warp for each anchor makes 32 trials at a time. To compare rows in bytes, eight
// lanes share a row, and each group of eight has several rows in flight. The whole warp reads the exact row of a trial
// that the bytes leave open. A ballot puts accepted candidates in the order of the trials, and a hash set drops
// repeats. Then one block for each anchor runs the exact race for the missing negatives.
#include "cuda/negative_sampling.h"

#include <cmath>

#include "cuda/bitonic_sort.h"
#include "cuda/compared_rows.h"
#include "cuda/row_bounds.h"

namespace sskd_fast::cuda {
namespace {

constexpr double kNever = HUGE_VAL;  // arrival time of a candidate that never arrives
constexpr int kTile = kRowThreads;   // candidates that a block of the race reads at a time

// The candidates that a warp has drawn: a hash set with linear probing, at most half full.
struct DrawnSet {
  int32_t* slots;
  uint32_t mask;

  __device__ uint32_t home(int32_t q) const { return (static_cast<uint32_t>(q) * 0x9E3779B1u) >> 7 & mask; }
  __device__ void clear() const {
    for (uint32_t i = own_lane(); i <= mask; i += kWarp) slots[i] = -1;
    __syncwarp();
  }
  __device__ bool holds(int32_t q) const {
    uint32_t i = home(q);
    while (slots[i] != q && slots[i] != -1) i = (i + 1) & mask;
    return slots[i] == q;
  }
  __device__ void insert(int32_t q) const {
    for (uint32_t i = home(q); atomicCAS(slots + i, -1, q) != -1;) i = (i + 1) & mask;
  }
};

// Appends the lanes' accepted candidates that are not yet drawn to picks from `held` on, in the order of the lanes.
// Returns the new number of picks.
__device__ inline int32_t append(bool accepted, int32_t q, const DrawnSet& drawn, int32_t held, int32_t wanted,
                                 int32_t* picks) {
  const int lane = own_lane();
  const uint32_t lower = (1u << lane) - 1, all = __ballot_sync(kAllLanes, accepted);
  bool fresh = accepted && !drawn.holds(q);
  if (accepted) fresh &= (__match_any_sync(all, q) & lower) == 0;
  const uint32_t taken = __ballot_sync(kAllLanes, fresh);
  const int32_t place = held + __popc(taken & lower);
  if (fresh && place < wanted) {
    picks[place] = q;
    drawn.insert(q);
  }
  __syncwarp();
  return min(wanted, held + __popc(taken));
}

template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    negative_sampling_trials_kernel(SamplingTables<S> in, int64_t anchors, int32_t num_negatives, uint32_t set_mask,
                                    int32_t* sets, int32_t* all_picks) {
  SSKD_DYNAMIC_SHARED(memory);
  const int64_t anchor = own_row();
  if (anchor >= anchors) return;  // the whole warp
  const int lane = own_lane();
  int32_t* picks = all_picks + anchor * num_negatives;
  for (int32_t r = lane; r < num_negatives; r += kWarp) picks[r] = -1;
  // In shared memory, since registers are scarce.
  SSKD_SHARED(AnchorProposals, proposals, [kRowWarps]);
  SSKD_SHARED(uint2, random, [kRowWarps][2 * kWarp]);
  uint2* const own_words = random[threadIdx.x / kWarp];
  AnchorProposals& p = proposals[threadIdx.x / kWarp];
  if (lane == 0) {
    p.first = in.first[anchor], p.count = in.count[anchor], p.bound = in.bound[anchor];
    p.skip_from = in.skip_from[anchor], p.skip_length = in.skip_length[anchor];
  }
  __syncwarp();
  if (in.available[anchor] <= 2 * int64_t{num_negatives} || p.count <= 0) return;  // left to the race
  int32_t* const shared_sets = reinterpret_cast<int32_t*>(memory);
  const int64_t set_size = int64_t{set_mask} + 1;
  const DrawnSet drawn{sets != nullptr ? sets + anchor * set_size : shared_sets + threadIdx.x / kWarp * set_size,
                       set_mask};
  drawn.clear();
  const PhiloxKey key = philox_key(*in.seed);
  const uint32_t unfair = unfair_below(p.count);
  const double* ratios = in.ratio + in.table[anchor];
  const S* own = in.anchors.data == nullptr ? nullptr : in.anchors.row(anchor);
  const CompressedAnchor compressed{in.coarse, in.fine, anchor};
  const int64_t limit = trial_limit(num_negatives);
  int32_t held = 0;
#pragma unroll 1
  for (uint32_t turn = 0; int64_t{turn} * kWarp < limit && held < num_negatives; ++turn) {
    // A counter has the words of two trials, so the lanes draw those of two turns. The last turn ended with a barrier.
    if (turn % 2 == 0) {
      const Words w = philox(key, turn * (kWarp / 2) + lane, static_cast<uint32_t>(anchor), kStreamTrials);
      own_words[2 * lane] = make_uint2(w.w[0], w.w[1]), own_words[2 * lane + 1] = make_uint2(w.w[2], w.w[3]);
      __syncwarp();
    }
    const uint2 words = own_words[turn % 2 * kWarp + lane];
    const Trial trial = propose(words.x, words.y, p, unfair);
    const int32_t q = __ldg(in.entries + trial.slot);
    const double ratio = __ldg(ratios + q);
    const bool possible = trial.fair && int64_t{turn} * kWarp + lane < limit;
    bool accepted = possible && trial.level < ratio;
    if (own != nullptr) {
      const Bounds bounds = bounds_of(compressed, in.compressed, q, in.slack);
      accepted = possible && trial.level < ratio * static_cast<double>(bounds.low);
      const bool refused = trial.level >= ratio * static_cast<double>(bounds.high);
      for (uint32_t open = __ballot_sync(kAllLanes, possible && !accepted && !refused); open != 0; open &= open - 1) {
        const int at = __ffs(static_cast<int>(open)) - 1;
        const S* row = in.candidates.row(__shfl_sync(kAllLanes, q, at));
        const Compute<S> exact = half_squared_distance(own, row, in.candidates.packs());
        if (lane == at) accepted = trial.level < ratio * static_cast<double>(exact);
      }
    }
    held = append(accepted, q, drawn, held, num_negatives, picks);
  }
}

// Entries of the race in a buffer of a power of two; entries past `count` arrive infinitely late.
struct Racers {
  double* arrival;
  int32_t* candidate;
  int32_t size;

  __device__ bool later(int32_t i, int32_t j) const {
    return arrival[i] > arrival[j] || (arrival[i] == arrival[j] && candidate[i] > candidate[j]);
  }

  // By arrival, then by candidate; of the whole block.
  __device__ void sort(int32_t count) const {
    for (int32_t i = count + static_cast<int32_t>(threadIdx.x); i < size; i += kRowThreads)
      arrival[i] = kNever, candidate[i] = INT32_MAX;
    __syncthreads();
    const auto exchange = [&](int32_t i, int32_t j) {
      const double time = arrival[i];
      const int32_t q = candidate[i];
      arrival[i] = arrival[j], candidate[i] = candidate[j];
      arrival[j] = time, candidate[j] = q;
    };
    bitonic_sort(
        size, static_cast<int32_t>(threadIdx.x), kRowThreads, [&](int32_t i, int32_t j) { return later(i, j); },
        exchange, [] { __syncthreads(); });
  }
};

// The block's race for one anchor.
template <typename S>
struct Race {
  const SamplingTables<S>& in;
  const Racers& racers;
  uint32_t* marks;  // bits of candidates drawn before
  PhiloxKey key;
  int64_t anchor;

  __device__ void mark(const int32_t* picks, int32_t held, bool set) const {
    for (int32_t r = static_cast<int32_t>(threadIdx.x); r < held; r += kRowThreads) {
      if (set) atomicOr(marks + picks[r] / 32, 1u << picks[r] % 32);
      else atomicAnd(marks + picks[r] / 32, ~(1u << picks[r] % 32));
    }
    __syncthreads();
  }

  // Arrival time of the candidate at `place` among those in scope; infinite if it cannot arrive.
  __device__ double arrival_of(int64_t place, int64_t places, int32_t& q) const {
    q = -1;
    if (place < places) {
      const int64_t from = in.own_from[anchor], own = in.own_until[anchor] - from;
      q = __ldg(in.order + (in.same ? from + place : place < from ? place : place + own));
      if (marks[q / 32] >> q % 32 & 1) q = -1;
    }
    double weight = q < 0 ? 0 : in.weight == nullptr ? 1 : in.weight[q];
    if (in.anchors.data != nullptr)
      weight *= half_squared_distance<double>(in.anchors.row(anchor), in.candidates, q);
    if (q < 0 || !(weight > 0)) return kNever;
    const Words words = philox(key, static_cast<uint32_t>(q / 4), static_cast<uint32_t>(anchor), kStreamRace);
    const uint32_t half[2] = {q % 2 == 0 ? words.w[0] : words.w[1], q % 2 == 0 ? words.w[2] : words.w[3]};
    return arrival(q % 4 < 2 ? half[0] : half[1], weight);
  }

  // Fills picks from `held` on.
  __device__ void run(int32_t held, int32_t num_negatives, int32_t* picks, int32_t* count) const {
    const int64_t from = in.own_from[anchor], own = in.own_until[anchor] - from;
    const int64_t places = in.same ? own : in.candidates.count - own;
    const int32_t wanted = num_negatives - held;
    double threshold = kNever;  // later arrivals are not among the first `wanted`
    if (threadIdx.x == 0) *count = 0;
    mark(picks, held, true);
    for (int64_t begin = 0; begin < places; begin += kTile) {
      int32_t q;
      const double time = arrival_of(begin + threadIdx.x, places, q);
      if (time < kNever && time <= threshold) {
        const int32_t place = atomicAdd(count, 1);
        racers.arrival[place] = time, racers.candidate[place] = q;
      }
      __syncthreads();
      const int32_t full = *count;
      __syncthreads();
      if (full + kTile <= racers.size) continue;
      racers.sort(full);
      if (full >= wanted) threshold = racers.arrival[wanted - 1];
      if (threadIdx.x == 0) *count = min(full, wanted);
      __syncthreads();
    }
    mark(picks, held, false);
    const int32_t full = *count;
    racers.sort(full);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < min(full, wanted); i += kRowThreads)
      picks[held + i] = racers.candidate[i];
    __syncthreads();
  }
};

template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    negative_sampling_race_kernel(SamplingTables<S> in, int64_t anchors, int32_t num_negatives, int32_t buffer,
                                  uint32_t* all_marks, double* arrivals, int32_t* candidates, int32_t* all_picks) {
  SSKD_DYNAMIC_SHARED(memory);
  SSKD_SHARED(int32_t, count, [1]);
  double* const shared = reinterpret_cast<double*>(memory);
  const int64_t mine = int64_t{blockIdx.x} * buffer;
  const Racers racers{arrivals != nullptr ? arrivals + mine : shared,
                      arrivals != nullptr ? candidates + mine : reinterpret_cast<int32_t*>(shared + buffer), buffer};
  uint32_t* marks = all_marks + blockIdx.x * ((in.candidates.count + 31) / 32);
  const PhiloxKey key = philox_key(*in.seed);
  for (int64_t anchor = blockIdx.x; anchor < anchors; anchor += gridDim.x) {
    int32_t* picks = all_picks + anchor * num_negatives;
    if (picks[num_negatives - 1] >= 0) continue;  // the whole block
    int32_t held = 0, step = 1;
    while (step < num_negatives) step *= 2;
    for (; step > 0; step /= 2)  // picks come first, then -1
      if (held + step <= num_negatives && picks[held + step - 1] >= 0) held += step;
    if (held < in.available[anchor])
      Race<S>{in, racers, marks, key, anchor}.run(held, num_negatives, picks, count);
  }
}

}  // namespace

int64_t drawn_set_size(int64_t num_negatives) { return power_of_two(2 * num_negatives); }
bool drawn_set_is_shared(int64_t num_negatives) {
  return drawn_set_size(num_negatives) * kRowWarps * static_cast<int64_t>(sizeof(int32_t)) <= kSharedBytes;
}

int64_t race_buffer_size(int64_t num_negatives) { return power_of_two(num_negatives + 2 * kTile); }
constexpr int64_t kRacerBytes = sizeof(double) + sizeof(int32_t);
bool race_buffer_is_shared(int64_t num_negatives) {
  return race_buffer_size(num_negatives) * kRacerBytes + 16 <= kSharedBytes;
}

template <typename S>
void launch_trials(const SamplingTables<S>& in, int64_t num_negatives, int32_t* sets, int32_t* picks, Stream stream) {
  const int64_t size = drawn_set_size(num_negatives), anchors = in.anchors.count;
  const size_t bytes = sets != nullptr ? 0 : static_cast<size_t>(size) * kRowWarps * sizeof(int32_t);
  launch(negative_sampling_trials_kernel<S>, warps_for(anchors), dim3{kRowThreads, 1, 1}, bytes, stream, in, anchors,
         static_cast<int32_t>(num_negatives), static_cast<uint32_t>(size - 1), sets, picks);
}

template <typename S>
void launch_race(const SamplingTables<S>& in, int64_t num_negatives, uint32_t* marks, double* arrivals, int32_t* racers,
                 int32_t* picks, Stream stream) {
  const int64_t size = race_buffer_size(num_negatives), anchors = in.anchors.count;
  const size_t bytes = arrivals != nullptr ? 0 : static_cast<size_t>(size * kRacerBytes);
  const dim3 grid{static_cast<unsigned int>(anchors < kRaceBlocks ? anchors : kRaceBlocks), 1, 1};
  launch(negative_sampling_race_kernel<S>, grid, dim3{kRowThreads, 1, 1}, bytes, stream, in, anchors,
         static_cast<int32_t>(num_negatives), static_cast<int32_t>(size), marks, arrivals, racers, picks);
}

#define SSKD_INSTANTIATE(S)                                                                                           \
  template void launch_trials<S>(const SamplingTables<S>&, int64_t, int32_t*, int32_t*, Stream);                      \
  template void launch_race<S>(const SamplingTables<S>&, int64_t, uint32_t*, double*, int32_t*, int32_t*, Stream);
SSKD_INSTANTIATE(float)
SSKD_INSTANTIATE(double)
SSKD_INSTANTIATE(BFloat16)
SSKD_INSTANTIATE(Half)

}  // namespace sskd_fast::cuda
