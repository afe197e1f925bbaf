// Score fusion on the GPU. A block processes a tile of consecutive pixels of an image. Their score vectors are in shared
// memory, one row for each entry, so both reads of mask logits and writes of score vectors are contiguous. A thread has
// one pixel of the tile and every kSubs-th row. All sums are in a fixed order.
#include "cuda/score_fusion.h"

#include "cuda/fusion_tile.h"

namespace sskd_fast::cuda {
namespace {

constexpr int kBlocks = 4;  // minimum per multiprocessor: half occupancy
// Limits of shared memory per block: if smaller tiles are an alternative, and if they are not.
constexpr int kGoodMemory = 40 * 1024, kMostMemory = 96 * 1024;
constexpr int kSmallestTile = 8;
constexpr int kMostParts = 512;  // in all images together, if there are fewer images

// scores (B, N, E): one tile for each block.
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
  // The tile's rows of the result are consecutive.
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

// One part of an image for each block: grad_resized (B, K, N) and grad_parts (B, parts, K, C1).
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
  if (anew)  // the part has no pixel
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < s.queries * s.classes; i += kThreads) sums[i] = 0;
}

// Gradient through the softmax over the classes, one warp for each row (b, k); the parts are added in order.
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

// The outputs of a resized axis that may read input cell `index`; the range is slightly too wide.
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

// Transpose of the bilinear resizing: grad_masks (B, K, H, W), one thread per cell, from grad_resized (B, K, h, w).
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

// Calls f with the number of pixels per tile as a constant: as many as good use of shared memory allows.
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
