// The expected form of pixel contrast: a block goes with 64 rows over the columns, 64 at a time. The similarities and
// the weights of a tile are two products of matrices, which stay in registers; an online log-sum-exp takes them up. The
// backward pass computes the tiles again, with the anchors as rows and with the candidates as rows, so that every
// gradient is summed by one block in one order. While a chunk of the operands is multiplied, the next one is fetched.
#include "cuda/expected_pixel_contrast.h"

#include <cmath>

#include "cuda/rows.h"
#include "cuda/tile_products.h"

namespace sskd_fast::cuda {
namespace {

template <typename S>
using Product = std::conditional_t<std::is_same_v<S, double>, Fma, TensorCores>;

// What the blocks of a launch compute.
enum class Result { kSums, kEmbeddings, kScores };

// Parts of the chunks of embeddings and of what is multiplied by the factors.
template <typename S, Result result>
constexpr int kSliceParts = result == Result::kScores ? kScoreParts<S> : kParts<S>;

constexpr int larger(int a, int b) { return a > b ? a : b; }

// The shared memory of a block: two chunks, one that is multiplied and one that is fetched; the entries of
// the rows and of two tiles of columns; the factors.
template <typename S, Result result>
struct Shared {
  using P = Product<S>;
  static constexpr int kSide = kTile * P::kDepthStride;
  static constexpr int kProducts = 2 * kScoreParts<S> * kSide;  // at least as much as for embeddings
  static constexpr int kSliceChunk =
      result == Result::kSums ? 0 : kSliceParts<S, result> * kFactorDepth * P::kSliceStride;
  static constexpr int kFactors = result == Result::kSums ? 8 : kSliceParts<S, result> * kTile * P::kFactorStride;

  alignas(16) Part<S> chunk[2][larger(kProducts, kSliceChunk)];
  Entry<Compute<S>> rows[kTile], columns[2][kTile];
  alignas(16) Part<S> factors[kFactors];
  Compute<S> sums[3][result == Result::kEmbeddings ? 1 : kTile][P::kSharers];
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
template <typename S, Result result>
struct Steps {
  using P = Product<S>;
  const Tiles<S>& tiles;
  Shared<S, result>& shared;
  int64_t first_row, first_tile, last_tile;
  int32_t slice;  // first column of the result that the block computes

  __device__ int embeddings() const { return tiles.width / P::kDepth; }
  __device__ int scores() const { return tiles.score_width / P::kDepth; }
  __device__ int a_tile() const {
    return embeddings() + scores() + (result == Result::kSums ? 0 : kTile / kFactorDepth);
  }
  __device__ int32_t result_width() const { return result == Result::kScores ? tiles.score_width : tiles.width; }
  __device__ const Part<S>* result_columns() const {
    return result == Result::kScores ? tiles.columns.score : tiles.columns.embedding;
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
    } else if constexpr (result != Result::kSums) {
      const int64_t first = tile * kTile + (step - embeddings() - scores()) * kFactorDepth;
      fetch_rows<kSliceParts<S, result>, kFactorDepth, P::kSlice, P::kSliceStride>(
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
template <typename S, Result result>
constexpr int kBlocks = result == Result::kSums && !std::is_same_v<S, double> ? 2 : 1;

template <typename S, Result result>
__global__ void __launch_bounds__(kTileThreads, (kBlocks<S, result>))
expected_tiles_kernel(Tiles<S> tiles, int32_t out_width, Compute<S>* out) {
  using P = Product<S>;
  using T = Compute<S>;
  SSKD_DYNAMIC_SHARED(bytes);
  Shared<S, result>& shared = *reinterpret_cast<Shared<S, result>*>(bytes);
  const int64_t column_tiles = (tiles.columns.count + kTile - 1) / kTile, split = blockIdx.y;
  const Steps<S, result> steps{tiles,
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
      else if constexpr (result != Result::kSums)
        P::template accumulate<kSliceParts<S, result>>(shared.factors, step - products, chunk,
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
          if constexpr (result == Result::kSums) {
            sums[i].add(logit, w.weight);
          } else {
            const T likelihood = w.weight > 0 ? std::exp(logit - (row.log_mass + column.log_mass)) : T(0);
            const T pulled = row.pulled * column.pulled;
            if constexpr (result == Result::kEmbeddings) {
              logits.at(i, j) = w.weight * likelihood * pulled * column.inverse;
            } else {
              const T slope = (likelihood - (row.inverse_sum + column.inverse_sum)) * pulled * w.factor;
              slope_sums[i] += slope;
              logits.at(i, j) = slope;
            }
          }
        }
      if constexpr (result != Result::kSums) P::template put<kSliceParts<S, result>>(shared.factors, logits);
    }
  }

  if constexpr (result != Result::kEmbeddings) {
#pragma unroll
    for (int i = 0; i < P::kOwnRows; ++i) {
      shared.sums[0][P::row(i)][P::sharer()] = result == Result::kSums ? sums[i].top : slope_sums[i];
      shared.sums[1][P::row(i)][P::sharer()] = sums[i].mass;
      shared.sums[2][P::row(i)][P::sharer()] = sums[i].total;
    }
    __syncthreads();
  }
  if constexpr (result == Result::kSums) {
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
      if constexpr (result == Result::kScores)
        for (int k = 0; k < P::kSharers; ++k) slope_sum += shared.sums[0][P::row(i)][k];
#pragma unroll
      for (int j = 0; j < P::kSliceColumns; ++j) {
        const int32_t column = steps.slice + P::slice_column(j);
        if (column >= out_width) continue;
        T value = gradients.at(i, j);
        if constexpr (result == Result::kScores) {
          const Part<S>* own = tiles.rows.score + row * tiles.score_width + column;
          value = slope_sum * P::template joined<kScoreParts<S>>(own, tiles.rows.count * tiles.score_width) - value;
        }
        out[(split * tiles.rows.count + row) * out_width + column] = value;
      }
    }
  }
}

// The parts of the rows of one side, and its entries.
template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks) expected_side_kernel(SideInputs<S> x, SideOutputs<S> out) {
  using T = Compute<S>;
  using P = Product<S>;
  const int64_t row = own_row(), count = x.rows.count;
  if (row >= count) return;
  for (int32_t d = own_lane(); d < out.width; d += kWarp) {
    Part<S> parts[kParts<S>];
    P::split(d < x.rows.width ? widen(x.rows.row(row)[d]) : T(0), parts);
#pragma unroll
    for (int p = 0; p < kParts<S>; ++p) out.embedding[(p * count + row) * out.width + d] = parts[p];
  }
  T squares = 0;
  for (int32_t e = own_lane(); e < out.score_width; e += kWarp) {
    Part<S> parts[kScoreParts<S>];
    const T score = e < x.score_width ? x.score[row * x.score_width + e] - x.centre[e] : T(0);
    squares += score * score;
    P::split(score, parts);
#pragma unroll
    for (int p = 0; p < kScoreParts<S>; ++p) out.score[(p * count + row) * out.score_width + e] = parts[p];
  }
  squares = lanes_sum(squares);
  if (own_lane() != 0) return;
  Entry<T> entry{};
  entry.inverse = x.rows.inverse[row];
  if (x.temperature != nullptr) entry.inverse /= static_cast<T>(*x.temperature);
  entry.half = squares / 2;
  entry.weight = x.weight == nullptr ? T(1) : x.weight[row];
  entry.group = x.group == nullptr ? 0 : x.group[row];
  entry.pulled = 1;
  if (x.weight_sum != nullptr) {
    // Without a candidate in scope nothing pulls.
    const bool any = x.weight_sum[row] > 0;
    entry.log_mass = any ? x.log_mass[row] : T(0);
    entry.pulled = any ? x.grad[row] * x.pull[row] : T(0);
    entry.inverse_sum = any ? 1 / x.weight_sum[row] : T(0);
  }
  out.entries[row] = entry;
}

template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks) expected_loss_kernel(ExpectedLoss<S> x) {
  using T = Compute<S>;
  const int64_t anchor = own_row(), count = x.anchors.count;
  if (anchor >= count) return;
  const T product = warp_dot<S>(x.anchors.row(anchor), x.positives.row(anchor), x.anchors.packs());
  if (own_lane() != 0) return;
  const T scale = 1 / static_cast<T>(*x.temperature);
  const T positive = product * (x.anchors.inverse[anchor] * scale) * x.positives.inverse[anchor];
  OnlineSum<T> sum;
  for (int64_t split = 0; split < x.splits; ++split) {
    OnlineSum<T> part;
    part.top = x.sums[split * count + anchor];
    part.mass = x.sums[(x.splits + split) * count + anchor];
    part.total = x.sums[(2 * x.splits + split) * count + anchor];
    sum.add(part);
  }
  const T log_mass = std::log(sum.mass) + sum.top;
  const T gap = std::log(static_cast<T>(x.num_negatives)) + log_mass - std::log(sum.total) - positive;
  const AnchorLoss<T> result = expected_loss(sum.total > 0 ? gap : T(-INFINITY));
  x.loss[anchor] = result.loss, x.pull[anchor] = result.pull;
  x.log_mass[anchor] = log_mass, x.weight_sum[anchor] = sum.total;
}

template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
expected_rows_kernel(Embeddings<S> rows, const Compute<S>* sums, bool normalize, S* grad) {
  const int64_t i = own_row();
  if (i >= rows.count) return;
  const auto gradient = [&](int32_t pack, Compute<S>(&g)[kPack<S>]) {
    load_sums<S>(sums + i * rows.width + int64_t{pack} * kPack<S>, g);
  };
  write_row_gradient<S>(gradient, rows.row(i), rows.inverse[i], normalize, rows.packs(), grad + i * rows.width);
}

template <Result result, typename S>
void launch_tiles(const Tiles<S>& tiles, int32_t out_width, Compute<S>* out, Stream stream) {
  const int64_t row_tiles = (tiles.rows.count + kTile - 1) / kTile;
  const int32_t slices = result == Result::kSums ? 1 : (out_width + Product<S>::kSlice - 1) / Product<S>::kSlice;
  if (row_tiles == 0 || slices == 0) return;
  const dim3 grid{static_cast<unsigned int>(row_tiles), static_cast<unsigned int>(tiles.splits),
                  static_cast<unsigned int>(slices)};
  launch(expected_tiles_kernel<S, result>, grid, dim3{kTileThreads, 1, 1}, sizeof(Shared<S, result>), stream, tiles,
         out_width, out);
}

}  // namespace

template <typename S>
void launch_expected_side(const SideInputs<S>& in, const SideOutputs<S>& out, Stream stream) {
  if (in.rows.count == 0) return;
  launch(expected_side_kernel<S>, warps_for(in.rows.count), dim3{kRowThreads, 1, 1}, 0, stream, in, out);
}

template <typename S>
void launch_expected_sums(const Tiles<S>& tiles, Compute<S>* sums, Stream stream) {
  launch_tiles<Result::kSums>(tiles, 0, sums, stream);
}

template <typename S>
void launch_expected_loss(const ExpectedLoss<S>& x, Stream stream) {
  if (x.anchors.count == 0) return;
  launch(expected_loss_kernel<S>, warps_for(x.anchors.count), dim3{kRowThreads, 1, 1}, 0, stream, x);
}

template <typename S>
void launch_expected_gradients(const Tiles<S>& tiles, bool of_scores, int32_t out_width, Compute<S>* out,
                               Stream stream) {
  if (of_scores)
    launch_tiles<Result::kScores>(tiles, out_width, out, stream);
  else
    launch_tiles<Result::kEmbeddings>(tiles, out_width, out, stream);
}

template <typename S>
void launch_expected_rows(const Embeddings<S>& rows, const Compute<S>* sums, bool normalize, S* grad, Stream stream) {
  if (rows.count == 0) return;
  launch(expected_rows_kernel<S>, warps_for(rows.count), dim3{kRowThreads, 1, 1}, 0, stream, rows, sums,
         normalize, grad);
}

#define SSKD_INSTANTIATE(S)                                                                               \
  template void launch_expected_side<S>(const SideInputs<S>&, const SideOutputs<S>&, Stream);             \
  template void launch_expected_sums<S>(const Tiles<S>&, Compute<S>*, Stream);                            \
  template void launch_expected_loss<S>(const ExpectedLoss<S>&, Stream);                                  \
  template void launch_expected_gradients<S>(const Tiles<S>&, bool, int32_t, Compute<S>*, Stream);        \
  template void launch_expected_rows<S>(const Embeddings<S>&, const Compute<S>*, bool, S*, Stream);
SSKD_INSTANTIATE(float)
SSKD_INSTANTIATE(double)
SSKD_INSTANTIATE(BFloat16)
SSKD_INSTANTIATE(Half)
#undef SSKD_INSTANTIATE

}  // namespace sskd_fast::cuda
