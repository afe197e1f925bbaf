// The pixels that a block of score fusion works on: their score vectors and gradients in shared memory.
#pragma once

#include "cuda/rows.h"
#include "cuda/score_fusion.h"
#include "cuda/storage.h"

namespace sskd_fast::cuda {

constexpr int kThreads = 256;
template <typename T>
constexpr int kSquare = 16 / sizeof(T);  // queries and classes whose products a thread sums at a time

// Rows of the buffers below.
SSKD_HOST_DEVICE inline int32_t tile_rows(const FusionShape& s) {
  return s.queries + (s.cues == Cues::kObject ? 1 : 0) + s.mixed();
}

// The pixels first .. first + kPixels of an image. y has one row for each query (its presence), one for the background
// with "object", and one for each class (the mixture F). Pixels past the end of the image are computed but not written.
template <typename T, int kPixels>
struct Tile {
  static constexpr int kSubs = kThreads / kPixels, kStride = kPixels + 1;

  const FusionShape& s;
  T *y, *partial;
  int32_t first, pixel, sub;

  static size_t bytes(const FusionShape& s, int buffers) {
    return (static_cast<size_t>(buffers) * tile_rows(s) * kStride + kThreads) * sizeof(T);
  }

  __device__ Tile(const FusionShape& shape, unsigned char* memory, int buffers)
      : s(shape), y(reinterpret_cast<T*>(memory)), partial(y + buffers * tile_rows(shape) * kStride), first(0),
        pixel(static_cast<int32_t>(threadIdx.x) % kPixels), sub(static_cast<int32_t>(threadIdx.x) / kPixels) {}

  __device__ bool live() const { return first + pixel < s.pixels(); }
  __device__ int32_t live_pixels() const { return min(kPixels, s.pixels() - first); }
  __device__ int32_t class_row() const { return tile_rows(s) - s.mixed(); }
  __device__ T& at(T* buffer, int32_t row) const { return buffer[row * kStride + pixel]; }
  // The row of an entry of the score vector.
  __device__ int32_t row_of(int32_t entry) const { return entry + tile_rows(s) - s.width(); }

  // Combines the values of all threads of a pixel.
  template <typename Combine>
  __device__ T combined(T value, Combine combine) const {
    partial[threadIdx.x] = value;
    __syncthreads();
    T result = partial[pixel];
    for (int i = 1; i < kSubs; ++i) result = combine(result, partial[i * kPixels + pixel]);
    __syncthreads();
    return result;
  }
  __device__ T sum(T value) const {
    return combined(value, [](T a, T b) { return a + b; });
  }

  // Loads the image's mask logits (K, H, W) into the rows of y.
  __device__ void load_logits(const T* masks) const {
    if (s.resized()) return load_resized(masks);
    const int32_t plane = s.in_pixels();
    if (plane % kPack<T> != 0 || reinterpret_cast<uintptr_t>(masks) % 16 != 0) {
      const int32_t from = min(first + pixel, plane - 1);
#pragma unroll 1
      for (int32_t k = sub; k < s.queries; k += kSubs) at(y, k) = __ldg(masks + int64_t{k} * plane + from);
      return;
    }
    constexpr int32_t packs = kPixels / kPack<T>;
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < s.queries * packs; i += kThreads) {
      const int32_t k = i / packs, from = i % packs * kPack<T>;
      T values[kPack<T>] = {};
      if (first + from < plane) load_pack<T>(masks + int64_t{k} * plane + first + from, values);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) y[k * kStride + from + j] = values[j];
    }
  }

  __device__ void load_resized(const T* masks) const {
    const int32_t p = min(first + pixel, s.pixels() - 1);
    const Source<T> row = bilinear_source<T>(p / s.out_width, s.in_height, s.out_height);
    const Source<T> column = bilinear_source<T>(p % s.out_width, s.in_width, s.out_width);
    const T *above = masks + row.first * s.in_width, *below = masks + row.second * s.in_width;
#pragma unroll 1
    for (int32_t k = sub; k < s.queries; k += kSubs) {
      const int64_t plane = int64_t{k} * s.in_pixels();
      const T high = (1 - column.weight) * __ldg(above + plane + column.first) +
                     column.weight * __ldg(above + plane + column.second);
      const T low = (1 - column.weight) * __ldg(below + plane + column.first) +
                    column.weight * __ldg(below + plane + column.second);
      at(y, k) = (1 - row.weight) * high + row.weight * low;
    }
  }

  // Turns the logits in y into presences. Once the logits are loaded, each thread touches only its own rows.
  __device__ void make_presence() const {
    __syncthreads();
    if (s.cues == Cues::kObject) {
#pragma unroll 1
      for (int32_t k = sub; k < s.queries; k += kSubs) at(y, k) = presence_alone(at(y, k));
      return;
    }
    T top = at(y, 0), total = 0;
#pragma unroll 1
    for (int32_t k = sub; k < s.queries; k += kSubs) top = max(top, at(y, k));
    top = combined(top, [](T a, T b) { return max(a, b); });
#pragma unroll 1
    for (int32_t k = sub; k < s.queries; k += kSubs) total += at(y, k) = exp(at(y, k) - top);
    const T inverse = 1 / sum(total);
#pragma unroll 1
    for (int32_t k = sub; k < s.queries; k += kSubs) at(y, k) *= inverse;
  }

  // Computes the mixtures F of class probabilities (K, C1), weighted by the presences.
  __device__ void mix(const T* classes) const {
    __syncthreads();
    constexpr int32_t together = 4 * kSubs;
    const int32_t count = s.mixed(), full = count / together * together;
#pragma unroll 1
    for (int32_t c = 4 * sub; c < full; c += together) mix_some<4>(classes, c);
#pragma unroll 1
    for (int32_t c = full + sub; c < count; c += kSubs) mix_some<1>(classes, c);
    __syncthreads();
  }

  template <int n>
  __device__ void mix_some(const T* classes, int32_t c) const {
    T total[n] = {};
#pragma unroll 1
    for (int32_t k = 0; k < s.queries; ++k) {
      const T presence = at(y, k);
#pragma unroll
      for (int i = 0; i < n; ++i) total[i] += presence * __ldg(classes + k * s.classes + c + i);
    }
#pragma unroll
    for (int i = 0; i < n; ++i) at(y, class_row() + c + i) = total[i];
  }

  // 1 minus the probability of no-object.
  __device__ T is_object(const T* classes, int32_t k) const { return 1 - __ldg(classes + (k + 1) * s.classes - 1); }
};

// The gradient of the tile: g has the rows of y.
template <typename T, int kPixels>
struct TileGradient : Tile<T, kPixels> {
  using Base = Tile<T, kPixels>;
  using Base::at, Base::first, Base::kStride, Base::kSubs, Base::s, Base::sub, Base::y;
  T* g;

  __device__ TileGradient(const FusionShape& shape, unsigned char* memory)
      : Base(shape, memory, 2), g(y + tile_rows(shape) * kStride) {}

  // Loads the image's grad (N, E) into the rows of g; 0 for pixels past the last.
  __device__ void load_grad(const T* grad) const {
    const int32_t width = s.width(), count = this->live_pixels() * width, all = kPixels * width;
    const T* from = grad + int64_t{first} * width;
    const auto place = [&](int32_t i) -> T& { return g[this->row_of(i % width) * kStride + i / width]; };
    const int32_t whole = reinterpret_cast<uintptr_t>(from) % 16 == 0 ? count / kPack<T> * kPack<T> : 0;
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x) * kPack<T>; i < whole; i += kThreads * kPack<T>) {
      T values[kPack<T>];
      load_pack<T>(from + i, values);
#pragma unroll
      for (int j = 0; j < kPack<T>; ++j) place(i + j) = values[j];
    }
#pragma unroll 1
    for (int32_t i = whole + static_cast<int32_t>(threadIdx.x); i < all; i += kThreads)
      place(i) = i < count ? __ldg(from + i) : T(0);
  }

  __device__ T covered_by_objects(const T* classes) const {
    if (s.cues != Cues::kObject) return 0;
    T covered = 0;
#pragma unroll 1
    for (int32_t k = sub; k < s.queries; k += kSubs) covered += at(y, k) * this->is_object(classes, k);
    return this->sum(covered);
  }

  // Entry of the score vector before normalisation.
  __device__ T entry(int32_t e, const T* classes, T covered) const {
    const int32_t row = this->row_of(e);
    if (s.cues != Cues::kObject || row > s.queries) return at(y, row);
    return row == s.queries ? max(1 - covered, T(0)) : at(y, row) * this->is_object(classes, row);
  }

  // Turns g into the gradient of the vector before normalisation.
  __device__ void through_norm(const T* classes, T covered) const {
    T squares = 0, inner = 0;
#pragma unroll 1
    for (int32_t e = sub; e < s.width(); e += kSubs) {
      const T value = entry(e, classes, covered);
      squares += value * value;
      inner += value * at(g, this->row_of(e));
    }
    const T norm = max(sqrt(this->sum(squares)), static_cast<T>(kLeastScoreNorm)), inverse = 1 / norm;
    const T radial = norm > static_cast<T>(kLeastScoreNorm) ? this->sum(inner) * inverse : 0 * this->sum(inner);
#pragma unroll 1
    for (int32_t e = sub; e < s.width(); e += kSubs) {
      T& value = at(g, this->row_of(e));
      value = (value - radial * (entry(e, classes, covered) * inverse)) * inverse;
    }
    __syncthreads();
  }

  // Turns the queries' rows of g into gradients of the presences, then of the resized mask logits (K, N).
  // part (K, C1): for "object", the last column of the class gradient is added to it; anew: true for its first tile.
  __device__ void through_presence(const T* classes, T covered, bool anew, T* part, T* grad_resized) const {
    const bool object = s.cues == Cues::kObject;
    T inner = 0;
#pragma unroll 1
    for (int32_t from = 0; from < s.queries; from += kSubs) {  // all lanes take part in the sums over the pixels
      const int32_t k = from + sub;
      const bool there = k < s.queries;
      T grad = 0, no_object = 0;
      if (there) {
        const T presence = at(y, k);
        if (object) {
          const T grad_owner = at(g, k) - (covered <= 1 ? at(g, s.queries) : T(0));
          grad = grad_owner * this->is_object(classes, k);
          no_object = -grad_owner * presence;
        } else if (s.cues != Cues::kClass) {
          grad = at(g, k);
        }
#pragma unroll 1
        for (int32_t c = 0; c < s.mixed(); ++c)
          grad += at(g, this->class_row() + c) * __ldg(classes + k * s.classes + c);
        inner += grad * presence;
        at(g, k) = grad;
      }
      if (object) {
        no_object = lanes_sum<kPixels>(no_object);
        T* const sum = part + (k + 1) * s.classes - 1;
        if (there && this->pixel == 0) *sum = anew ? no_object : *sum + no_object;
      }
    }
    inner = this->sum(inner);
#pragma unroll 1
    for (int32_t k = sub; k < s.queries && this->live(); k += kSubs) {
      const T presence = at(y, k), grad = at(g, k);
      grad_resized[int64_t{k} * s.pixels() + first + this->pixel] =
          presence * (object ? grad * (1 - presence) : grad - inner);
    }
  }

  // Adds sum_p presence[k, p] g[c, p] to part (K, C1), in squares of n queries and n classes.
  template <int n>
  __device__ void add_class_gradient(bool anew, T* part) const {
    const int32_t count = s.mixed(), across = (count + n - 1) / n, down = (s.queries + n - 1) / n;
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < across * down; i += kThreads) {
      const int32_t k = i / across * n, c = i % across * n;
      T total[n][n] = {};
#pragma unroll 2
      for (int32_t p = 0; p < kPixels; ++p) {
        T left[n], right[n];
#pragma unroll
        for (int j = 0; j < n; ++j) {
          left[j] = y[min(k + j, s.queries - 1) * kStride + p];
          right[j] = g[(this->class_row() + min(c + j, count - 1)) * kStride + p];
        }
#pragma unroll
        for (int j = 0; j < n * n; ++j) total[j / n][j % n] += left[j / n] * right[j % n];
      }
      for (int j = 0; j < n * n; ++j) {
        if (k + j / n >= s.queries || c + j % n >= count) continue;
        T& sum = part[(k + j / n) * s.classes + c + j % n];
        sum = anew ? total[j / n][j % n] : sum + total[j / n][j % n];
      }
    }
  }
};

}  // namespace sskd_fast::cuda
