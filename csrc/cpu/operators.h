// The operators on CPU tensors; schemas.h has the schemas, sskd_fast/ops explains the arguments.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace sskd_fast {

at::Tensor score_fusion(const at::Tensor& mask_logits, const at::Tensor& class_logits, int64_t height, int64_t width,
                        int64_t cues);

std::tuple<at::Tensor, at::Tensor> score_fusion_backward(const at::Tensor& grad_scores, const at::Tensor& mask_logits,
                                                         const at::Tensor& class_logits, int64_t height, int64_t width,
                                                         int64_t cues);

at::Tensor negative_sampling(const at::Tensor& anchor_scores, const at::Tensor& anchor_group,
                             const std::optional<at::Tensor>& candidate_scores,
                             const std::optional<at::Tensor>& candidate_weight, const at::Tensor& candidate_group,
                             bool same, int64_t num_negatives, const at::Tensor& seed);

at::Tensor hardest_negatives(const at::Tensor& anchors, const at::Tensor& candidates, const at::Tensor& drawn,
                             int64_t num_negatives);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> pixel_contrast(
    const at::Tensor& anchors, const at::Tensor& positives, const at::Tensor& candidates, const at::Tensor& negatives,
    const at::Tensor& temperature, std::optional<double> margin, bool normalize, bool with_grad);

std::tuple<at::Tensor, at::Tensor, at::Tensor> pixel_contrast_backward(
    const at::Tensor& grad, const at::Tensor& anchors, const at::Tensor& positives, const at::Tensor& candidates,
    const at::Tensor& negatives, const at::Tensor& share, const at::Tensor& pull, const at::Tensor& pulled,
    const at::Tensor& temperature, bool normalize, bool with_positives, bool with_candidates);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> expected_pixel_contrast(
    const at::Tensor& anchors, const at::Tensor& positives, const at::Tensor& candidates,
    const std::optional<at::Tensor>& anchor_scores, const std::optional<at::Tensor>& candidate_scores,
    const std::optional<at::Tensor>& candidate_weight, const std::optional<at::Tensor>& anchor_group,
    const std::optional<at::Tensor>& candidate_group, bool same, int64_t num_negatives, const at::Tensor& temperature,
    bool normalize);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> expected_pixel_contrast_backward(
    const at::Tensor& grad, const at::Tensor& anchors, const at::Tensor& positives, const at::Tensor& candidates,
    const std::optional<at::Tensor>& anchor_scores, const std::optional<at::Tensor>& candidate_scores,
    const std::optional<at::Tensor>& candidate_weight, const std::optional<at::Tensor>& anchor_group,
    const std::optional<at::Tensor>& candidate_group, bool same, const at::Tensor& pull, const at::Tensor& log_mass,
    const at::Tensor& weight_sum, const at::Tensor& temperature, bool normalize, bool with_scores);

}  // namespace sskd_fast
