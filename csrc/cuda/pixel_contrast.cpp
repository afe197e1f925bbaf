// Launches the kernels of pixel_contrast.cu on tensors.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include "cuda/embeddings.h"
#include "cuda/inverted_index.h"
#include "cuda/launching.h"
#include "cuda/operators.h"
#include "cuda/pixel_contrast.h"

namespace sskd_fast::cuda {
namespace {

// The arguments that both passes read.
struct Inputs {
  AlignedEmbeddings anchors, positives, candidates;
  at::Tensor negatives, temperature;

  Inputs(const at::Tensor& a, const at::Tensor& p, const at::Tensor& c, const at::Tensor& index, const at::Tensor& t,
         bool normalize, Stream stream)
      : anchors(a, normalize, stream), positives(p, normalize, stream), candidates(c, normalize, stream),
        negatives(narrowed_indices(index)), temperature(checked_temperature(t, a)) {
    TORCH_CHECK_VALUE(index.size(1) <= INT32_MAX && c.size(0) <= INT32_MAX,
                      "negatives: found more than 2^31 - 1 an anchor, or as many candidates");
  }

  template <typename S>
  ContrastInputs<S> as() const {
    return {anchors.as<S>(),
            positives.as<S>(),
            candidates.as<S>(),
            const_data<int32_t>(negatives),
            static_cast<int32_t>(negatives.size(1)),
            const_data<double>(temperature)};
  }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> pixel_contrast(
    const at::Tensor& anchors, const at::Tensor& positives, const at::Tensor& candidates, const at::Tensor& negatives,
    const at::Tensor& temperature, std::optional<double> margin, bool normalize, bool with_grad) {
  const OnDevice device(anchors);
  const Inputs in(anchors, positives, candidates, negatives, temperature, normalize, device.stream());
  const auto options = compute_options(anchors);
  const int64_t count = anchors.size(0), kept = with_grad ? count : 0;
  const at::Tensor loss = at::empty({count}, options), pull = at::empty({count}, options);
  const at::Tensor share = at::empty({kept, negatives.size(1)}, options);
  const at::Tensor pulled = at::empty({kept, in.anchors.rows.size(1)}, options);
  with_storage(anchors.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Compute<S>;
    launch_pixel_contrast<S>({in.as<S>(), with_grad, margin.has_value(), static_cast<T>(margin.value_or(0)),
                              data<T>(loss), data<T>(pull), data<T>(share), data<T>(pulled)},
                             device.stream());
  });
  return {loss, share, pull, without_padding(pulled, anchors.size(1))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pixel_contrast_backward(
    const at::Tensor& grad, const at::Tensor& anchors, const at::Tensor& positives, const at::Tensor& candidates,
    const at::Tensor& negatives, const at::Tensor& share, const at::Tensor& pull, const at::Tensor& pulled,
    const at::Tensor& temperature, bool normalize, bool with_positives, bool with_candidates) {
  const OnDevice device(anchors);
  const Inputs in(anchors, positives, candidates, negatives, temperature, normalize, device.stream());
  const at::Tensor g = grad.contiguous(), rows = in.anchors.rows;
  const at::Tensor sums = aligned_rows(pulled, rows.size(1));
  const int64_t width = anchors.size(1), count = with_candidates ? candidates.size(0) : 0;
  const at::Tensor grad_anchors = at::empty_like(rows);
  const at::Tensor grad_positives = at::empty({with_positives ? rows.size(0) : 0, rows.size(1)}, rows.options());
  const at::Tensor grad_candidates = at::empty({count, rows.size(1)}, rows.options());
  const bool in_place = grad_candidates.scalar_type() == share.scalar_type();
  with_storage(anchors.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Compute<S>;
    launch_anchor_gradients<S>(
        {in.anchors.as<S>(), in.positives.as<S>(), const_data<double>(temperature), normalize, false,
         const_data<T>(g), const_data<T>(pull), const_data<T>(sums), data<S>(grad_anchors),
         with_positives ? data<S>(grad_positives) : nullptr},
        device.stream());
    if (!with_candidates) return;
    const InvertedIndex index(in.negatives, count);
    const at::Tensor scratch =
        in_place ? grad_candidates : at::empty(grad_candidates.sizes(), compute_options(grad_candidates));
    launch_candidate_gradients<S>({in.as<S>(), normalize, const_data<T>(g), const_data<T>(share),
                                   const_data<int64_t>(index.start), const_data<int64_t>(index.use), data<T>(scratch),
                                   data<S>(grad_candidates)},
                                  device.stream());
  });
  return {without_padding(grad_anchors, width), without_padding(grad_positives, width),
          without_padding(grad_candidates, width)};
}

}  // namespace sskd_fast::cuda
