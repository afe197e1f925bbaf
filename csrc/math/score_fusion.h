// Score fusion: the formulas of one pixel, forward and backward; see sskd_fast/reference/score_fusion.py.
//
// V is a number or a vector of numbers, one per pixel; T is its element type. Vectors are compared lane by lane.
// Shape letters: K queries, C1 = C + 1 classes with no-object last, E width of a score vector.
#pragma once

#include <math.h>

#include <cstdint>

namespace sskd_fast {

// Norms of score vectors are clamped to at least this, as in torch.nn.functional.normalize.
constexpr double kLeastScoreNorm = 1e-12;

enum class Cues : int64_t { kFused = 0, kObject = 1, kMask = 2, kClass = 3 };

inline int64_t score_width(Cues cues, int64_t queries, int64_t classes) {
  return cues == Cues::kMask ? queries : cues == Cues::kClass ? classes : queries + classes;
}

// Start of the class part in a score vector, and its number of classes.
inline int64_t class_offset(Cues cues, int64_t queries) {
  return cues == Cues::kClass ? 0 : cues == Cues::kObject ? queries + 1 : queries;
}

inline int64_t class_count(Cues cues, int64_t classes) {
  return cues == Cues::kMask ? 0 : cues == Cues::kObject ? classes - 1 : classes;
}

// Presence of a query at a pixel on its own: the sigmoid of its mask logit.
template <typename V>
inline V presence_alone(const V& m) {
  const V e = exp(m > 0 ? -m : m);
  return (m > 0 ? e * 0 + 1 : e) / (e + 1);
}

// presence (K): softmax of the mask logits m (K) over the queries or, for "object", their sigmoid.
template <typename V>
inline void pixel_presence(const V* m, int64_t queries, Cues cues, V* presence) {
  if (cues == Cues::kObject) {
    for (int64_t k = 0; k < queries; ++k) presence[k] = presence_alone(m[k]);
    return;
  }
  if (queries == 0) return;
  V top = m[0];
  for (int64_t k = 1; k < queries; ++k) top = m[k] > top ? m[k] : top;
  V total{};
  for (int64_t k = 0; k < queries; ++k) total += presence[k] = exp(m[k] - top);
  const V inverse = 1 / total;
  for (int64_t k = 0; k < queries; ++k) presence[k] *= inverse;
}

// y (E): the score vector before normalisation; classes (K, C1): probabilities.
template <typename V, typename T>
inline void pixel_scores(const V* presence, const T* classes, int64_t queries, int64_t c1, Cues cues,
                                          V* y) {
  V covered{};
  for (int64_t k = 0; k < queries && cues != Cues::kClass; ++k) {
    y[k] = cues == Cues::kObject ? presence[k] * (1 - classes[k * c1 + c1 - 1]) : presence[k];
    covered += y[k];
  }
  if (cues == Cues::kObject) y[queries] = 1 - covered > 0 ? 1 - covered : V{};
  V* mixed = y + class_offset(cues, queries);
  const int64_t count = class_count(cues, c1);
  for (int64_t c = 0; c < count; ++c) mixed[c] = V{};
  for (int64_t k = 0; k < queries; ++k)
    for (int64_t c = 0; c < count; ++c) mixed[c] += presence[k] * classes[k * c1 + c];
}

// Gradient of the mask logits m (K) from g (E), the gradient of y. Adds the pixel's part of the gradient of the class
// probabilities to grad_classes (K, C1). `uncovered`: true if y[K] is positive or exactly 0, so not clamped.
template <typename V, typename T, typename Mask>
inline void pixel_scores_backward(const V* presence, const T* classes, const V* g, Mask uncovered,
                                                   int64_t queries, int64_t c1, Cues cues, V* grad_m, V* grad_classes) {
  const V* grad_mixed = g + class_offset(cues, queries);
  const int64_t count = class_count(cues, c1);
  V inner{};
  for (int64_t k = 0; k < queries; ++k) {
    V grad = V{};
    if (cues == Cues::kObject) {
      const V grad_owner = g[k] - (uncovered ? g[queries] : V{});
      grad = grad_owner * (1 - classes[k * c1 + c1 - 1]);
      grad_classes[k * c1 + c1 - 1] -= grad_owner * presence[k];
    } else if (cues != Cues::kClass) {
      grad = g[k];
    }
    for (int64_t c = 0; c < count; ++c) {
      grad += grad_mixed[c] * classes[k * c1 + c];
      grad_classes[k * c1 + c] += grad_mixed[c] * presence[k];
    }
    grad_m[k] = grad;
    inner += grad * presence[k];
  }
  for (int64_t k = 0; k < queries; ++k)
    grad_m[k] = presence[k] * (cues == Cues::kObject ? grad_m[k] * (1 - presence[k]) : grad_m[k] - inner);
}

// Bilinear resizing along one axis, align_corners=False: the source cells and the weight of the second.
template <typename T>
struct Source {
  int64_t first, second;
  T weight;
};

template <typename T>
inline Source<T> bilinear_source(int64_t index, int64_t in, int64_t out) {
  if (in == out) return {index, index, T(0)};
  const T scale = static_cast<T>(in) / static_cast<T>(out);
  T position = scale * (static_cast<T>(index) + T(0.5)) - T(0.5);
  position = position < 0 ? T(0) : position;
  int64_t first = static_cast<int64_t>(position);
  first = first > in - 1 ? in - 1 : first;
  T weight = position - static_cast<T>(first);
  weight = weight < 0 ? T(0) : weight > 1 ? T(1) : weight;
  return {first, first + (first < in - 1 ? 1 : 0), weight};
}

}  // namespace sskd_fast
