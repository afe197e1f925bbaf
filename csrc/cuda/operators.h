// The operators on CUDA tensors, which are all but score fusion and the expected form; schemas.h has the schemas,
// sskd_fast/ops explains the arguments.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include "tensors.h"

namespace sskd_fast::cuda {

Tensor negative_sampling(const Tensor& anchor_scores, const Tensor& anchor_group,
                         const std::optional<Tensor>& candidate_scores, const std::optional<Tensor>& candidate_weight,
                         const Tensor& candidate_group, bool same, int64_t num_negatives, const Tensor& seed);

Tensor hardest_negatives(const Tensor& anchors, const Tensor& candidates, const Tensor& drawn, int64_t num_negatives);

std::tuple<Tensor, Tensor, Tensor, Tensor> pixel_contrast(const Tensor& anchors, const Tensor& positives,
                                                          const Tensor& candidates, const Tensor& negatives,
                                                          const Tensor& temperature, std::optional<double> margin,
                                                          bool normalize, bool with_grad);

std::tuple<Tensor, Tensor, Tensor> pixel_contrast_backward(const Tensor& grad, const Tensor& anchors,
                                                           const Tensor& positives, const Tensor& candidates,
                                                           const Tensor& negatives, const Tensor& share,
                                                           const Tensor& pull, const Tensor& pulled,
                                                           const Tensor& temperature, bool normalize,
                                                           bool with_positives, bool with_candidates);

}  // namespace sskd_fast::cuda
