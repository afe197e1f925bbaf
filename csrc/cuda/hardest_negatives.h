// Hardest negatives on the GPU: the launcher on raw pointers.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/numbers.h"

namespace sskd_fast::cuda {

// True if the similarities of a warp's anchor to its draws fit into shared memory.
template <typename S>
bool similarities_are_shared(int64_t drawn);

// hardest (A, R) of drawn (A, R'), R <= R'. similarities (A, R'), or null if they are in shared memory.
template <typename S>
void launch_hardest_negatives(const Rows<S>& anchors, const Rows<S>& candidates, const int32_t* drawn,
                              int32_t num_drawn, int32_t num_negatives, Compute<S>* similarities, int32_t* hardest,
                              Stream stream);

}  // namespace sskd_fast::cuda
