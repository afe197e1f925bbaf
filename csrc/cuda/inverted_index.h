// The inverted index of the negatives: for every candidate, the anchors that have drawn it.
#pragma once

#include <cstdint>

#include "cuda/named_operators.h"
#include "tensors.h"

namespace sskd_fast::cuda {

// The uses of each candidate: all positions of the negatives, by candidate and then by anchor, and the start of each
// candidate's uses. The sort is stable, so the order is the same in every run.
struct InvertedIndex {
  Tensor start, use;

  InvertedIndex(const Tensor& negatives, int64_t candidates) {
    const auto [sorted, order] = stable_sort(torch::stable::flatten(negatives));
    use = order;
    start = count_below(sorted, counting(candidates + 1, options_of(negatives)));
  }
};

}  // namespace sskd_fast::cuda
