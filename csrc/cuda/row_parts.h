// Rows read at random by a warp, several at a time, each spread over eight lanes or more and held in registers.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/row_widths.h"
#include "cuda/rows.h"
#include "cuda/storage.h"

namespace sskd_fast::cuda {

// The part of a row that `lanes` neighbouring lanes hold, `packs` of 16 bytes each: a whole row, or as much of it as a
// warp holds. A warp reads kGroups rows at a time.
template <typename S, int lanes_, int packs_>
struct RowPart {
  static constexpr int lanes = lanes_, packs = packs_, kGroups = kWarp / lanes, kPacks = lanes * packs;
  static constexpr bool kIsWholeRow = lanes < kWarp;
  // Rows that a group of lanes reads at a time beside a sum; in float64, exponentials need the registers.
  static constexpr int kInFlight = sizeof(S) == 8 ? 1 : kHeld<S> / packs;
  using T = Compute<S>;
  using Words = uint4[packs];
  using Values = T[packs][kPack<S>];

  const int group = own_lane() / lanes, member = own_lane() % lanes;
  const int32_t first;  // pack of a row at which the part begins

  __device__ explicit RowPart(int32_t first = 0) : first(first) {}
  __device__ int32_t pack(int i) const { return first + i * lanes + member; }

  __device__ void load(const Rows<S>& rows, int32_t row, Words& words) const {
    const S* own = rows.row(row) + pack(0) * kPack<S>;
#pragma unroll
    for (int i = 0; i < packs; ++i) words[i] = load_words(own + i * lanes * kPack<S>);
  }

  __device__ void unpacked(const Words& words, Values& values) const {
#pragma unroll
    for (int i = 0; i < packs; ++i) unpack<S>(words[i], values[i]);
  }

  // The lane's part of <x, y>.
  __device__ T dot(const Values& x, const Values& y) const {
    T sum = 0;
#pragma unroll
    for (int i = 0; i < packs; ++i) sum = cuda::dot(x[i], y[i], sum);
    return sum;
  }

  // The same for what is beyond the part in rows of `count` packs.
  __device__ T dot_beyond(const S* x, const S* y, int32_t count) const {
    T sum = 0, u[kPack<S>], v[kPack<S>];
#pragma unroll 1
    for (int32_t c = pack(packs); c < count; c += lanes) {
      load_pack<S>(x + int64_t{c} * kPack<S>, u);
      load_pack<S>(y + int64_t{c} * kPack<S>, v);
      sum = cuda::dot(u, v, sum);
    }
    return sum;
  }

  // sum += weight * values.
  __device__ void add(T weight, const Values& values, Values& sum) const {
#pragma unroll
    for (int i = 0; i < packs; ++i)
#pragma unroll
      for (int j = 0; j < kPack<S>; ++j) sum[i][j] += weight * values[i][j];
  }

  __device__ void multiply(Values& values, T factor) const {
#pragma unroll
    for (int i = 0; i < packs; ++i)
#pragma unroll
      for (int j = 0; j < kPack<S>; ++j) values[i][j] *= factor;
  }

  // Writes the sum over the groups.
  __device__ void store_sum(Values& sum, T* row) const {
#pragma unroll
    for (int i = 0; i < packs; ++i) {
#pragma unroll
      for (int j = 0; j < kPack<S>; ++j) sum[i][j] = groups_sum<lanes>(sum[i][j]);
      if (group == 0) store_sums<S>(row + pack(i) * kPack<S>, sum[i]);
    }
  }

  // Every lane has a number for one of 32 rows: its place among them, and the number whose turn it is in the lane's
  // group. The groups take turns, so that all of them have as many rows.
  __device__ int place() const { return member * kGroups + group; }
  template <typename N>
  __device__ N of_turn(N own, int turn) const {
    return __shfl_sync(kAllLanes, own, turn, lanes);
  }
};

// A row of 32 that the lanes give, negative for none: their own, or another lane's in place of none, so that all of
// them can be read. Negative if no lane has one.
__device__ inline int32_t some_row(int32_t own) {
  const unsigned int present = __ballot_sync(kAllLanes, own >= 0);
  const int32_t other = __shfl_sync(kAllLanes, own, present == 0 ? 0 : __ffs(static_cast<int>(present)) - 1);
  return own >= 0 ? own : other;
}

// A row of up to 128 numbers (32 in float64) is held by eight lanes, which read 128 bytes of it at a time, a wider one
// by the warp, part after part.
template <typename S>
using NarrowPart = RowPart<S, kGroup, kHeld<S> / 2>;
template <typename S>
using EightLanes = RowPart<S, kGroup, kHeld<S>>;
template <typename S>
using WholeWarp = RowPart<S, kWarp, kHeld<S> / 2>;

// f(std::type_identity<RowPart>()) for rows of a divisible number of packs.
template <typename S, typename F>
void with_row_part(int32_t packs, F f) {
  static_assert(NarrowPart<S>::kPacks == kNarrowRow<S> && EightLanes<S>::kPacks == kGroupRow<S>);
  static_assert(WholeWarp<S>::kPacks == kWarpPart<S>);
  if (packs == kNarrowRow<S>) return f(std::type_identity<NarrowPart<S>>());
  if (packs == kGroupRow<S>) return f(std::type_identity<EightLanes<S>>());
  f(std::type_identity<WholeWarp<S>>());
}

// A row of a weighted sum; none if it is negative, and the weight 0.
template <typename T>
struct Use {
  int32_t row;
  T weight;
};

// out, a row's part: the sum of weight * row over use(begin), use(begin + 1) ... use(end - 1), always in the same
// order.
template <typename Part, typename S, typename UseOf>
__device__ inline void sum_rows(const Part& part, const Rows<S>& rows, int32_t begin, int32_t end, UseOf use,
                                Compute<S>* out) {
  using T = Compute<S>;
  constexpr int kInFlight = 4 / Part::packs;
  typename Part::Values sum = {}, values;
#pragma unroll 1
  for (int32_t left = end - begin; left > 0; left -= kWarp) {
    const int place = part.place();
    const Use<T> own = place < left ? use(end - left + place) : Use<T>{-1, T(0)};
    const int32_t own_row = some_row(own.row);
    if (own_row < 0) continue;
#pragma unroll 1
    for (int turn = 0; turn < Part::lanes && turn * Part::kGroups < left; turn += kInFlight) {
      typename Part::Words words[kInFlight];
      T weight[kInFlight];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        weight[u] = part.of_turn(own.weight, turn + u);
        part.load(rows, part.of_turn(own_row, turn + u), words[u]);
      }
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        part.unpacked(words[u], values);
        part.add(weight[u], values, sum);
      }
    }
  }
  part.store_sum(sum, out);
}

}  // namespace sskd_fast::cuda
