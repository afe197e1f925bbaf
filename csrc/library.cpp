// The only native schemas, and the operators that serve CPU tensors. The functions of sskd_fast/ops call them. They are
// registered in this one file because torch/library.h takes a compiler longer than an operator does.
#include <torch/library.h>

#include "cpu/operators.h"
#include "cpu/recycled.h"

TORCH_LIBRARY(sskd_fast_native, m) {
  m.def("score_fusion(Tensor mask_logits, Tensor class_logits, int height, int width, int cues) -> Tensor");
  m.def(
      "score_fusion_backward(Tensor grad, Tensor mask_logits, Tensor class_logits, int height, int width, int cues)"
      " -> (Tensor, Tensor)");
  m.def(
      "negative_sampling(Tensor anchor_scores, Tensor anchor_group, Tensor? candidate_scores, Tensor? candidate_weight,"
      " Tensor candidate_group, bool same, int num_negatives, Tensor seed) -> Tensor");
  m.def("hardest_negatives(Tensor anchors, Tensor candidates, Tensor drawn, int num_negatives) -> Tensor");
  m.def(
      "pixel_contrast(Tensor anchors, Tensor positives, Tensor candidates, Tensor negatives, Tensor temperature,"
      " float? margin, bool normalize, bool with_grad) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "pixel_contrast_backward(Tensor grad, Tensor anchors, Tensor positives, Tensor candidates, Tensor negatives,"
      " Tensor share, Tensor pull, Tensor pulled, Tensor temperature, bool normalize, bool with_positives,"
      " bool with_candidates)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "expected_pixel_contrast(Tensor anchors, Tensor positives, Tensor candidates, Tensor? anchor_scores,"
      " Tensor? candidate_scores, Tensor? candidate_weight, Tensor? anchor_group, Tensor? candidate_group, bool same,"
      " int num_negatives, Tensor temperature, bool normalize) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "expected_pixel_contrast_backward(Tensor grad, Tensor anchors, Tensor positives, Tensor candidates,"
      " Tensor? anchor_scores, Tensor? candidate_scores, Tensor? candidate_weight, Tensor? anchor_group,"
      " Tensor? candidate_group, bool same, Tensor pull, Tensor log_mass, Tensor weight_sum, Tensor temperature,"
      " bool normalize, bool with_scores) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_FRAGMENT(sskd_fast_native, m) {
  m.def("release_memory() -> int", [] { return sskd_fast::Recycler::shared().clear(); });
}

TORCH_LIBRARY_IMPL(sskd_fast_native, CPU, m) {
  m.impl("score_fusion", sskd_fast::score_fusion);
  m.impl("score_fusion_backward", sskd_fast::score_fusion_backward);
  m.impl("negative_sampling", sskd_fast::negative_sampling);
  m.impl("hardest_negatives", sskd_fast::hardest_negatives);
  m.impl("pixel_contrast", sskd_fast::pixel_contrast);
  m.impl("pixel_contrast_backward", sskd_fast::pixel_contrast_backward);
  m.impl("expected_pixel_contrast", sskd_fast::expected_pixel_contrast);
  m.impl("expected_pixel_contrast_backward", sskd_fast::expected_pixel_contrast_backward);
}
