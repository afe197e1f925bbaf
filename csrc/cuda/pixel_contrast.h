// Pixel contrast on the device: the arguments of the kernels in pixel_contrast.cu, and their launchers.
// Pointers are to device memory. Shape letters: A anchors, M candidates, R negatives, D embedding width.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/numbers.h"

namespace sskd_fast::cuda {

template <typename S>
struct ContrastInputs {
  Embeddings<S> anchors, positives, candidates;  // (A, D), (A, D), (M, D)
  const int32_t* negatives;                      // (A, R), -1 ignored
  int32_t draws;
  const double* temperature;  // one number
};

template <typename S>
struct ContrastForward {
  ContrastInputs<S> in;
  bool with_grad, has_margin;
  Compute<S> margin;
  Compute<S>*loss, *pull;     // (A)
  Compute<S>*share, *pulled;  // (A, R), (A, D); not written without with_grad
};

// Gradients of the anchors and positives, for the sampled and the expected form.
template <typename S>
struct AnchorGradients {
  Embeddings<S> anchors, positives;
  const double* temperature;
  bool normalize;
  bool times_grad;                   // true if pulled is already multiplied by grad
  const Compute<S>*grad, *pull;      // (A)
  const Compute<S>* pulled;          // (A, D)
  S *grad_anchors, *grad_positives;  // the second is null if not wanted
  Compute<S>* factor;                // (A), grad / (temperature |a|); null if not wanted
};

// The gradient of the candidates by the inverted index (inverted_index.h).
template <typename S>
struct CandidateGradients {
  ContrastInputs<S> in;
  bool normalize;
  const Compute<S>*factor, *share;  // (A), of AnchorGradients; (A, R)
  const int32_t *start, *use;       // (M + 1), (A * R)
  Compute<S>* sums;                 // (M, D), scratch; may be grad_candidates
  S* grad_candidates;
};

// inverse (rows) <- 1 / norm.
template <typename S>
void launch_inverse_norms(const Rows<S>& rows, Compute<S>* inverse, Stream stream);

template <typename S>
void launch_pixel_contrast(const ContrastForward<S>& arguments, Stream stream);

template <typename S>
void launch_anchor_gradients(const AnchorGradients<S>& arguments, Stream stream);

template <typename S>
void launch_candidate_gradients(const CandidateGradients<S>& arguments, Stream stream);

}  // namespace sskd_fast::cuda
