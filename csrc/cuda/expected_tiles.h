// The tiles of the expected form of pixel contrast: a block holds 64 rows and loops over the columns, 64 at a time. The
// similarities and the weights of a tile are two matrix products, which stay in registers and feed an online
// log-sum-exp. The backward pass computes the tiles again, with the anchors as rows and with the candidates as rows. So
// one block sums each gradient in a fixed order. While a chunk of the operands is multiplied, the next one is fetched.
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

// Results of a launch: the sums of the forward pass, or gradients of the rows.
struct Sums {};
struct EmbeddingGradients {};
struct ScoreGradients {};
template <typename Result>
constexpr bool kIsSums = std::is_same_v<Result, Sums>;
template <typename Result>
constexpr bool kIsScores = std::is_same_v<Result, ScoreGradients>;

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

// A thread's share of a row: the sums over its columns or, for scores, the sum of its slopes.
template <typename S, typename Result>
using Share = std::conditional_t<kIsSums<Result>, OnlineSum<Compute<S>>, Compute<S>>;

template <typename Result>
constexpr bool kHasShares = kIsSums<Result> || kIsScores<Result>;

// Parts of the chunks of embeddings, and of the operand of the factors.
template <typename S, typename Result>
constexpr int kSliceParts = kIsScores<Result> ? kScoreParts<S> : kParts<S>;

constexpr int larger(int a, int b) { return a > b ? a : b; }

// The shared memory of a block: two chunks, one being multiplied and one being fetched. Then the entries of the rows
// and of two tiles of columns; the factors; the shares of all threads.
template <typename S, typename Result>
struct Shared {
  using P = Product<S>;
  static constexpr int kSide = kTile * P::kDepthStride;
  static constexpr int kProducts = 2 * kScoreParts<S> * kSide;  // at least as much as for embeddings
  static constexpr int kSliceChunk = kIsSums<Result> ? 0 : kSliceParts<S, Result> * kFactorDepth * P::kSliceStride;
  static constexpr int kFactors = kIsSums<Result> ? 8 : kSliceParts<S, Result> * kTile * P::kFactorStride;

  alignas(16) Part<S> chunk[2][larger(kProducts, kSliceChunk)];
  Entry<Compute<S>> rows[kTile], columns[2][kTile];
  alignas(16) Part<S> factors[kFactors];
  Share<S, Result> shares[kHasShares<Result> ? kTile : 1][P::kSharers];
};

// Copies `count` rows from `first` on, `columns` columns from `column` on, of each part to shared memory; zeros outside.
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

// The steps through the tiles of a block: chunks of embeddings and chunks of scores. If there are factors, chunks of
// the columns that they multiply follow.
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

  // Starts to fetch step `step` of a tile into buffer `to`.
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

// Adds a pair, from the products of its embeddings and of its centred scores. Returns the factor of the column in the
// gradient of the row.
template <typename Result, typename S, typename T = Compute<S>>
__device__ inline T take_up(const Tiles<S>& tiles, const Entry<T>& row, const Entry<T>& column, T logit, T product,
                            Share<S, Result>& share) {
  const bool in_scope = tiles.scope == Scope::kAll || (row.group == column.group) == (tiles.scope == Scope::kSame);
  // The weight is a multiple of this.
  const T given = in_scope ? row.weight * column.weight : T(0);
  const T distance = row.half + column.half - product;
  const T weight = given * (tiles.score_width == 0 ? T(1) : distance > 0 ? distance : T(0));
  // The same bits whether the anchor or the candidate is the row.
  logit *= row.inverse * column.inverse;
  if constexpr (kIsSums<Result>) {
    share.add(logit, weight);
    return 0;
  } else {
    const T likelihood = weight > 0 ? std::exp(logit - (row.log_mass + column.log_mass)) : T(0);
    const T pulled = row.pulled * column.pulled;
    if constexpr (!kIsScores<Result>) return weight * likelihood * pulled * column.inverse;
    const T slope = (likelihood - (row.inverse_sum + column.inverse_sum)) * pulled * given;
    share += slope;
    return slope;
  }
}

// out (3, splits, rows): the threads' shares of each row, combined.
template <typename S>
__device__ inline void write_sums(const Steps<S, Sums>& steps, Compute<S>* out) {
  const int64_t row = steps.first_row + threadIdx.x, count = steps.tiles.rows.count;
  if (threadIdx.x >= kTile || row >= count) return;
  OnlineSum<Compute<S>> sum;
  for (int k = 0; k < Product<S>::kSharers; ++k) sum.add(steps.shared.shares[threadIdx.x][k]);
  const int64_t stride = steps.tiles.splits * count, place = blockIdx.y * count + row;
  out[place] = sum.top, out[stride + place] = sum.mass, out[2 * stride + place] = sum.total;
}

// out (splits, rows, width): the gradients that the thread has.
template <typename S, typename Result>
__device__ inline void write_gradients(const Steps<S, Result>& steps, typename Product<S>::Slice& gradients,
                                       int32_t width, Compute<S>* out) {
  using P = Product<S>;
  using T = Compute<S>;
  const Side<S>& rows = steps.tiles.rows;
#pragma unroll
  for (int i = 0; i < P::kOwnRows; ++i) {
    const int64_t row = steps.first_row + P::row(i);
    if (row >= rows.count) continue;
    T slopes = 0;
    if constexpr (kIsScores<Result>)
      for (int k = 0; k < P::kSharers; ++k) slopes += steps.shared.shares[P::row(i)][k];
#pragma unroll
    for (int j = 0; j < P::kSliceColumns; ++j) {
      const int32_t column = steps.slice + P::slice_column(j);
      if (column >= width) continue;
      T value = gradients.at(i, j);
      if constexpr (kIsScores<Result>) {
        // Gradient of half the squared distance: the slopes times the row's scores minus those of the columns.
        const int32_t stride = steps.tiles.score_width;
        const Part<S>* own = rows.score + row * stride + column;
        value = slopes * P::template joined<kScoreParts<S>>(own, rows.count * stride) - value;
      }
      out[(blockIdx.y * rows.count + row) * width + column] = value;
    }
  }
}

// Minimum number of blocks per multiprocessor: gradients and double-precision numbers fill most of its registers.
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
  const int embeddings = steps.embeddings(), products = embeddings + steps.scores(), a_tile = steps.a_tile();
  Share<S, Result> shares[P::kOwnRows] = {};
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
        for (int j = 0; j < P::kOwnColumns; ++j)
          logits.at(i, j) = take_up<Result>(tiles, shared.rows[P::row(i)], columns[P::column(j)], logits.at(i, j),
                                            scores.at(i, j), shares[i]);
      if constexpr (!kIsSums<Result>) P::template put<kSliceParts<S, Result>>(shared.factors, logits);
    }
  }

  if constexpr (kHasShares<Result>) {
#pragma unroll
    for (int i = 0; i < P::kOwnRows; ++i) shared.shares[P::row(i)][P::sharer()] = shares[i];
    __syncthreads();
  }
  if constexpr (kIsSums<Result>)
    write_sums(steps, out);
  else
    write_gradients(steps, gradients, out_width, out);
}

}  // namespace sskd_fast::cuda
