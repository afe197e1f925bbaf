// Pixel contrast: NT-Xent of one anchor from its similarities; see sskd_fast/reference/pixel_contrast.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace sskd_fast {

// Norms are clamped to at least this, as in torch.nn.functional.normalize.
constexpr double kLeastEmbeddingNorm = 1e-12;

template <typename T>
struct AnchorLoss {
  T loss, pull;  // pull: probability of the negatives, -d loss / d <a, p> times the temperature
};

// The loss from the largest logit `top`, the logit of the positive and sum_r exp(logit_r - top).
template <typename T>
SSKD_HOST_DEVICE inline AnchorLoss<T> anchor_loss(T top, T positive, T negative_mass) {
  const T total = negative_mass + std::exp(positive - top);
  return {std::log(total) + (top - positive), negative_mass / total};
}

// Expected form: from gap = log of the negatives' mass minus the logit of the positive; -infinity without negatives.
template <typename T>
SSKD_HOST_DEVICE inline AnchorLoss<T> expected_loss(T gap) {
  const T small = std::exp(gap > 0 ? -gap : gap);
  return {(gap > 0 ? gap : T(0)) + std::log1p(small), (gap > 0 ? T(1) : small) / (1 + small)};
}

// 1 / |x|, from the sum of squares.
template <typename T>
SSKD_HOST_DEVICE inline T inverse_norm(T squares) {
  const T norm = std::sqrt(squares);
  return 1 / (norm > static_cast<T>(kLeastEmbeddingNorm) ? norm : static_cast<T>(kLeastEmbeddingNorm));
}

// The part of the gradient along x, which x / |x| cancels; 0 if the norm was clamped.
template <typename T>
SSKD_HOST_DEVICE inline T radial_part(T inner, T inverse) {
  return inverse * static_cast<T>(kLeastEmbeddingNorm) < 1 ? inner : T(0);
}

}  // namespace sskd_fast
