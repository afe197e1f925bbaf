// Score fusion on CUDA tensors: allocates memory and launches the kernels of score_fusion.cu.
#include "cuda/score_fusion.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>

#include "cuda/launching.h"
#include "cuda/operators.h"

namespace sskd_fast::cuda {
namespace {

FusionShape shape_of(const at::Tensor& masks, const at::Tensor& classes, int64_t height, int64_t width, int64_t cues) {
  TORCH_CHECK_VALUE(masks.size(2) * masks.size(3) <= INT32_MAX && height * width <= INT32_MAX,
                    "mask_logits: found planes of ", masks.size(2), " x ", masks.size(3), ", resized to ", height, " x ",
                    width, ", expected fewer than 2^31 pixels");
  const auto narrow = [](int64_t x) { return static_cast<int32_t>(x); };
  return {masks.size(0), narrow(masks.size(1)), narrow(masks.size(2)), narrow(masks.size(3)), narrow(height),
          narrow(width), narrow(classes.size(2)), static_cast<Cues>(cues)};
}

template <typename T>
void check_width(const at::Tensor& classes) {
  const int64_t found = classes.size(1) + classes.size(2), most = largest_fusion_width<T>();
  TORCH_CHECK_VALUE(found <= most, "class_logits: found ", classes.size(1), " queries and ", classes.size(2),
                    " classes, expected at most ", most, " together; backend=\"reference\" takes any number");
}

}  // namespace

at::Tensor score_fusion(const at::Tensor& mask_logits, const at::Tensor& class_logits, int64_t height, int64_t width,
                        int64_t cues) {
  const OnDevice device(mask_logits);
  const at::Tensor masks = mask_logits.contiguous(), classes = at::softmax(class_logits, -1).contiguous();
  const FusionShape shape = shape_of(masks, classes, height, width, cues);
  const at::Tensor scores = at::empty({shape.images, shape.pixels(), shape.width()}, masks.options());
  if (scores.numel() == 0) return scores;
  AT_DISPATCH_FLOATING_TYPES(masks.scalar_type(), "score_fusion", [&] {
    using T = scalar_t;
    check_width<T>(classes);
    launch_score_fusion<T>(shape, const_data<T>(masks), const_data<T>(classes), data<T>(scores), device.stream());
  });
  return scores;
}

std::tuple<at::Tensor, at::Tensor> score_fusion_backward(const at::Tensor& grad_scores, const at::Tensor& mask_logits,
                                                         const at::Tensor& class_logits, int64_t height, int64_t width,
                                                         int64_t cues) {
  const OnDevice device(mask_logits);
  const at::Tensor masks = mask_logits.contiguous(), classes = at::softmax(class_logits, -1).contiguous();
  const at::Tensor grad = grad_scores.contiguous();
  const FusionShape shape = shape_of(masks, classes, height, width, cues);
  if (grad.numel() == 0) return {at::zeros(masks.sizes(), masks.options()), at::zeros(classes.sizes(), classes.options())};
  const at::Tensor grad_masks = at::empty(masks.sizes(), masks.options());
  const at::Tensor grad_classes = at::empty(classes.sizes(), classes.options());
  const at::Tensor grad_resized =
      shape.resized() ? at::empty({shape.images, shape.queries, shape.pixels()}, masks.options()) : grad_masks;
  const at::Tensor grad_parts =
      at::empty({shape.images, fusion_parts(shape), shape.queries, shape.classes}, masks.options());
  AT_DISPATCH_FLOATING_TYPES(masks.scalar_type(), "score_fusion_backward", [&] {
    using T = scalar_t;
    check_width<T>(classes);
    launch_score_fusion_backward<T>(shape, const_data<T>(grad), const_data<T>(masks), const_data<T>(classes),
                                    data<T>(grad_resized), data<T>(grad_parts), data<T>(grad_masks),
                                    data<T>(grad_classes), device.stream());
  });
  return {grad_masks, grad_classes};
}

}  // namespace sskd_fast::cuda
