// Pixel contrast: one warp for each anchor reads the rows of its negatives for the online log-sum-exp of their logits.
// It reads them again, while they are in the cache, for their weighted sum. The gradient of the candidates goes
// through an inverted index, one warp for each candidate. There are no atomics, so the bits are the same in
// every run.
#include "cuda/pixel_contrast.h"

#include <cmath>

#include "cuda/rows.h"

namespace sskd_fast::cuda {
namespace {

// The index of a negative, -1 if it is ignored. Any other index out of range stops the kernel, since the host cannot
// check it without waiting for the device.
__device__ inline int32_t checked(int32_t q, int64_t candidates) {
  if (q < -1 || q >= candidates) __trap();
  return q;
}

// Similarities of an anchor with kInFlight<S> candidates, by the eight lanes of a group, before the normalisation.
template <typename S>
__device__ inline void similarities(const S* anchor, const Embeddings<S>& candidates, const int32_t (&q)[kInFlight<S>],
                                    Compute<S> (&out)[kInFlight<S>]) {
  using T = Compute<S>;
#pragma unroll
  for (int u = 0; u < kInFlight<S>; ++u) out[u] = 0;
#pragma unroll 1
  for (int32_t pack = own_lane() % kGroup; pack < candidates.packs(); pack += kGroup) {
    const int64_t column = int64_t{pack} * kPack<S>;
    uint4 words[kInFlight<S>] = {};
#pragma unroll
    for (int u = 0; u < kInFlight<S>; ++u)
      if (q[u] >= 0) words[u] = load_words(candidates.row(q[u]) + column);
    T left[kPack<S>], right[kPack<S>];
    load_pack<S>(anchor + column, left);
#pragma unroll
    for (int u = 0; u < kInFlight<S>; ++u) {
      unpack<S>(words[u], right);
      out[u] = dot(left, right, out[u]);
    }
  }
#pragma unroll
  for (int u = 0; u < kInFlight<S>; ++u) out[u] = lanes_sum<kGroup>(out[u]);
}

template <typename S, bool with_grad>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
pixel_contrast_forward_kernel(ContrastForward<S> x) {
  using T = Compute<S>;
  const int64_t anchor = own_row();
  if (anchor >= x.in.anchors.count) return;
  const int lane = own_lane(), group = lane / kGroup, member = lane % kGroup;
  const int32_t draws = x.in.draws;
  const int32_t* negatives = x.in.negatives + anchor * draws;
  T* share = x.share + (with_grad ? anchor * draws : 0);
  const T scale = 1 / static_cast<T>(*x.in.temperature), inverse = x.in.anchors.inverse[anchor];

  // Lane u of a group keeps the sum over the u-th negatives that the group reads.
  T top = T(-INFINITY), mass = 0;
#pragma unroll 1
  for (int32_t first = group * kInFlight<S>; first - group * kInFlight<S> < draws; first += kRowsAtATime<S>) {
    int32_t q[kInFlight<S>], own = -1;
    T products[kInFlight<S>], logit = 0;
#pragma unroll
    for (int u = 0; u < kInFlight<S>; ++u) {
      q[u] = first + u < draws ? checked(negatives[first + u], x.in.candidates.count) : -1;
      if (member == u) own = q[u];
    }
    similarities(x.in.anchors.row(anchor), x.in.candidates, q, products);
#pragma unroll
    for (int u = 0; u < kInFlight<S>; ++u)
      if (member == u) logit = products[u];
    if (own >= 0) {
      logit *= inverse * x.in.candidates.inverse[own];
      if (x.has_margin) logit = logit > x.margin ? logit - x.margin : T(0);
      logit *= scale;
      if (logit > top) {
        mass = mass * std::exp(top - logit) + 1;
        top = logit;
      } else {
        mass += std::exp(logit - top);
      }
    }
    if (with_grad && member < kInFlight<S> && first + member < draws)
      share[first + member] = own >= 0 ? logit : T(-INFINITY);
  }

  const S *row = x.in.anchors.row(anchor), *other = x.in.positives.row(anchor);
  const T positive = warp_dot<S>(row, other, x.in.anchors.packs()) * inverse * x.in.positives.inverse[anchor] * scale;
  const T highest = warp_max(top > positive ? top : positive);
  mass = lanes_sum(mass * std::exp(top - highest));
  const AnchorLoss<T> result = anchor_loss(highest, positive, mass);
  if (lane == 0) x.loss[anchor] = result.loss, x.pull[anchor] = result.pull;
  if constexpr (with_grad) {
    __syncwarp();
    const T factor = mass > 0 ? result.pull / mass : T(0);
#pragma unroll 1
    for (int32_t r = lane; r < draws; r += kWarp) {
      const T logit = share[r];
      // Below the margin, a negative counts in the sum but has no gradient.
      share[r] = !x.has_margin || logit > 0 ? std::exp(logit - highest) * factor : T(0);
    }
    __syncwarp();
    const auto use = [&](int64_t r) {
      const int32_t q = negatives[r];
      return q < 0 ? Use<T>{0, T(0)} : Use<T>{q, share[r] * x.in.candidates.inverse[q]};
    };
    sum_rows(x.in.candidates, 0, draws, use, x.pulled + anchor * x.in.anchors.width);
  }
}

template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
pixel_contrast_norms_kernel(Rows<S> rows, Compute<S>* inverse) {
  const int64_t i = own_row();
  if (i >= rows.count) return;
  const Compute<S> squares = warp_dot<S>(rows.row(i), rows.row(i), rows.packs());
  if (own_lane() == 0) inverse[i] = inverse_norm(squares);
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

template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
pixel_contrast_candidates_backward_kernel(CandidateGradients<S> x) {
  using T = Compute<S>;
  const int64_t q = own_row();
  if (q >= x.in.candidates.count) return;
  const T scale = 1 / static_cast<T>(*x.in.temperature);
  const int32_t width = x.in.candidates.width;
  const auto use = [&](int64_t i) {
    const int64_t place = x.use[i];
    // A 64-bit division takes several times as long.
    const int64_t anchor = place >> 32 == 0 ? static_cast<uint32_t>(place) / static_cast<uint32_t>(x.in.draws)
                                            : place / x.in.draws;
    return Use<T>{anchor, x.share[place] * (x.grad[anchor] * scale * x.in.anchors.inverse[anchor])};
  };
  T* sums = x.sums + q * width;
  sum_rows(x.in.anchors, x.start[q], x.start[q + 1], use, sums);
  __syncwarp();
  const auto gradient = [&](int32_t pack, T(&g)[kPack<S>]) { load_sums<S>(sums + int64_t{pack} * kPack<S>, g); };
  write_row_gradient<S>(gradient, x.in.candidates.row(q), x.in.candidates.inverse[q], x.normalize,
                        x.in.candidates.packs(), x.grad_candidates + q * width);
}

}  // namespace

template <typename S>
void launch_inverse_norms(const Rows<S>& rows, Compute<S>* inverse, Stream stream) {
  if (rows.count == 0) return;
  launch(pixel_contrast_norms_kernel<S>, warps_for(rows.count), dim3{kRowThreads, 1, 1}, 0, stream, rows, inverse);
}

template <typename S>
void launch_pixel_contrast(const ContrastForward<S>& x, Stream stream) {
  if (x.in.anchors.count == 0) return;
  const auto kernel = x.with_grad ? pixel_contrast_forward_kernel<S, true> : pixel_contrast_forward_kernel<S, false>;
  launch(kernel, warps_for(x.in.anchors.count), dim3{kRowThreads, 1, 1}, 0, stream, x);
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
  const auto kernel = pixel_contrast_candidates_backward_kernel<S>;
  launch(kernel, warps_for(x.in.candidates.count), dim3{kRowThreads, 1, 1}, 0, stream, x);
}

#define SSKD_INSTANTIATE(S)                                                       \
  template void launch_inverse_norms<S>(const Rows<S>&, Compute<S>*, Stream);     \
  template void launch_pixel_contrast<S>(const ContrastForward<S>&, Stream);      \
  template void launch_anchor_gradients<S>(const AnchorGradients<S>&, Stream);    \
  template void launch_candidate_gradients<S>(const CandidateGradients<S>&, Stream);
SSKD_INSTANTIATE(float)
SSKD_INSTANTIATE(double)
SSKD_INSTANTIATE(BFloat16)
SSKD_INSTANTIATE(Half)
#undef SSKD_INSTANTIATE

}  // namespace sskd_fast::cuda
