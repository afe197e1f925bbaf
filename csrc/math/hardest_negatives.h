// Hardest negatives: the hardness of one negative; see sskd_fast/reference/hardest_negatives.py.
#pragma once

#include <cmath>

#include "common/macros.h"

namespace sskd_fast {

// The cosine with the anchor times the norm of the anchor, from <a, c> and 1 / |c|. NaN is least hard.
template <typename T>
SSKD_HOST_DEVICE inline T hardness(T product, T inverse_norm) {
  const T similarity = product * inverse_norm;
  return similarity == similarity ? similarity : -static_cast<T>(INFINITY);
}

}  // namespace sskd_fast
