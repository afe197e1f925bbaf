// The inverted index of the negatives: for every candidate, the anchors that have drawn it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/threads.h"

namespace sskd_fast {

// Every use of the candidates as negatives of a range of anchors, by candidate and then by anchor.
template <typename T>
struct InvertedIndex {
  struct Use {
    int32_t anchor;
    T weight;
  };
  std::vector<int64_t> start;  // (M + 1)
  Buffer<Use> uses;

  // A counting sort. Each thread has its own range of anchors and its own section in the list of every candidate.
  // Weight of use (a, r): factor(a) * share[a * draws + r].
  template <typename Factor>
  InvertedIndex(const int32_t* negatives, int64_t draws, int64_t first_anchor, int64_t last_anchor, int64_t candidates,
                const T* share, Factor factor)
      : start(candidates + 1, 0) {
    const int64_t anchors = last_anchor - first_anchor;
    const int64_t parts = std::clamp<int64_t>(anchors / 64, 1, num_threads());
    const auto first = [&](int64_t part) { return first_anchor + anchors * part / parts; };
    // Sizes of the sections, then the place of the next use in each. Ignored negatives count one place before.
    const int64_t stride = candidates + 1;
    std::vector<int32_t> next(parts * stride, 0);
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        int32_t* own = next.data() + part * stride + 1;
        for (int64_t i = first(part) * draws; i < first(part + 1) * draws; ++i) ++own[negatives[i]];
      }
    });
    int64_t total = 0;
    for (int64_t q = 0; q < candidates; ++q) {
      start[q] = total;
      for (int64_t part = 0; part < parts; ++part)
        total += std::exchange(next[part * stride + 1 + q], static_cast<int32_t>(total));
    }
    start[candidates] = total;
    uses = Buffer<Use>(total);
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      Use* const all = uses.data();
      for (int64_t part = begin; part < end; ++part) {
        int32_t* own = next.data() + part * stride + 1;
        for (int64_t a = first(part); a < first(part + 1); ++a) {
          const T scale = factor(a);
          for (int64_t i = a * draws; i < (a + 1) * draws; ++i) {
            const int32_t q = negatives[i];
            if (q >= 0) all[own[q]++] = {static_cast<int32_t>(a), scale * share[i]};
          }
        }
      }
    });
  }
};

}  // namespace sskd_fast
