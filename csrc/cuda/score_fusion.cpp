// Score fusion on CUDA tensors: allocates memory and launches the kernels of score_fusion.cu.
#include "cuda/score_fusion.h"

#include "cuda/launching.h"
#include "cuda/operators.h"
#include "tensors.h"

namespace sskd_fast::cuda {
namespace {

FusionShape shape_of(const Tensor& masks, const Tensor& classes, int64_t height, int64_t width, int64_t cues) {
  check_value(masks.size(2) * masks.size(3) <= INT32_MAX && height * width <= INT32_MAX,
              "mask_logits: found planes of ", masks.size(2), " x ", masks.size(3), ", resized to ", height, " x ",
              width, ", expected fewer than 2^31 pixels");
  const auto narrow = [](int64_t x) { return static_cast<int32_t>(x); };
  return {masks.size(0), narrow(masks.size(1)), narrow(masks.size(2)), narrow(masks.size(3)), narrow(height),
          narrow(width), narrow(classes.size(2)), static_cast<Cues>(cues)};
}

template <typename T>
void check_width(const Tensor& classes) {
  const int64_t found = classes.size(1) + classes.size(2), most = largest_fusion_width<T>();
  check_value(found <= most, "class_logits: found ", classes.size(1), " queries and ", classes.size(2),
              " classes, expected at most ", most, " together; backend=\"reference\" takes any number");
}

}  // namespace

Tensor score_fusion(const Tensor& mask_logits, const Tensor& class_logits, int64_t height, int64_t width,
                    int64_t cues) {
  const OnDevice device(mask_logits);
  const Tensor masks = packed(mask_logits), classes = packed(softmax(class_logits, -1));
  const FusionShape shape = shape_of(masks, classes, height, width, cues);
  const Tensor scores = empty({shape.images, shape.pixels(), shape.width()}, options_of(masks));
  if (scores.numel() == 0) return scores;
  by_float("score_fusion", masks, [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = scalar_t;
    check_width<T>(classes);
    launch_score_fusion<T>(shape, const_data<T>(masks), const_data<T>(classes), data<T>(scores), device.stream());
  });
  return scores;
}

std::tuple<Tensor, Tensor> score_fusion_backward(const Tensor& grad_scores, const Tensor& mask_logits,
                                                 const Tensor& class_logits, int64_t height, int64_t width,
                                                 int64_t cues) {
  const OnDevice device(mask_logits);
  const Tensor masks = packed(mask_logits), classes = packed(softmax(class_logits, -1));
  const Tensor grad = packed(grad_scores);
  const FusionShape shape = shape_of(masks, classes, height, width, cues);
  if (grad.numel() == 0) return {zeros(masks.sizes(), options_of(masks)), zeros(classes.sizes(), options_of(classes))};
  const Tensor grad_masks = empty(masks.sizes(), options_of(masks));
  const Tensor grad_classes = empty(classes.sizes(), options_of(classes));
  const Tensor grad_resized =
      shape.resized() ? empty({shape.images, shape.queries, shape.pixels()}, options_of(masks)) : grad_masks;
  const Tensor grad_parts = empty({shape.images, fusion_parts(shape), shape.queries, shape.classes}, options_of(masks));
  by_float("score_fusion_backward", masks, [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = scalar_t;
    check_width<T>(classes);
    launch_score_fusion_backward<T>(shape, const_data<T>(grad), const_data<T>(masks), const_data<T>(classes),
                                    data<T>(grad_resized), data<T>(grad_parts), data<T>(grad_masks),
                                    data<T>(grad_classes), device.stream());
  });
  return {grad_masks, grad_classes};
}

}  // namespace sskd_fast::cuda
