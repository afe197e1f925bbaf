// Hardest negatives on the CPU: a partial sort of each anchor's draws by similarity.

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/embeddings.h"
#include "cpu/indices.h"
#include "cpu/lanes.h"
#include "cpu/operators.h"
#include "cpu/threads.h"
#include "math/hardest_negatives.h"
#include "tensors.h"

namespace sskd_fast {
namespace {

// Number of rows to prefetch ahead of the one being read.
constexpr int64_t kAhead = 8;

// hardest (A, R) <- the hardest of drawn (A, R'), hardest first; later entries are not written. Earlier draws win ties.
template <typename T>
void rank_draws(const Embeddings<T>& anchors, const Embeddings<T>& candidates, const int32_t* drawn, int64_t draws,
                int64_t num_negatives, int32_t* hardest) {
  const std::vector<T> inverse = inverse_norms(candidates, true);
  const int64_t width = anchors.width;
  parallel_for(0, anchors.rows, 16, [&](int64_t begin, int64_t end) {
    std::vector<std::pair<T, int64_t>> order;
    for (int64_t i = begin; i < end; ++i) {
      const int32_t* q = drawn + i * draws;
      order.clear();
      for (int64_t r = 0; r < draws; ++r) {
        if (r + kAhead < draws && q[r + kAhead] >= 0) prefetch_row(candidates.row(q[r + kAhead]), width);
        if (q[r] < 0) continue;
        order.emplace_back(-hardness(dot(anchors.row(i), candidates.row(q[r]), width), inverse[q[r]]), r);
      }
      const int64_t kept = std::min<int64_t>(num_negatives, order.size());
      std::partial_sort(order.begin(), order.begin() + kept, order.end());
      for (int64_t r = 0; r < kept; ++r) hardest[i * num_negatives + r] = q[order[r].second];
    }
  });
}

}  // namespace

Tensor hardest_negatives(const Tensor& anchors, const Tensor& candidates, const Tensor& drawn, int64_t num_negatives) {
  const Tensor a = packed(anchors), c = packed(candidates);
  const Tensor index = checked_indices("drawn", drawn, c.size(0));
  const Tensor hardest = full({a.size(0), num_negatives}, -1, options_of(index));
  by_float("hardest_negatives", a, [&](auto zero) {
    using scalar_t = decltype(zero);
    rank_draws(embeddings<scalar_t>(a), embeddings<scalar_t>(c), index.const_data_ptr<int32_t>(), index.size(1),
               num_negatives, hardest.mutable_data_ptr<int32_t>());
  });
  return hardest;
}

}  // namespace sskd_fast
