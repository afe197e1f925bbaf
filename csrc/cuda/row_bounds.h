// Bounds on the distance of a row from 32 others, from rows in bytes; math/compressed_rows.h explains them.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/compared_rows.h"
#include "cuda/compressed_rows.h"
#include "math/compressed_rows.h"

namespace sskd_fast::cuda {

struct CompressedHeader {
  float scale, norm, error;
};

__device__ inline CompressedHeader header_of(const CompressedRows& rows, int64_t i) {
  const uint4 last = load_words(rows.packs(i) + rows.count() - 1);
  return {__uint_as_float(last.y), __uint_as_float(last.z), __uint_as_float(last.w)};
}

// An anchor in bytes: its integers, and those of its error. The header of `fine` has the error of both.
struct CompressedAnchor {
  CompressedRows coarse, fine;
  int64_t row;
};

struct Bounds {
  float low, high;
};

// Bounds on half the squared distance between the anchor and the lane's candidate. If there are none, `low` is 0 and
// `high` is infinite or NaN.
__device__ inline Bounds bounds_of(const CompressedAnchor& anchor, const CompressedRows& candidates, int32_t q,
                                   float slack) {
  struct Layers {
    uint4 coarse, fine;
  };
  const auto own = [&](int32_t pack) {
    Layers x{load_words(anchor.coarse.packs(anchor.row) + pack), load_words(anchor.fine.packs(anchor.row) + pack)};
    if (pack == candidates.count() - 1) x.coarse.y = x.coarse.z = x.coarse.w = x.fine.y = x.fine.z = x.fine.w = 0;
    return x;
  };
  const auto add = [](const Layers& x, const uint4& row, float (&sums)[1]) {
    sums[0] += static_cast<float>(dot_bytes(x.fine, row, kFiner * dot_bytes(x.coarse, row)));
  };
  float products[1];
  compare_packs<4>([&](int32_t i) { return candidates.packs(i); }, candidates.count(), q, own, add, products);
  const CompressedHeader a = header_of(anchor.fine, anchor.row), c = header_of(candidates, q < 0 ? 0 : q);
  const float own_square = a.norm * a.norm, square = c.norm * c.norm, squares = own_square + square;
  const float s = 0.5f * squares - c.scale * (a.scale / kFiner) * products[0];
  float margin = a.error * c.norm + (a.norm + a.error) * c.error + slack * squares;
  if (fminf(own_square, square) < kLeastSquare) margin = HUGE_VALF;
  return {fmaxf(s - margin, 0.0f), s + margin};
}

}  // namespace sskd_fast::cuda
