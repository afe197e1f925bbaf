// Embedding rows of storage type S: inverse norms, normalised copies, and the gradient through the normalisation.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/lanes.h"
#include "cpu/threads.h"
#include "math/pixel_contrast.h"
#include "tensors.h"

namespace sskd_fast {

template <typename S>
struct Embeddings {
  const S* data;
  int64_t rows, width;
  const S* row(int64_t i) const { return data + i * width; }
};

template <typename S>
Embeddings<S> embeddings(const Tensor& x) {
  return {x.const_data_ptr<S>(), x.size(0), x.size(1)};
}

// The value of a one-element double tensor, positive and finite.
inline double checked_temperature(const Tensor& temperature) {
  const double value = *temperature.const_data_ptr<double>();
  check_value(value > 0 && std::isfinite(value), "temperature: expected a positive finite number, found ", value);
  return value;
}

// f(S()) for the element type S of embeddings.
template <typename F>
void by_embedding_dtype(const char* operation, const Tensor& x, F f) {
  by_dtype<float, double, c10::BFloat16, c10::Half>(operation, x, f);
}

// out (D) = scale * row; either side may have a storage type.
template <typename T, typename S, typename O>
inline void scaled_row(const S* row, T scale, int64_t width, O* out) {
  constexpr int64_t step = Lanes<T>::count;
  int64_t d = 0;
  for (; d + step <= width; d += step) store(out + d, scale * load(row + d));
  for (; d < width; ++d) out[d] = static_cast<O>(scale * static_cast<T>(row[d]));
}

// 1 / |x| of every row, or 1 without normalisation.
template <typename S>
std::vector<Compute<S>> inverse_norms(const Embeddings<S>& x, bool normalize) {
  using T = Compute<S>;
  std::vector<T> result(x.rows, T(1));
  if (!normalize) return result;
  parallel_for(0, x.rows, 1024, [&](int64_t begin, int64_t end) {
    std::vector<T> copy(x.width);
    for (int64_t i = begin; i < end; ++i) {
      scaled_row(x.row(i), T(1), x.width, copy.data());
      result[i] = inverse_norm(dot(copy.data(), copy.data(), x.width));
    }
  });
  return result;
}

// out (D) = row / |row|, or the row without normalisation; returns 1 / |row|, or 1.
template <typename T, typename S>
inline T unit_row(const S* row, bool normalize, int64_t width, T* out) {
  scaled_row(row, T(1), width, out);
  if (!normalize) return 1;
  const T inverse = inverse_norm(dot(out, out, width));
  for (int64_t d = 0; d < width; ++d) out[d] *= inverse;
  return inverse;
}

// out = gradient of the row, from the gradient of its unit vector and 1 / norm; the gradient itself without normalize.
template <typename T, typename S>
inline void write_row_gradient(const T* grad, const S* row, T inverse, bool normalize, int64_t width, S* out) {
  if (!normalize) return scaled_row(grad, T(1), width, out);
  constexpr int64_t step = Lanes<T>::count;
  const T inner = radial_part(dot(grad, row, width) * inverse, inverse) * inverse;
  int64_t d = 0;
  for (; d + step <= width; d += step) store(out + d, inverse * (load(grad + d) - inner * load(row + d)));
  for (; d < width; ++d) out[d] = static_cast<S>(inverse * (grad[d] - inner * static_cast<T>(row[d])));
}

}  // namespace sskd_fast
