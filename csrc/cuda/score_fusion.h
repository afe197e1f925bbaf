// Score fusion on the GPU: launchers on raw pointers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/device.h"
#include "math/score_fusion.h"

namespace sskd_fast::cuda {

// mask logits (B, K, H, W) resized to (h, w); C1 = C + 1 classes. A plane has fewer than 2^31 pixels, a row of scores fewer
// than 2^31 entries.
struct FusionShape {
  int64_t images;
  int32_t queries, in_height, in_width, out_height, out_width, classes;
  Cues cues;

  SSKD_HOST_DEVICE int32_t pixels() const { return out_height * out_width; }
  SSKD_HOST_DEVICE int32_t in_pixels() const { return in_height * in_width; }
  SSKD_HOST_DEVICE bool resized() const { return in_height != out_height || in_width != out_width; }
  SSKD_HOST_DEVICE int32_t width() const { return static_cast<int32_t>(score_width(cues, queries, classes)); }
  SSKD_HOST_DEVICE int32_t mixed() const { return static_cast<int32_t>(class_count(cues, classes)); }
};

// The width up to which a block's shared memory holds the rows of its pixels.
template <typename T>
int32_t largest_fusion_width();

// Number of parts of an image: runs of consecutive pixels over which the backward pass sums the class gradient.
int32_t fusion_parts(const FusionShape& shape);

// scores (B, N, E) of masks (B, K, H, W) and class probabilities (B, K, C1).
template <typename T>
void launch_score_fusion(const FusionShape& shape, const T* masks, const T* classes, T* scores, Stream stream);

// grad_masks (B, K, H, W) and grad_classes (B, K, C1), of the logits, from grad (B, N, E). Working memory: grad_resized
// (B, K, N), which may be grad_masks without resizing, and grad_parts (B, parts, K, C1).
template <typename T>
void launch_score_fusion_backward(const FusionShape& shape, const T* grad, const T* masks, const T* classes,
                                  T* grad_resized, T* grad_parts, T* grad_masks, T* grad_classes, Stream stream);

}  // namespace sskd_fast::cuda
