// The only native schemas. The functions of sskd_fast/ops call the operators.
#pragma once

#include <torch/csrc/stable/library.h>

namespace sskd_fast {

inline void define_operators(torch::stable::detail::StableLibrary& m) {
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

}  // namespace sskd_fast
