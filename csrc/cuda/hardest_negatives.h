// Hardest negatives on the GPU: the launcher on raw pointers.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/numbers.h"

namespace sskd_fast::cuda {

// The most draws of an anchor, which the sort numbers with 16 bits.
constexpr int64_t kMostDraws = UINT16_MAX;

// Entries of the array that is sorted for an anchor: a power of two.
int64_t order_size(int64_t drawn);
// True if that array and the similarities of the draws fit into shared memory.
template <typename S>
bool order_is_shared(int64_t drawn);

// hardest (A, R) of drawn (A, R'), R <= R'. similarities (A, R') and order (A, order_size), or null if they are in
// shared memory.
template <typename S>
void launch_hardest_negatives(const Rows<S>& anchors, const Rows<S>& candidates, const int32_t* drawn,
                              int32_t num_drawn, int32_t num_negatives, Compute<S>* similarities, uint16_t* order,
                              int32_t* hardest, Stream stream);

}  // namespace sskd_fast::cuda
