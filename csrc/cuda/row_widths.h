// The widths of rows that a warp reads at random in whole parts, for kernels and their launchers.
#pragma once

#include <cstdint>

#include "cuda/numbers.h"

namespace sskd_fast::cuda {

constexpr int kWarp = 32;
constexpr int kGroup = 8;  // lanes that share a row and read 128 bytes of it at a time

// The most packs of a row that a lane holds: 16 numbers, or 4 in float64. A sum and another row have to fit beside
// them.
template <typename S>
constexpr int kHeld = sizeof(S) == 4 ? 4 : 2;

// Packs of a row that a group of lanes holds, if each holds half of its most or all of it. The parts of wider rows,
// which a warp holds.
template <typename S>
constexpr int kNarrowRow = kGroup * kHeld<S> / 2;
template <typename S>
constexpr int kGroupRow = kGroup * kHeld<S>;
template <typename S>
constexpr int kWarpPart = kWarp * kHeld<S> / 2;

// The least number of packs in a row that is divided into such parts, at least `packs`.
template <typename S>
constexpr int32_t divisible_packs(int32_t packs) {
  if (packs <= kNarrowRow<S>) return kNarrowRow<S>;
  if (packs <= kGroupRow<S>) return kGroupRow<S>;
  return (packs + kWarpPart<S> - 1) / kWarpPart<S> * kWarpPart<S>;
}

}  // namespace sskd_fast::cuda
