// Launches the kernels of pixel_contrast.cu on tensors.

#include "cuda/embeddings.h"
#include "cuda/inverted_index.h"
#include "cuda/launching.h"
#include "cuda/operators.h"
#include "cuda/pixel_contrast.h"
#include "cuda/row_widths.h"
#include "tensors.h"

namespace sskd_fast::cuda {
namespace {

// The width of embeddings in rows that the kernels read in whole parts.
int64_t part_width(const Tensor& x) {
  int64_t width = aligned_width(x);
  with_storage(x.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    width = divisible_packs<S>(width / kPack<S>) * kPack<S>;
  });
  return width;
}

// The arguments that both passes read.
struct Inputs {
  AlignedEmbeddings anchors, positives, candidates;
  Tensor negatives, temperature;

  Inputs(const Tensor& a, const Tensor& p, const Tensor& c, const Tensor& index, const Tensor& t, bool normalize,
         Stream stream)
      : anchors(a, part_width(a), normalize, stream), positives(p, part_width(p), normalize, stream),
        candidates(c, part_width(c), normalize, stream), negatives(narrowed_indices(index)),
        temperature(checked_temperature(t, a)) {
    check_value(index.numel() <= INT32_MAX && a.size(0) < INT32_MAX && c.size(0) < INT32_MAX, "negatives: found ",
                index.size(1), " for each of ", a.size(0), " anchors, and ", c.size(0),
                " candidates, expected fewer than 2^31 in all; take fewer anchors at a time");
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

// The memory of an inverted index, and the index in it.
struct IndexTensors {
  Tensor start, use;

  IndexTensors(const Tensor& negatives, int64_t candidates, Stream stream) {
    const auto options = options_of(negatives);
    const int64_t count = negatives.numel();
    start = empty({candidates + 1}, options), use = empty({count}, options);
    const Tensor places = empty({count}, options), sorted = empty({count}, options);
    const InvertedIndex index{
        const_data<int32_t>(negatives), static_cast<int32_t>(count), static_cast<int32_t>(candidates),
        data<int32_t>(start),           data<int32_t>(use),          data<int32_t>(places),
        data<int32_t>(sorted)};
    const size_t bytes = inverted_index_bytes(index, stream);
    const Tensor memory = empty({static_cast<int64_t>(bytes)}, options.with(ScalarType::Byte));
    launch_inverted_index(index, memory.mutable_data_ptr(), bytes, stream);
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> pixel_contrast(const Tensor& anchors, const Tensor& positives,
                                                          const Tensor& candidates, const Tensor& negatives,
                                                          const Tensor& temperature, std::optional<double> margin,
                                                          bool normalize, bool with_grad) {
  const OnDevice device(anchors);
  const Inputs in(anchors, positives, candidates, negatives, temperature, normalize, device.stream());
  const auto options = compute_options(anchors);
  const int64_t count = anchors.size(0), kept = with_grad ? count : 0;
  const Tensor loss = empty({count}, options), pull = empty({count}, options);
  const Tensor share = empty({kept, negatives.size(1)}, options);
  const Tensor pulled = empty({kept, in.anchors.rows.size(1)}, options);
  with_storage(anchors.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Compute<S>;
    launch_pixel_contrast<S>({in.as<S>(), with_grad, margin.has_value(), static_cast<T>(margin.value_or(0)),
                              data<T>(loss), data<T>(pull), data<T>(share), data<T>(pulled)},
                             device.stream());
  });
  return {loss, share, pull, without_padding(pulled, anchors.size(1))};
}

std::tuple<Tensor, Tensor, Tensor> pixel_contrast_backward(const Tensor& grad, const Tensor& anchors,
                                                           const Tensor& positives, const Tensor& candidates,
                                                           const Tensor& negatives, const Tensor& share,
                                                           const Tensor& pull, const Tensor& pulled,
                                                           const Tensor& temperature, bool normalize,
                                                           bool with_positives, bool with_candidates) {
  const OnDevice device(anchors);
  const Inputs in(anchors, positives, candidates, negatives, temperature, normalize, device.stream());
  const Tensor g = packed(grad), rows = in.anchors.rows;
  const Tensor sums = aligned_rows(pulled, rows.size(1));
  const int64_t width = anchors.size(1), count = with_candidates ? candidates.size(0) : 0;
  const Tensor grad_anchors = torch::stable::empty_like(rows);
  const Tensor grad_positives = empty({with_positives ? rows.size(0) : 0, rows.size(1)}, options_of(rows));
  const Tensor grad_candidates = empty({count, rows.size(1)}, options_of(rows));
  const Tensor factor = torch::stable::empty_like(pull);
  const bool in_place = grad_candidates.scalar_type() == share.scalar_type();
  with_storage(anchors.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Compute<S>;
    launch_anchor_gradients<S>(
        {in.anchors.as<S>(), in.positives.as<S>(), const_data<double>(temperature), normalize, false, const_data<T>(g),
         const_data<T>(pull), const_data<T>(sums), data<S>(grad_anchors),
         with_positives ? data<S>(grad_positives) : nullptr, data<T>(factor)},
        device.stream());
    if (!with_candidates) return;
    const IndexTensors index(in.negatives, count, device.stream());
    const Tensor scratch =
        in_place ? grad_candidates : empty(grad_candidates.sizes(), compute_options(grad_candidates));
    launch_candidate_gradients<S>(
        {in.as<S>(), normalize, const_data<T>(factor), const_data<T>(share), const_data<int32_t>(index.start),
         const_data<int32_t>(index.use), data<T>(scratch), data<S>(grad_candidates)},
        device.stream());
  });
  return {without_padding(grad_anchors, width), without_padding(grad_positives, width),
          without_padding(grad_candidates, width)};
}

}  // namespace sskd_fast::cuda
