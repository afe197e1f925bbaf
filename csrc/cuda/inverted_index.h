// The inverted index of the negatives: for every candidate, where the anchors have drawn it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device.h"

namespace sskd_fast::cuda {

// use[start[q]] ... use[start[q + 1] - 1] are the places of candidate q among the negatives, in ascending order, so the
// same in every run.
struct InvertedIndex {
  const int32_t* negatives;  // (count): a candidate, or -1
  int32_t count, candidates;
  int32_t *start, *use;      // (candidates + 1), (count)
  int32_t *places, *sorted;  // (count), scratch
};

// Bytes of memory that the launch takes besides.
size_t inverted_index_bytes(const InvertedIndex& index, Stream stream);

void launch_inverted_index(const InvertedIndex& index, void* memory, size_t bytes, Stream stream);

}  // namespace sskd_fast::cuda
