// Score fusion on the GPU. A block works on a tile of consecutive pixels of an image, whose score vectors lie in shared
// memory, a row an entry: reading mask logits and writing score vectors both go along memory. A thread has one pixel of
// the tile and every kSubs-th row. All sums are made in a fixed order.
#include "cuda/score_fusion.h"

#include "cuda/numbers.h"
#include "cuda/rows.h"
#include "cuda/storage.h"

namespace sskd_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // a multiprocessor, at least: half of the threads it can hold
// Shared memory a block may take where smaller tiles are an alternative, and where they are not.
constexpr int kGoodMemory = 40 * 1024, kMostMemory = 96 * 1024;
constexpr int kSmallestTile = 8;
template <typename T>
constexpr int kSquare = 16 / sizeof(T);  // queries and classes whose products a thread adds up at a time
constexpr int kMostParts = 512;  // of all images together, where there are fewer images

// Rows of the buffers below.
SSKD_HOST_DEVICE int32_t tile_rows(const FusionShape& s) {
  return s.queries + (s.cues == Cues::kObject ? 1 : 0) + s.mixed();
}

// The pixels first .. first + kPixels of an image. y has a row a query (its presence), for "object" one for the background,
// and one a class (the mixture F); pixels past the image's last are there, but nothing is written of them.
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

  // Of what all threads of a pixel bring.
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

  // Mask logits (K, H, W) of the image into the rows of y.
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

  // The logits in y become presences. Every thread touches rows of its own only, once the logits are there.
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

  // The mixtures F of class probabilities (K, C1) by the presences.
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

  // 1 - the probability of no-object.
  __device__ T is_object(const T* classes, int32_t k) const { return 1 - __ldg(classes + (k + 1) * s.classes - 1); }
};

// scores (B, N, E): one tile a block.
template <typename T, int kPixels>
__global__ void __launch_bounds__(kThreads, kBlocks)
    score_fusion_kernel(FusionShape s, const T* masks, const T* all_classes, T* scores) {
  SSKD_DYNAMIC_SHARED(memory);
  Tile<T, kPixels> tile(s, memory, 1);
  const int32_t tiles = (s.pixels() + kPixels - 1) / kPixels, width = s.width();
  const int64_t image = blockIdx.x / tiles;
  tile.first = static_cast<int32_t>(blockIdx.x % tiles) * kPixels;
  const T* classes = all_classes + image * s.queries * s.classes;
  tile.load_logits(masks + image * s.queries * s.in_pixels());
  tile.make_presence();
  tile.mix(classes);
  if (s.cues == Cues::kObject) {
    T covered = 0;
    #pragma unroll 1
    for (int32_t k = tile.sub; k < s.queries; k += tile.kSubs)
      covered += tile.at(tile.y, k) *= tile.is_object(classes, k);
    covered = tile.sum(covered);
    if (tile.sub == 0) tile.at(tile.y, s.queries) = max(1 - covered, T(0));
    __syncthreads();
  }
  T squares = 0;
  #pragma unroll 1
  for (int32_t e = tile.sub; e < width; e += tile.kSubs) {
    const T value = tile.at(tile.y, tile.row_of(e));
    squares += value * value;
  }
  const T inverse = 1 / max(sqrt(tile.sum(squares)), static_cast<T>(kLeastScoreNorm));
  #pragma unroll 1
  for (int32_t e = tile.sub; e < width; e += tile.kSubs) tile.at(tile.y, tile.row_of(e)) *= inverse;
  __syncthreads();
  // The tile's rows of the result lie one after the other.
  T* out = scores + (image * s.pixels() + tile.first) * width;
  const int32_t count = tile.live_pixels() * width;
  const auto value = [&](int32_t i) { return tile.y[tile.row_of(i % width) * tile.kStride + i / width]; };
  const bool packed = reinterpret_cast<uintptr_t>(out) % 16 == 0;
  const int32_t whole = packed ? count / kPack<T> * kPack<T> : 0;
  #pragma unroll 1
  for (int32_t i = static_cast<int32_t>(threadIdx.x) * kPack<T>; i < whole; i += kThreads * kPack<T>) {
    T values[kPack<T>];
#pragma unroll
    for (int j = 0; j < kPack<T>; ++j) values[j] = value(i + j);
    store_pack<T>(out + i, values);
  }
  #pragma unroll 1
  for (int32_t i = whole + static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) out[i] = value(i);
}

// The gradient of the tile: g has the rows of y.
template <typename T, int kPixels>
struct TileGradient : Tile<T, kPixels> {
  using Base = Tile<T, kPixels>;
  using Base::at, Base::first, Base::kStride, Base::kSubs, Base::s, Base::sub, Base::y;
  T* g;

  __device__ TileGradient(const FusionShape& shape, unsigned char* memory)
      : Base(shape, memory, 2), g(y + tile_rows(shape) * kStride) {}

  // grad (N, E) of the image into the rows of g; 0 for pixels past the last.
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

  // Entry of the score vector before it is made a unit vector.
  __device__ T entry(int32_t e, const T* classes, T covered) const {
    const int32_t row = this->row_of(e);
    if (s.cues != Cues::kObject || row > s.queries) return at(y, row);
    return row == s.queries ? max(1 - covered, T(0)) : at(y, row) * this->is_object(classes, row);
  }

  // g becomes the gradient of the vector before it was made a unit vector.
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

  // The rows of g of the queries become the gradients of the presences, then those of the resized mask logits (K, N).
  // part (K, C1): for "object", takes up the last column of the class gradient; anew: of the part's first tile.
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

  // part (K, C1) takes up sum_p presence[k, p] g[c, p], in squares of n queries and n classes.
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

// A part of an image a block: grad_resized (B, K, N) and grad_parts (B, parts, K, C1).
template <typename T, int kPixels>
__global__ void __launch_bounds__(kThreads, kBlocks)
    score_fusion_backward_kernel(FusionShape s, int32_t parts, const T* grad, const T* masks, const T* all_classes,
                                 T* grad_resized, T* grad_parts) {
  SSKD_DYNAMIC_SHARED(memory);
  TileGradient<T, kPixels> tile(s, memory);
  const int64_t image = blockIdx.x / parts;
  const int32_t part = static_cast<int32_t>(blockIdx.x % parts);
  const int32_t tiles = (s.pixels() + kPixels - 1) / kPixels, each = (tiles + parts - 1) / parts;
  const T* classes = all_classes + image * s.queries * s.classes;
  T* sums = grad_parts + int64_t{blockIdx.x} * s.queries * s.classes;
  bool anew = true;
  #pragma unroll 1
  for (int32_t i = part * each; i < min(tiles, (part + 1) * each); ++i, anew = false) {
    tile.first = i * kPixels;
    tile.load_logits(masks + image * s.queries * s.in_pixels());
    tile.load_grad(grad + image * s.pixels() * s.width());
    tile.make_presence();
    tile.mix(classes);
    const T covered = tile.covered_by_objects(classes);
    tile.through_norm(classes, covered);
    tile.through_presence(classes, covered, anew, sums, grad_resized + image * s.queries * s.pixels());
    if (s.queries * s.mixed() <= 4 * kThreads) tile.template add_class_gradient<1>(anew, sums);
    else tile.template add_class_gradient<kSquare<T>>(anew, sums);
    __syncthreads();
  }
  if (anew)  // of no pixel
    #pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < s.queries * s.classes; i += kThreads) sums[i] = 0;
}

// Through the softmax over the classes, a row (b, k) a warp; the parts are added in their order.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    score_fusion_classes_kernel(FusionShape s, int32_t parts, const T* grad_parts, const T* classes, T* grad_classes) {
  const int64_t row = own_row();
  if (row >= s.images * s.queries) return;  // the whole warp
  const int64_t image = row / s.queries, k = row % s.queries, table = int64_t{s.queries} * s.classes;
  const T* first = grad_parts + image * parts * table + k * s.classes;
  const T* p = classes + row * s.classes;
  T* out = grad_classes + row * s.classes;
  const int32_t known = s.mixed() + (s.cues == Cues::kObject ? 1 : 0);
  T inner = 0;
  #pragma unroll 1
  for (int32_t c = own_lane(); c < s.classes; c += kWarp) {
    T total = 0;
    #pragma unroll 1
    for (int32_t part = 0; part < parts && c < known; ++part) total += first[part * table + c];
    inner += total * p[c];
    out[c] = total;
  }
  inner = lanes_sum(inner);
  #pragma unroll 1
  for (int32_t c = own_lane(); c < s.classes; c += kWarp) out[c] = p[c] * (out[c] - inner);
}

// The outputs of a resized axis that may read input cell `index`: a range a little too wide.
__device__ inline int2 readers(int32_t index, int32_t in, int32_t out) {
  const float scale = static_cast<float>(out) / static_cast<float>(in);
  const float low = (static_cast<float>(index) - 0.5f) * scale - 2, high = (static_cast<float>(index) + 1.5f) * scale + 2;
  return make_int2(index == 0 ? 0 : max(0, static_cast<int32_t>(low)),
                   index == in - 1 ? out : min(out, static_cast<int32_t>(high) + 1));
}

template <typename T>
__device__ inline T weight_of(const Source<T>& source, int32_t index) {
  return (source.first == index ? 1 - source.weight : T(0)) + (source.second == index ? source.weight : T(0));
}

// Transpose of the bilinear resizing: grad_masks (B, K, H, W), a cell a thread, from grad_resized (B, K, h, w).
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    score_fusion_resize_kernel(FusionShape s, const T* grad_resized, T* grad_masks) {
  const int64_t cell = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (cell >= s.images * s.queries * s.in_pixels()) return;
  const int64_t plane = cell / s.in_pixels();
  const int32_t row = static_cast<int32_t>(cell % s.in_pixels()) / s.in_width;
  const int32_t column = static_cast<int32_t>(cell % s.in_pixels()) % s.in_width;
  const int2 rows = readers(row, s.in_height, s.out_height), columns = readers(column, s.in_width, s.out_width);
  const T* from = grad_resized + plane * s.pixels();
  T total = 0;
  #pragma unroll 1
  for (int32_t i = rows.x; i < rows.y; ++i) {
    const T by_row = weight_of(bilinear_source<T>(i, s.in_height, s.out_height), row);
    if (by_row == 0) continue;
    T line = 0;
    #pragma unroll 1
    for (int32_t j = columns.x; j < columns.y; ++j)
      line += weight_of(bilinear_source<T>(j, s.in_width, s.out_width), column) *
              __ldg(from + int64_t{i} * s.out_width + j);
    total += by_row * line;
  }
  grad_masks[cell] = total;
}

// f(a tile's pixels as a constant): as many as good use of the shared memory allows.
template <typename T, typename F>
void with_tile(const FusionShape& s, int buffers, F f) {
  if (Tile<T, 32>::bytes(s, buffers) <= kGoodMemory) return f(std::integral_constant<int, 32>());
  if (Tile<T, 16>::bytes(s, buffers) <= kGoodMemory) return f(std::integral_constant<int, 16>());
  return f(std::integral_constant<int, kSmallestTile>());
}

dim3 grid_of(int64_t blocks) { return dim3{static_cast<unsigned int>(blocks), 1, 1}; }

}  // namespace

template <typename T>
int32_t largest_fusion_width() {
  const int32_t numbers = kMostMemory / static_cast<int32_t>(sizeof(T)) - kThreads;
  return numbers / (2 * (kSmallestTile + 1)) - 1;
}

int32_t fusion_parts(const FusionShape& s) {
  const int64_t tiles = (int64_t{s.pixels()} + kSmallestTile - 1) / kSmallestTile;
  return static_cast<int32_t>(std::min(tiles, std::max<int64_t>(1, kMostParts / std::max<int64_t>(s.images, 1))));
}

template <typename T>
void launch_score_fusion(const FusionShape& s, const T* masks, const T* classes, T* scores, Stream stream) {
  with_tile<T>(s, 1, [&](auto pixels) {
    constexpr int kPixels = pixels;
    const int64_t tiles = (s.pixels() + kPixels - 1) / kPixels;
    launch(score_fusion_kernel<T, kPixels>, grid_of(s.images * tiles), dim3{kThreads, 1, 1},
           Tile<T, kPixels>::bytes(s, 1), stream, s, masks, classes, scores);
  });
}

template <typename T>
void launch_score_fusion_backward(const FusionShape& s, const T* grad, const T* masks, const T* classes,
                                  T* grad_resized, T* grad_parts, T* grad_masks, T* grad_classes, Stream stream) {
  const int32_t parts = fusion_parts(s);
  const dim3 block{kThreads, 1, 1};
  with_tile<T>(s, 2, [&](auto pixels) {
    constexpr int kPixels = pixels;
    launch(score_fusion_backward_kernel<T, kPixels>, grid_of(s.images * parts), block, Tile<T, kPixels>::bytes(s, 2),
           stream, s, parts, grad, masks, classes, grad_resized, grad_parts);
  });
  launch(score_fusion_classes_kernel<T>, warps_for(s.images * s.queries), block, 0, stream, s, parts, grad_parts,
         classes, grad_classes);
  if (!s.resized()) return;
  const int64_t cells = s.images * s.queries * s.in_pixels();
  launch(score_fusion_resize_kernel<T>, grid_of((cells + kThreads - 1) / kThreads), block, 0, stream, s, grad_resized,
         grad_masks);
}

#define SSKD_INSTANTIATE(T)                                                                                        \
  template int32_t largest_fusion_width<T>();                                                                      \
  template void launch_score_fusion<T>(const FusionShape&, const T*, const T*, T*, Stream);                        \
  template void launch_score_fusion_backward<T>(const FusionShape&, const T*, const T*, const T*, T*, T*, T*, T*, Stream);
SSKD_INSTANTIATE(float)
SSKD_INSTANTIATE(double)

}  // namespace sskd_fast::cuda
