// The expected form of pixel contrast on the device: the arguments of the kernels in expected_pixel_contrast.cu, and
// their launchers. Pointers are to device memory. Shape letters: A anchors, M candidates, D embedding width,
// E width of a score vector.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device.h"
#include "cuda/numbers.h"

namespace sskd_fast::cuda {

// Memory layout of embeddings of storage type S for the products of tiles: a sum of parts (parts, rows, width). The
// width is padded with zeros to a multiple of kPartDepth; see tile_products.h. Scores have the type Compute<S>.
template <typename S>
using Part = std::conditional_t<std::is_same_v<S, double>, double, BFloat16>;
template <typename S>
constexpr int kParts = std::is_same_v<S, float> ? 3 : std::is_same_v<S, Half> ? 2 : 1;
template <typename S>
constexpr int kScoreParts = kParts<Compute<S>>;
template <typename S>
constexpr int kPartDepth = std::is_same_v<S, double> ? 8 : 32;

// Rows and columns of a tile.
constexpr int kTile = 64;

// The data of an anchor or a candidate that a tile needs besides its parts. All zero for padding, so it has no weight.
template <typename T>
struct alignas(16) Entry {
  T inverse;      // 1 / norm of the embedding; for an anchor, also divided by the temperature
  T half;         // half the square of the centred score vector
  T weight;       // of a candidate, 1 for an anchor
  T log_mass;     // of an anchor, 0 for a candidate, as the two below ...
  T pulled;       // gradient of the loss times the probability of the negatives; 1 for a candidate
  T inverse_sum;  // 1 / sum of the weights
  int64_t group;
};

enum class Scope : int32_t { kAll, kSame, kOther };

// One side of the tiles: anchors or candidates.
template <typename S>
struct Side {
  const Part<S>*embedding, *score;
  const Entry<Compute<S>>* entries;
  int64_t count;
};

template <typename S>
struct Tiles {
  Side<S> rows, columns;
  int32_t width, score_width;  // of the parts; score_width is 0 if all weights are equal
  Scope scope;
  int32_t splits;  // number of splits of the columns, one block each
};

// Builds a side from rows. Null if absent: score, weight, group; for candidates the temperature; and, except for anchors
// in the backward pass, the gradient and the state.
template <typename S>
struct SideInputs {
  Embeddings<S> rows;
  const Compute<S>*score, *centre;
  const Compute<S>* weight;
  const int64_t* group;
  const double* temperature;
  const Compute<S>*grad, *pull, *log_mass, *weight_sum;
  int32_t score_width;  // before padding
};
template <typename S>
struct SideOutputs {
  Part<S>*embedding, *score;
  Entry<Compute<S>>* entries;
  int32_t width, score_width;
};

template <typename S>
struct ExpectedLoss {
  Embeddings<S> anchors, positives;
  const double* temperature;
  int64_t num_negatives;
  const Compute<S>* sums;  // (3, splits, A): top, mass and weight_sum of each split
  int32_t splits;
  Compute<S>*loss, *pull, *log_mass, *weight_sum;  // (A)
};

template <typename S>
void launch_expected_side(const SideInputs<S>& in, const SideOutputs<S>& out, Stream stream);

// sums (3, splits, rows): see ExpectedLoss.
template <typename S>
void launch_expected_sums(const Tiles<S>& tiles, Compute<S>* sums, Stream stream);

template <typename S>
void launch_expected_loss(const ExpectedLoss<S>& arguments, Stream stream);

// out (splits, rows, out_width): the embeddings of the columns, weighted by the gradient of their products with the
// rows. of_scores: the gradient of the scores of the rows.
template <typename S>
void launch_expected_gradients(const Tiles<S>& tiles, bool of_scores, int32_t out_width, Compute<S>* out,
                               Stream stream);

// grad (rows): of the embeddings, from the sums for their unit vectors.
template <typename S>
void launch_expected_rows(const Embeddings<S>& rows, const Compute<S>* sums, bool normalize, S* grad, Stream stream);

}  // namespace sskd_fast::cuda
