// Score vectors in bytes, for a first look at a trial: bounds on s(a, q) = |a - q|^2 / 2 from a quarter of the memory.
//
// With c any fixed vector, a' = a - c and q' = q - c:  s = (|a'|^2 + |q'|^2) / 2 - <a', q'>.  Each row is stored as
// q' = scale * integers + error. By Cauchy-Schwarz, <a', q'> differs from its integer product by at most
// |error_a| |q'| + (|a'| + |error_a|) |error_q|. If the bounds settle the acceptance of a trial, no exact score is
// needed. All other scores are computed exactly, so no decision depends on the compression.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace sskd_fast {

// The largest integer of a row.
constexpr float kLargestInteger = 127;
// Squared norms below this may underflow in float32: such rows are never settled by the bounds.
constexpr float kLeastSquare = 1e-30f;
// Integer products of wider rows would overflow 32 bits.
constexpr int64_t kWidestRow = 65536;

// Relative slack for the rounding of float32 sums of `width` terms, in the bounds and in the exact score.
SSKD_HOST_DEVICE inline float rounding_slack(int64_t width) { return 2e-5f * static_cast<float>(1 + width / 4096); }

// 1 / scale, or 0 if the row has no integers but 0.
SSKD_HOST_DEVICE inline float inverse_scale(float scale) { return scale > 1e-30f ? 1 / scale : 0; }

}  // namespace sskd_fast
