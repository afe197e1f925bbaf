// Pixel contrast: one warp for each anchor reads the rows of its negatives once, for the online log-sum-exp of their
// logits and for their weighted sum. The gradient of the candidates goes through an inverted index, one warp for each
// candidate. There are no atomics, so the bits are the same in every run.
#include "cuda/pixel_contrast.h"

#include <cmath>

#include "cuda/row_parts.h"

namespace sskd_fast::cuda {
namespace {

// The index of a negative, -1 if it is ignored. Any other index out of range stops the kernel, since the host cannot
// check it without waiting for the device.
__device__ inline int32_t checked(int32_t q, int64_t candidates) {
  if (q < -1 || q >= candidates) __trap();
  return q;
}

constexpr double kLog2E = 1.4426950408889634;
// Blocks on a multiprocessor in the forward pass: 80 registers for a thread, which holds parts of an anchor, of a
// weighted sum and of a row.
constexpr int kForwardBlocks = 3;

// An anchor in registers. scale: the factor of the row in `own`; products of `own` with unit vectors are logits to base
// 2.
template <typename Part>
struct OwnAnchor {
  int32_t row;
  typename Part::T scale, positive, margin;  // `positive`: its logit
  typename Part::Values own;
};

// top: the largest logit of the positive and of the negatives that the group of lanes has read; mass: the sum of
// 2^(logit - top) over the lane's own negatives, since a sum of many equal numbers is not exact; pulled: the sum of
// 2^(logit - top) row / norm.
template <typename Part>
struct OnlineSums {
  typename Part::T top, mass;
  typename Part::Values pulled;

  __device__ void raise(const Part& part, typename Part::T higher) {
    const typename Part::T shrunk = std::exp2(top - higher);
    top = higher, mass *= shrunk;
    part.multiply(pulled, shrunk);
  }
};

// Adds the rows of the negatives whose turns these are. own_row, own_inverse: of the lane's negative, its row and 1 /
// norm, or -1 if it is ignored; own_logit gets its logit.
template <typename Part, typename S>
__device__ inline void add_turns(const ContrastForward<S>& x, const Part& part, const OwnAnchor<Part>& anchor, int turn,
                                 int32_t own_row, Compute<S> own_inverse, Compute<S>& own_logit,
                                 OnlineSums<Part>& sums) {
  using T = Compute<S>;
  constexpr int kInFlight = Part::kInFlight;
  typename Part::Words words[kInFlight];
  typename Part::Values values[kInFlight];
  T inverse[kInFlight], logit[kInFlight], top = sums.top;
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) part.load(x.in.candidates, part.of_turn(own_row, turn + u), words[u]);
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) {
    part.unpacked(words[u], values[u]);
    T product = part.dot(anchor.own, values[u]);
    if constexpr (!Part::kIsWholeRow)
      product +=
          anchor.scale * part.dot_beyond(x.in.anchors.row(anchor.row),
                                         x.in.candidates.row(part.of_turn(own_row, turn + u)), x.in.candidates.packs());
    inverse[u] = part.of_turn(own_inverse, turn + u);
    logit[u] = lanes_sum<Part::lanes>(product) * inverse[u];
    if (x.has_margin) {
      logit[u] = logit[u] <= anchor.margin ? T(0) : logit[u] - anchor.margin;
      if (logit[u] == 0 && inverse[u] > 0) inverse[u] = 0;  // it counts in the mass, but has no gradient
    }
    if (inverse[u] < 0) logit[u] = T(-INFINITY);
    if (part.member == turn + u) own_logit = logit[u];
    top = logit[u] > top ? logit[u] : top;
  }
  if (top > sums.top) sums.raise(part, top);
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) part.add(std::exp2(logit[u] - sums.top) * inverse[u], values[u], sums.pulled);
}

// The anchor, and its sums with the positive alone.
template <typename Part, typename S>
__device__ inline void start(const ContrastForward<S>& x, const Part& part, OwnAnchor<Part>& anchor,
                             OnlineSums<Part>& sums) {
  using T = Compute<S>;
  const Embeddings<S>&anchors = x.in.anchors, &positives = x.in.positives;
  const T sharpness = static_cast<T>(kLog2E) / static_cast<T>(*x.in.temperature);
  anchor.scale = anchors.inverse[anchor.row] * sharpness, anchor.margin = x.margin * sharpness;
  typename Part::Words words;
  typename Part::Values other;
  part.load(positives, anchor.row, words);
  part.unpacked(words, other);
  part.load(anchors, anchor.row, words);
  part.unpacked(words, anchor.own);
  part.multiply(anchor.own, anchor.scale);
  T product = part.dot(anchor.own, other);
  if constexpr (!Part::kIsWholeRow)
    product += anchor.scale * part.dot_beyond(anchors.row(anchor.row), positives.row(anchor.row), anchors.packs());
  anchor.positive = lanes_sum<Part::lanes>(product) * positives.inverse[anchor.row];
  sums = {anchor.positive, T(0), {}};
}

template <typename S, typename Part>
__global__ void __launch_bounds__(kRowThreads, kForwardBlocks) pixel_contrast_forward_kernel(ContrastForward<S> x) {
  using T = Compute<S>;
  OwnAnchor<Part> anchor{static_cast<int32_t>(own_row())};
  if (anchor.row >= x.in.anchors.count) return;
  const Part part;
  const int32_t begin = anchor.row * x.in.draws, end = begin + x.in.draws;
  OnlineSums<Part> sums;
  start(x, part, anchor, sums);
#pragma unroll 1
  for (int32_t first = begin; first < end; first += kWarp) {
    const int32_t i = first + part.place(), q = i < end ? checked(x.in.negatives[i], x.in.candidates.count) : -1;
    const int32_t row = some_row(q);
    const T inverse = q < 0 ? T(-1) : x.in.candidates.inverse[q];
    T logit = T(-INFINITY);
#pragma unroll 1
    for (int turn = 0; row >= 0 && turn < Part::lanes && first + turn * Part::kGroups < end; turn += Part::kInFlight)
      add_turns(x, part, anchor, turn, row, inverse, logit, sums);
    sums.mass += std::exp2(logit - sums.top);
    if (x.with_grad && i < end) x.share[i] = logit;  // becomes a share once the sum is known
  }
  const T top = groups_max<Part::lanes>(sums.top);
  sums.raise(part, top);
  const T mass = lanes_sum(sums.mass), natural = static_cast<T>(1 / kLog2E);
  const AnchorLoss<T> result = anchor_loss(top * natural, anchor.positive * natural, mass);
  if (own_lane() == 0) x.loss[anchor.row] = result.loss, x.pull[anchor.row] = result.pull;
  if (!x.with_grad) return;
  const T factor = mass > 0 ? result.pull / mass : T(0);
  T* out = x.pulled + int64_t{anchor.row} * x.in.anchors.width;
  part.multiply(sums.pulled, factor);
  part.store_sum(sums.pulled, out);
#pragma unroll 1
  for (int32_t i = begin + part.place(); i < end; i += kWarp) {  // what the lane has written itself
    const T logit = x.share[i];
    x.share[i] = !x.has_margin || logit > 0 ? std::exp2(logit - top) * factor : T(0);
  }
  if constexpr (!Part::kIsWholeRow) {
    const auto use = [&](int32_t i) {
      const T share = x.share[i];
      const int32_t q = x.in.negatives[i];
      return share == 0 ? Use<T>{-1, T(0)} : Use<T>{q, share * x.in.candidates.inverse[q]};
    };
#pragma unroll 1
    for (int32_t first = Part::kPacks; first < x.in.candidates.packs(); first += Part::kPacks)
      sum_rows(Part(first), x.in.candidates, begin, end, use, out);
  }
}

template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    pixel_contrast_norms_kernel(Rows<S> rows, Compute<S>* inverse) {
  const int64_t i = own_row() * kGroups + own_lane() / kGroup;
  const int member = own_lane() % kGroup;
  Compute<S> squares = 0, x[kPack<S>];
#pragma unroll 1
  for (int32_t pack = i < rows.count ? member : rows.packs(); pack < rows.packs(); pack += kGroup) {
    load_pack<S>(rows.row(i) + int64_t{pack} * kPack<S>, x);
    squares = dot(x, x, squares);
  }
  squares = lanes_sum<kGroup>(squares);
  if (i < rows.count && member == 0) inverse[i] = inverse_norm(squares);
}

template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    pixel_contrast_anchors_backward_kernel(AnchorGradients<S> x) {
  using T = Compute<S>;
  const int64_t anchor = own_row();
  if (anchor >= x.anchors.count) return;
  const int32_t width = x.anchors.width, packs = x.anchors.packs();
  const S *row = x.anchors.row(anchor), *other = x.positives.row(anchor);
  const T inverse = x.anchors.inverse[anchor], inverse_positive = x.positives.inverse[anchor];
  const T scale = 1 / static_cast<T>(*x.temperature);
  const T attraction = x.grad[anchor] * scale * x.pull[anchor];
  const T factor = x.times_grad ? scale : x.grad[anchor] * scale;
  if (x.factor != nullptr && own_lane() == 0) x.factor[anchor] = factor * inverse;
  const auto anchor_gradient = [&](int32_t pack, T(&g)[kPack<S>]) {
    const int64_t column = int64_t{pack} * kPack<S>;
    T positive[kPack<S>];
    load_pack<S>(other + column, positive);
    load_sums<S>(x.pulled + anchor * width + column, g);
#pragma unroll
    for (int i = 0; i < kPack<S>; ++i) g[i] = factor * g[i] - attraction * inverse_positive * positive[i];
  };
  write_row_gradient<S>(anchor_gradient, row, inverse, x.normalize, packs, x.grad_anchors + anchor * width);
  if (x.grad_positives == nullptr) return;
  const auto positive_gradient = [&](int32_t pack, T(&g)[kPack<S>]) {
    load_pack<S>(row + int64_t{pack} * kPack<S>, g);
#pragma unroll
    for (int i = 0; i < kPack<S>; ++i) g[i] *= -attraction * inverse;
  };
  write_row_gradient<S>(positive_gradient, other, inverse_positive, x.normalize, packs,
                        x.grad_positives + anchor * width);
}

template <typename S, typename Part>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    pixel_contrast_candidates_backward_kernel(CandidateGradients<S> x) {
  using T = Compute<S>;
  const int64_t q = own_row();
  const Embeddings<S>& candidates = x.in.candidates;
  if (q >= candidates.count) return;
  const int32_t packs = candidates.packs();
  const auto use = [&](int32_t i) {
    const int32_t place = x.use[i], anchor = static_cast<int32_t>(static_cast<uint32_t>(place) / x.in.draws);
    const T share = x.share[place];
    return share == 0 ? Use<T>{-1, T(0)} : Use<T>{anchor, share * x.factor[anchor]};
  };
  T* sums = x.sums + q * candidates.width;
#pragma unroll 1
  for (int32_t first = 0; first < packs; first += Part::kPacks)
    sum_rows(Part(first), x.in.anchors, x.start[q], x.start[q + 1], use, sums);
  __syncwarp();
  const auto gradient = [&](int32_t pack, T(&g)[kPack<S>]) { load_sums<S>(sums + int64_t{pack} * kPack<S>, g); };
  write_row_gradient<S>(gradient, candidates.row(q), candidates.inverse[q], x.normalize, packs,
                        x.grad_candidates + q * candidates.width);
}

}  // namespace

template <typename S>
void launch_inverse_norms(const Rows<S>& rows, Compute<S>* inverse, Stream stream) {
  if (rows.count == 0) return;
  const int64_t warps = (rows.count + kGroups - 1) / kGroups;
  launch(pixel_contrast_norms_kernel<S>, warps_for(warps), dim3{kRowThreads, 1, 1}, 0, stream, rows, inverse);
}

template <typename S>
void launch_pixel_contrast(const ContrastForward<S>& x, Stream stream) {
  if (x.in.anchors.count == 0) return;
  with_row_part<S>(x.in.candidates.packs(), [&](auto part) {
    const auto kernel = pixel_contrast_forward_kernel<S, typename decltype(part)::type>;
    launch(kernel, warps_for(x.in.anchors.count), dim3{kRowThreads, 1, 1}, 0, stream, x);
  });
}

template <typename S>
void launch_anchor_gradients(const AnchorGradients<S>& x, Stream stream) {
  if (x.anchors.count == 0) return;
  const auto kernel = pixel_contrast_anchors_backward_kernel<S>;
  launch(kernel, warps_for(x.anchors.count), dim3{kRowThreads, 1, 1}, 0, stream, x);
}

template <typename S>
void launch_candidate_gradients(const CandidateGradients<S>& x, Stream stream) {
  if (x.in.candidates.count == 0) return;
  with_row_part<S>(x.in.candidates.packs(), [&](auto part) {
    const auto kernel = pixel_contrast_candidates_backward_kernel<S, typename decltype(part)::type>;
    launch(kernel, warps_for(x.in.candidates.count), dim3{kRowThreads, 1, 1}, 0, stream, x);
  });
}

#define SSKD_INSTANTIATE(S)                                                    \
  template void launch_inverse_norms<S>(const Rows<S>&, Compute<S>*, Stream);  \
  template void launch_pixel_contrast<S>(const ContrastForward<S>&, Stream);   \
  template void launch_anchor_gradients<S>(const AnchorGradients<S>&, Stream); \
  template void launch_candidate_gradients<S>(const CandidateGradients<S>&, Stream);
SSKD_INSTANTIATE(float)
SSKD_INSTANTIATE(double)
SSKD_INSTANTIATE(BFloat16)
SSKD_INSTANTIATE(Half)
#undef SSKD_INSTANTIATE

}  // namespace sskd_fast::cuda
