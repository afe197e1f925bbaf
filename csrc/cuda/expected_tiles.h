// The tiles of the expected form of pixel contrast: a block goes with 64 rows over the columns, 64 at a time. The
// similarities and the weights of a tile are two products of matrices, which stay in registers; an online log-sum-exp
// takes them up. The backward pass computes the tiles again, with the anchors as rows and with the candidates as rows, so
// that every gradient is summed by one block in one order. While a chunk of the operands is multiplied, the next one is
// fetched.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/async_copy.h"
#include "cuda/device.h"
#include "cuda/expected_pixel_contrast.h"
#include "cuda/tile_products.h"

namespace sskd_fast::cuda {

template <typename S>
using Product = std::conditional_t<std::is_same_v<S, double>, Fma, TensorCores>;

// What the blocks of a launch compute: the sums of the forward pass, or gradients of the rows.
struct Sums {};
struct EmbeddingGradients {};
struct ScoreGradients {};
template <typename Result>
constexpr bool kIsSums = std::is_same_v<Result, Sums>;
template <typename Result>
constexpr bool kIsScores = std::is_same_v<Result, ScoreGradients>;

// Parts of the chunks of embeddings and of what is multiplied by the factors.
template <typename S, typename Result>
constexpr int kSliceParts = kIsScores<Result> ? kScoreParts<S> : kParts<S>;

constexpr int larger(int a, int b) { return a > b ? a : b; }

// The shared memory of a block: two chunks, one that is multiplied and one that is fetched; the entries of
// the rows and of two tiles of columns; the factors.
template <typename S, typename Result>
struct Shared {
  using P = Product<S>;
  static constexpr int kSide = kTile * P::kDepthStride;
  static constexpr int kProducts = 2 * kScoreParts<S> * kSide;  // at least as much as for embeddings
  static constexpr int kSliceChunk =
      kIsSums<Result> ? 0 : kSliceParts<S, Result> * kFactorDepth * P::kSliceStride;
  static constexpr int kFactors = kIsSums<Result> ? 8 : kSliceParts<S, Result> * kTile * P::kFactorStride;

  alignas(16) Part<S> chunk[2][larger(kProducts, kSliceChunk)];
  Entry<Compute<S>> rows[kTile], columns[2][kTile];
  alignas(16) Part<S> factors[kFactors];
  Compute<S> sums[3][!kIsSums<Result> && !kIsScores<Result> ? 1 : kTile][P::kSharers];
};

// `count` rows from `first` on, `columns` of them from `column` on, of each part: to shared memory, zeros where there
// are none.
template <int parts, int count, int columns, int stride, typename E>
__device__ inline void fetch_rows(const E* x, int64_t rows, int32_t width, int64_t first, int32_t column, E* out) {
  constexpr int kUnit = 16 / static_cast<int>(sizeof(E)), kUnits = columns / kUnit;
#pragma unroll 1
  for (int u = forgotten_thread(); u < parts * count * kUnits; u += kTileThreads) {
    const int part = u / (count * kUnits), row = u / kUnits % count, unit = u % kUnits * kUnit;
    const bool there = first + row < rows && column + unit < width;
    const int64_t from = there ? (part * rows + first + row) * width + column + unit : 0;
    copy_async(out + (part * count + row) * stride + unit, x + from, there);
  }
}

template <typename S>
__device__ inline void fetch_entries(const Side<S>& side, int64_t first, Entry<Compute<S>>* out) {
  constexpr int kUnits = sizeof(Entry<Compute<S>>) / 16;
#pragma unroll 1
  for (int u = forgotten_thread(); u < kTile * kUnits; u += kTileThreads) {
    const bool there = first + u / kUnits < side.count;
    const char* from = reinterpret_cast<const char*>(side.entries + (there ? first + u / kUnits : 0));
    copy_async(reinterpret_cast<char*>(out) + u * 16, from + u % kUnits * 16, there);
  }
}

// The steps through the tiles of a block: chunks of embeddings, chunks of scores and, where there are factors, chunks of
// the columns that they multiply.
template <typename S, typename Result>
struct Steps {
  using P = Product<S>;
  const Tiles<S>& tiles;
  Shared<S, Result>& shared;
  int64_t first_row, first_tile, last_tile;
  int32_t slice;  // first column of the result that the block computes

  __device__ int embeddings() const { return tiles.width / P::kDepth; }
  __device__ int scores() const { return tiles.score_width / P::kDepth; }
  __device__ int a_tile() const {
    return embeddings() + scores() + (kIsSums<Result> ? 0 : kTile / kFactorDepth);
  }
  __device__ int32_t result_width() const { return kIsScores<Result> ? tiles.score_width : tiles.width; }
  __device__ const Part<S>* result_columns() const {
    return kIsScores<Result> ? tiles.columns.score : tiles.columns.embedding;
  }

  template <int parts>
  __device__ void fetch_sides(const Part<S>* rows, const Part<S>* columns, int32_t width, int64_t tile, int32_t depth,
                              Part<S>* out) const {
    fetch_rows<parts, kTile, P::kDepth, P::kDepthStride>(rows, tiles.rows.count, width, first_row, depth, out);
    fetch_rows<parts, kTile, P::kDepth, P::kDepthStride>(columns, tiles.columns.count, width, tile * kTile, depth,
                                                         out + parts * kTile * P::kDepthStride);
  }

  // Begins to fetch step `step` of a tile into buffer `to`.
  __device__ void fetch(int64_t tile, int step, int to) const {
    Part<S>* out = shared.chunk[to];
    if (step == 0) fetch_entries(tiles.columns, tile * kTile, shared.columns[tile % 2]);
    if (step < embeddings()) {
      fetch_sides<kParts<S>>(tiles.rows.embedding, tiles.columns.embedding, tiles.width, tile, step * P::kDepth, out);
    } else if (step < embeddings() + scores()) {
      fetch_sides<kScoreParts<S>>(tiles.rows.score, tiles.columns.score, tiles.score_width, tile,
                                  (step - embeddings()) * P::kDepth, out);
    } else if constexpr (!kIsSums<Result>) {
      const int64_t first = tile * kTile + (step - embeddings() - scores()) * kFactorDepth;
      fetch_rows<kSliceParts<S, Result>, kFactorDepth, P::kSlice, P::kSliceStride>(
          result_columns(), tiles.columns.count, result_width(), first, slice, out);
    }
  }
};

// The weight of a pair from the product of its centred scores, and what it is a multiple of.
template <typename T>
struct Weight {
  T weight, factor;
};
template <typename T>
__device__ inline Weight<T> weight_of(const Entry<T>& row, const Entry<T>& column, T product, bool scored, Scope scope) {
  const bool in_scope = scope == Scope::kAll || (row.group == column.group) == (scope == Scope::kSame);
  const T factor = in_scope ? row.weight * column.weight : T(0);
  T distance = row.half + column.half - product;
  distance = scored ? (distance > 0 ? distance : T(0)) : T(1);
  return {distance * factor, factor};
}

// Online log-sum-exp of the logits of one row.
template <typename T>
struct OnlineSum {
  T top = -INFINITY, mass = 0, total = 0;
  __device__ void add(T logit, T weight) {
    if (!(weight > 0)) return;
    if (logit > top) {
      mass *= std::exp(top - logit);
      top = logit;
    }
    mass += weight * std::exp(logit - top);
    total += weight;
  }
  __device__ void add(const OnlineSum& other) {
    if (!(other.total > 0)) return;
    const T higher = other.top > top ? other.top : top;
    mass = mass * std::exp(top - higher) + other.mass * std::exp(other.top - higher);
    top = higher;
    total += other.total;
  }
};

// Blocks that share a multiprocessor at least: gradients, and numbers in double precision, fill most of its registers.
template <typename S, typename Result>
constexpr int kBlocks = kIsSums<Result> && !std::is_same_v<S, double> ? 2 : 1;

template <typename S, typename Result>
__global__ void __launch_bounds__(kTileThreads, (kBlocks<S, Result>))
expected_tiles_kernel(Tiles<S> tiles, int32_t out_width, Compute<S>* out) {
  using P = Product<S>;
  using T = Compute<S>;
  SSKD_DYNAMIC_SHARED(bytes);
  Shared<S, Result>& shared = *reinterpret_cast<Shared<S, Result>*>(bytes);
  const int64_t column_tiles = (tiles.columns.count + kTile - 1) / kTile, split = blockIdx.y;
  const Steps<S, Result> steps{tiles,
                               shared,
                               int64_t{blockIdx.x} * kTile,
                               column_tiles * split / tiles.splits,
                               column_tiles * (split + 1) / tiles.splits,
                               static_cast<int32_t>(blockIdx.z) * P::kSlice};
  const bool scored = tiles.score_width > 0;
  const int embeddings = steps.embeddings(), products = embeddings + steps.scores(), a_tile = steps.a_tile();

  OnlineSum<T> sums[P::kOwnRows];
  T slope_sums[P::kOwnRows] = {};
  typename P::Slice gradients;

  int buffer = 0;
  fetch_entries(tiles.rows, steps.first_row, shared.rows);
  if (steps.first_tile < steps.last_tile) steps.fetch(steps.first_tile, 0, buffer);
  for (int64_t tile = steps.first_tile; tile < steps.last_tile; ++tile) {
    typename P::Tile logits, scores;
#pragma unroll 1
    for (int step = 0; step < a_tile; ++step) {
      wait_for_copies();
      __syncthreads();
      const Part<S>* chunk = shared.chunk[buffer];
      buffer ^= 1;
      if (step + 1 < a_tile)
        steps.fetch(tile, step + 1, buffer);
      else if (tile + 1 < steps.last_tile)
        steps.fetch(tile + 1, 0, buffer);
      if (step < embeddings)
        P::template multiply<kParts<S>>(chunk, chunk + kParts<S> * kTile * P::kDepthStride, logits);
      else if (step < products)
        P::template multiply<kScoreParts<S>>(chunk, chunk + kScoreParts<S> * kTile * P::kDepthStride, scores);
      else if constexpr (!kIsSums<Result>)
        P::template accumulate<kSliceParts<S, Result>>(shared.factors, step - products, chunk,
                                                       steps.result_width() - steps.slice, gradients);
      if (step + 1 != products) continue;
      const Entry<T>* columns = shared.columns[tile % 2];
#pragma unroll
      for (int i = 0; i < P::kOwnRows; ++i)
#pragma unroll
        for (int j = 0; j < P::kOwnColumns; ++j) {
          const Entry<T>& row = shared.rows[P::row(i)];
          const Entry<T>& column = columns[P::column(j)];
          const Weight<T> w = weight_of(row, column, scores.at(i, j), scored, tiles.scope);
          const T logit = logits.at(i, j) * (row.inverse * column.inverse);
          if constexpr (kIsSums<Result>) {
            sums[i].add(logit, w.weight);
          } else {
            const T likelihood = w.weight > 0 ? std::exp(logit - (row.log_mass + column.log_mass)) : T(0);
            const T pulled = row.pulled * column.pulled;
            if constexpr (!kIsSums<Result> && !kIsScores<Result>) {
              logits.at(i, j) = w.weight * likelihood * pulled * column.inverse;
            } else {
              const T slope = (likelihood - (row.inverse_sum + column.inverse_sum)) * pulled * w.factor;
              slope_sums[i] += slope;
              logits.at(i, j) = slope;
            }
          }
        }
      if constexpr (!kIsSums<Result>) P::template put<kSliceParts<S, Result>>(shared.factors, logits);
    }
  }

  if constexpr (kIsSums<Result> || kIsScores<Result>) {
#pragma unroll
    for (int i = 0; i < P::kOwnRows; ++i) {
      shared.sums[0][P::row(i)][P::sharer()] = kIsSums<Result> ? sums[i].top : slope_sums[i];
      shared.sums[1][P::row(i)][P::sharer()] = sums[i].mass;
      shared.sums[2][P::row(i)][P::sharer()] = sums[i].total;
    }
    __syncthreads();
  }
  if constexpr (kIsSums<Result>) {
    const int64_t row = steps.first_row + threadIdx.x;
    if (threadIdx.x >= kTile || row >= tiles.rows.count) return;
    OnlineSum<T> sum;
    for (int k = 0; k < P::kSharers; ++k) {
      OnlineSum<T> part;
      part.top = shared.sums[0][threadIdx.x][k];
      part.mass = shared.sums[1][threadIdx.x][k];
      part.total = shared.sums[2][threadIdx.x][k];
      sum.add(part);
    }
    const int64_t stride = tiles.splits * tiles.rows.count, place = split * tiles.rows.count + row;
    out[place] = sum.top, out[stride + place] = sum.mass, out[2 * stride + place] = sum.total;
  } else {
#pragma unroll
    for (int i = 0; i < P::kOwnRows; ++i) {
      const int64_t row = steps.first_row + P::row(i);
      if (row >= tiles.rows.count) continue;
      T slope_sum = 0;
      if constexpr (kIsScores<Result>)
        for (int k = 0; k < P::kSharers; ++k) slope_sum += shared.sums[0][P::row(i)][k];
#pragma unroll
      for (int j = 0; j < P::kSliceColumns; ++j) {
        const int32_t column = steps.slice + P::slice_column(j);
        if (column >= out_width) continue;
        T value = gradients.at(i, j);
        if constexpr (kIsScores<Result>) {
          const Part<S>* own = tiles.rows.score + row * tiles.score_width + column;
          value = slope_sum * P::template joined<kScoreParts<S>>(own, tiles.rows.count * tiles.score_width) - value;
        }
        out[(split * tiles.rows.count + row) * out_width + column] = value;
      }
    }
  }
}

}  // namespace sskd_fast::cuda
