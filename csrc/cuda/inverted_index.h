// The inverted index of the negatives: for every candidate, the anchors that have drawn it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>

#include <cstdint>

namespace sskd_fast::cuda {

// The uses of each candidate: all positions of the negatives, by candidate and then by anchor, and the start of each
// candidate's uses. The sort is stable, so the order is the same in every run.
struct InvertedIndex {
  at::Tensor start, use;

  InvertedIndex(const at::Tensor& negatives, int64_t candidates) {
    const auto [sorted, order] = at::sort(negatives.flatten(), /*stable=*/true, /*dim=*/0, /*descending=*/false);
    use = order;
    start = at::searchsorted(sorted, at::arange(candidates + 1, negatives.options()), /*out_int32=*/false);
  }
};

}  // namespace sskd_fast::cuda
