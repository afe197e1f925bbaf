// Score fusion on the CPU: one vector of pixels at a time.

#include <vector>

#include "cpu/buffer.h"
#include "cpu/first_wrong.h"
#include "cpu/lanes.h"
#include "cpu/operators.h"
#include "cpu/recycled.h"
#include "cpu/threads.h"
#include "math/score_fusion.h"
#include "tensors.h"

namespace sskd_fast {
namespace {

// Pixels per partial sum of the class gradient: a multiple of the vector's length.
constexpr int64_t kPixelsPerPart = 512;

struct Shape {
  int64_t images, queries, in_height, in_width, out_height, out_width, classes;
  Cues cues;
  int64_t pixels() const { return out_height * out_width; }
  int64_t width() const { return score_width(cues, queries, classes); }
  bool resized() const { return in_height != out_height || in_width != out_width; }
};

Shape shape_of(const Tensor& masks, const Tensor& classes, int64_t height, int64_t width, int64_t cues) {
  return {masks.size(0), masks.size(1), masks.size(2), masks.size(3), height, width, classes.size(2),
          static_cast<Cues>(cues)};
}

template <typename T>
Vector<T> square_root(const Vector<T>& x) {
  Vector<T> result;
  for (int i = 0; i < Lanes<T>::count; ++i) result[i] = std::sqrt(x[i]);
  return result;
}

template <typename T>
bool all_finite(const T* x, int64_t n) {
  T wrong = 0;
  for (int64_t i = 0; i < n; ++i) wrong += x[i] - x[i];
  return wrong == 0;
}

template <typename T>
void check_finite(const char* name, const Tensor& logits) {
  const int64_t images = logits.size(0), size = logits.numel() / std::max<int64_t>(images, 1);
  const T* data = logits.const_data_ptr<T>();
  const int64_t wrong = first_wrong(images, 1, [&](int64_t b) { return !all_finite(data + b * size, size); });
  check_value(wrong == images, name, ": image ", wrong, " has non-finite values, expected finite logits");
}

// softmax over the classes, (B, K, C + 1).
template <typename T>
std::vector<T> class_probabilities(const Tensor& logits) {
  const int64_t c1 = logits.size(2), rows = logits.size(0) * logits.size(1);
  const T* data = logits.const_data_ptr<T>();
  std::vector<T> p(data, data + rows * c1);
  for (int64_t row = 0; row < rows; ++row) {
    T* x = p.data() + row * c1;
    const T top = *std::max_element(x, x + c1);
    const T inverse = 1 / exp_and_sum(x, c1, top);
    for (int64_t c = 0; c < c1; ++c) x[c] *= inverse;
  }
  return p;
}

// The mask logits of a vector of pixels, resized; pixels past the last one repeat it.
template <typename T>
class MaskSampler {
 public:
  explicit MaskSampler(const Shape& shape) : shape_(shape) {}

  void move_to(int64_t pixel) {
    first_ = pixel;
    const int64_t last = shape_.pixels() - 1;
    for (int64_t i = 0; i < Lanes<T>::count; ++i) {
      const int64_t p = std::min(pixel + i, last);
      const Source<T> y = bilinear_source<T>(p / shape_.out_width, shape_.in_height, shape_.out_height);
      const Source<T> x = bilinear_source<T>(p % shape_.out_width, shape_.in_width, shape_.out_width);
      const int64_t corners[4] = {y.first * shape_.in_width + x.first, y.first * shape_.in_width + x.second,
                                  y.second * shape_.in_width + x.first, y.second * shape_.in_width + x.second};
      for (int c = 0; c < 4; ++c) index_[c][i] = corners[c];
      right_[i] = x.weight, below_[i] = y.weight;
    }
  }

  Vector<T> operator()(const T* plane) const {
    if (!shape_.resized() && first_ + Lanes<T>::count <= shape_.pixels()) return load(plane + first_);
    Vector<T> corner[4] = {};
    for (int c = 0; c < 4; ++c)
      for (int64_t i = 0; i < Lanes<T>::count; ++i) corner[c][i] = plane[index_[c][i]];
    const Vector<T> above = (1 - right_) * corner[0] + right_ * corner[1];
    const Vector<T> under = (1 - right_) * corner[2] + right_ * corner[3];
    return (1 - below_) * above + below_ * under;
  }

 private:
  Shape shape_;
  int64_t first_ = 0;
  int64_t index_[4][Lanes<T>::count];
  Vector<T> right_, below_;
};

// Working memory of one thread for a vector of pixels.
template <typename T>
struct Scratch {
  explicit Scratch(const Shape& s) : sampler(s), logits(s.queries), presence(s.queries), scores(s.width()) {}

  // Unit score vectors of an image's pixels from `pixel` on; returns the norms before normalisation.
  Vector<T> fuse(const Shape& s, const T* masks, const T* classes, int64_t pixel) {
    sampler.move_to(pixel);
    for (int64_t k = 0; k < s.queries; ++k) logits[k] = sampler(masks + k * s.in_height * s.in_width);
    pixel_presence(logits.data(), s.queries, s.cues, presence.data());
    pixel_scores(presence.data(), classes, s.queries, s.classes, s.cues, scores.data());
    Vector<T> total{};
    for (const auto& y : scores) total += y * y;
    const Vector<T> root = square_root<T>(total), least = Vector<T>{} + static_cast<T>(kLeastScoreNorm);
    const Vector<T> norm = root > least ? root : least;
    const Vector<T> inverse = 1 / norm;
    for (auto& y : scores) y *= inverse;
    return norm;
  }

  MaskSampler<T> sampler;
  std::vector<Vector<T>> logits, presence, scores;
};

template <typename T>
void forward(const Shape& s, const T* masks, const T* classes, T* out) {
  const int64_t lanes = Lanes<T>::count, width = s.width(), vectors = (s.pixels() + lanes - 1) / lanes;
  parallel_for(0, s.images * vectors, 8, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(s);
    for (int64_t job = begin; job < end; ++job) {
      const int64_t b = job / vectors, pixel = (job % vectors) * lanes;
      scratch.fuse(s, masks + b * s.queries * s.in_height * s.in_width, classes + b * s.queries * s.classes, pixel);
      const int64_t count = std::min(lanes, s.pixels() - pixel);
      T* rows = out + (b * s.pixels() + pixel) * width;
      const T* transposed = reinterpret_cast<const T*>(scratch.scores.data());
      for (int64_t i = 0; i < count; ++i)
        for (int64_t e = 0; e < width; ++e) rows[i * width + e] = transposed[e * lanes + i];
    }
  });
}

// Gradient of the resized mask logits (B, K, N), and of the class probabilities by part: (B, parts, K, C + 1).
template <typename T>
void backward(const Shape& s, const T* grad, const T* masks, const T* classes, T* grad_resized, T* grad_parts) {
  const int64_t lanes = Lanes<T>::count, width = s.width(), table = s.queries * s.classes;
  const int64_t parts = (s.pixels() + kPixelsPerPart - 1) / kPixelsPerPart;
  parallel_for(0, s.images * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(s);
    std::vector<Vector<T>> g(width), grad_m(s.queries), grad_classes(table);
    for (int64_t job = begin; job < end; ++job) {
      const int64_t b = job / parts, from = (job % parts) * kPixelsPerPart;
      std::fill(grad_classes.begin(), grad_classes.end(), Vector<T>{});
      for (int64_t pixel = from; pixel < std::min(from + kPixelsPerPart, s.pixels()); pixel += lanes) {
        const T* image = masks + b * s.queries * s.in_height * s.in_width;
        const T* probability = classes + b * table;
        const Vector<T> norm = scratch.fuse(s, image, probability, pixel);
        const int64_t count = std::min(lanes, s.pixels() - pixel);
        const T* rows = grad + (b * s.pixels() + pixel) * width;
        for (int64_t e = 0; e < width; ++e)
          for (int64_t i = 0; i < lanes; ++i) g[e][i] = i < count ? rows[i * width + e] : T(0);
        Vector<T> radial{};
        for (int64_t e = 0; e < width; ++e) radial += g[e] * scratch.scores[e];
        radial = norm > static_cast<T>(kLeastScoreNorm) ? radial : Vector<T>{};
        const Vector<T> inverse = 1 / norm;
        for (int64_t e = 0; e < width; ++e) g[e] = (g[e] - radial * scratch.scores[e]) * inverse;
        const Vector<T> covered = covered_by_objects(s, scratch, probability);
        pixel_scores_backward(scratch.presence.data(), probability, g.data(), covered <= 1, s.queries, s.classes,
                              s.cues, grad_m.data(), grad_classes.data());
        for (int64_t k = 0; k < s.queries; ++k)
          for (int64_t i = 0; i < count; ++i) grad_resized[(b * s.queries + k) * s.pixels() + pixel + i] = grad_m[k][i];
      }
      for (int64_t i = 0; i < table; ++i) grad_parts[job * table + i] = sum(grad_classes[i]);
    }
  });
}

template <typename T>
Vector<T> covered_by_objects(const Shape& s, const Scratch<T>& scratch, const T* probability) {
  Vector<T> covered{};
  if (s.cues != Cues::kObject) return covered;
  for (int64_t k = 0; k < s.queries; ++k)
    covered += scratch.presence[k] * (1 - probability[k * s.classes + s.classes - 1]);
  return covered;
}

// Transpose of the bilinear resizing: every plane (h, w) back to (H, W).
template <typename T>
void resize_backward(const Shape& s, const T* grad_resized, T* grad_masks) {
  parallel_for(0, s.images * s.queries, 1, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const T* g = grad_resized + plane * s.pixels();
      T* out = grad_masks + plane * s.in_height * s.in_width;
      for (int64_t i = 0; i < s.out_height; ++i) {
        const Source<T> y = bilinear_source<T>(i, s.in_height, s.out_height);
        for (int64_t j = 0; j < s.out_width; ++j) {
          const Source<T> x = bilinear_source<T>(j, s.in_width, s.out_width);
          const T above = (1 - y.weight) * g[i * s.out_width + j], below = y.weight * g[i * s.out_width + j];
          out[y.first * s.in_width + x.first] += (1 - x.weight) * above;
          out[y.first * s.in_width + x.second] += x.weight * above;
          out[y.second * s.in_width + x.first] += (1 - x.weight) * below;
          out[y.second * s.in_width + x.second] += x.weight * below;
        }
      }
    }
  });
}

// Gradient through the softmax over the classes; the parts are added in order.
template <typename T>
void classes_backward(const Shape& s, const T* parts, int64_t count, const T* classes, T* grad) {
  const int64_t table = s.queries * s.classes;
  for (int64_t b = 0; b < s.images; ++b) {
    T* g = grad + b * table;
    for (int64_t part = 0; part < count; ++part)
      for (int64_t i = 0; i < table; ++i) g[i] += parts[(b * count + part) * table + i];
    for (int64_t k = 0; k < s.queries; ++k) {
      const T* p = classes + b * table + k * s.classes;
      T* row = g + k * s.classes;
      T inner = 0;
      for (int64_t c = 0; c < s.classes; ++c) inner += row[c] * p[c];
      for (int64_t c = 0; c < s.classes; ++c) row[c] = p[c] * (row[c] - inner);
    }
  }
}

template <typename T>
void check_logits(const Tensor& masks, const Tensor& classes) {
  check_finite<T>("mask_logits", masks);
  check_finite<T>("class_logits", classes);
}

}  // namespace

Tensor score_fusion(const Tensor& mask_logits, const Tensor& class_logits, int64_t height, int64_t width,
                    int64_t cues) {
  const Tensor masks = packed(mask_logits), classes = packed(class_logits);
  const Shape s = shape_of(masks, classes, height, width, cues);
  // The sampler reads it at random.
  const Tensor out = recycled_empty({s.images, s.pixels(), s.width()}, options_of(masks), true);
  by_float("score_fusion", masks, [&](auto zero) {
    using scalar_t = decltype(zero);
    check_logits<scalar_t>(masks, classes);
    if (out.numel() == 0) return;
    const auto probability = class_probabilities<scalar_t>(classes);
    forward<scalar_t>(s, masks.const_data_ptr<scalar_t>(), probability.data(), out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

std::tuple<Tensor, Tensor> score_fusion_backward(const Tensor& grad_scores, const Tensor& mask_logits,
                                                 const Tensor& class_logits, int64_t height, int64_t width,
                                                 int64_t cues) {
  const Tensor masks = packed(mask_logits), classes = packed(class_logits);
  const Tensor grad = packed(grad_scores);
  const Shape s = shape_of(masks, classes, height, width, cues);
  const Tensor grad_masks = zeros(masks.sizes(), options_of(masks));
  const Tensor grad_classes = zeros(classes.sizes(), options_of(classes));
  if (grad.numel() == 0) return {grad_masks, grad_classes};
  by_float("score_fusion_backward", masks, [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = scalar_t;
    const auto probability = class_probabilities<T>(classes);
    const int64_t parts = (s.pixels() + kPixelsPerPart - 1) / kPixelsPerPart;
    std::vector<T> grad_parts(s.images * parts * s.queries * s.classes);
    T* out = grad_masks.mutable_data_ptr<T>();
    std::vector<T> resized(s.resized() ? s.images * s.queries * s.pixels() : 0);
    T* grad_resized = s.resized() ? resized.data() : out;
    backward<T>(s, grad.const_data_ptr<T>(), masks.const_data_ptr<T>(), probability.data(), grad_resized,
                grad_parts.data());
    if (s.resized()) resize_backward<T>(s, grad_resized, out);
    classes_backward<T>(s, grad_parts.data(), parts, probability.data(), grad_classes.mutable_data_ptr<T>());
  });
  return {grad_masks, grad_classes};
}

}  // namespace sskd_fast
