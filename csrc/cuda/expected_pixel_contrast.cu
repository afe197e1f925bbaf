// The expected form of pixel contrast: the sides of the tiles, built from embeddings and scores, and the tiles, in
// expected_tiles.h. Then comes the reduction of their results, one warp for each row.
#include "cuda/expected_pixel_contrast.h"

#include <cmath>

#include "cuda/expected_tiles.h"
#include "cuda/rows.h"

namespace sskd_fast::cuda {
namespace {

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
    // Without a candidate in scope, pull is 0.
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

template <typename Result, typename S>
void launch_tiles(const Tiles<S>& tiles, int32_t out_width, Compute<S>* out, Stream stream) {
  const int64_t row_tiles = (tiles.rows.count + kTile - 1) / kTile;
  const int32_t slices = kIsSums<Result> ? 1 : (out_width + Product<S>::kSlice - 1) / Product<S>::kSlice;
  if (row_tiles == 0 || slices == 0) return;
  const dim3 grid{static_cast<unsigned int>(row_tiles), static_cast<unsigned int>(tiles.splits),
                  static_cast<unsigned int>(slices)};
  launch(expected_tiles_kernel<S, Result>, grid, dim3{kTileThreads, 1, 1}, sizeof(Shared<S, Result>), stream, tiles,
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
  launch_tiles<Sums>(tiles, 0, sums, stream);
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
    launch_tiles<ScoreGradients>(tiles, out_width, out, stream);
  else
    launch_tiles<EmbeddingGradients>(tiles, out_width, out, stream);
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
