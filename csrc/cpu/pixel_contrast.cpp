// Pixel contrast on the CPU: every anchor reads the rows of its negatives once, for its loss and for its own gradient.
// The gradient of the candidates goes through an inverted index, one candidate at a time. So the bits do not depend on
// the number of threads.

#include <algorithm>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/embeddings.h"
#include "cpu/indices.h"
#include "cpu/inverted_index.h"
#include "cpu/lanes.h"
#include "cpu/negatives_by_tile.h"
#include "cpu/operators.h"
#include "cpu/recycled.h"
#include "cpu/threads.h"
#include "math/pixel_contrast.h"
#include "tensors.h"

namespace sskd_fast {
namespace {

using Row = NegativesByTile::Row;

// Number of rows to prefetch ahead of the one being read.
constexpr int64_t kAhead = 12;
// Rows read at random are processed in tiles of about this many bytes, which stay in the last-level cache however large
// the whole table is.
constexpr int64_t kTileBytes = int64_t{1} << 22;

// log2 of the number of rows in a tile.
template <typename S>
int tile_shift(int64_t width) {
  const int64_t rows = kTileBytes / std::max<int64_t>(1, width * static_cast<int64_t>(sizeof(S)));
  int shift = 0;
  while ((int64_t{2} << shift) <= rows) ++shift;
  return shift;
}

// Prefetches the row that is read `ahead` rows after the first of `row`; the rows of `next` follow its last one.
template <typename S>
void prefetch_ahead(const Embeddings<S>& candidates, const Row& row, const Row& next, int64_t ahead) {
  if (ahead < row.count)
    prefetch_row(candidates.row(row.candidate[ahead]), candidates.width);
  else if (ahead - row.count < next.count)
    prefetch_row(candidates.row(next.candidate[ahead - row.count]), candidates.width);
}

// Similarities of a unit anchor with its negatives; next: the negatives of the next anchor.
template <typename T, typename S>
void similarities(const T* anchor, const Embeddings<S>& candidates, const std::vector<T>& inverse, const Row& row,
                  const Row& next, T* out) {
  const int64_t width = candidates.width;
  const int32_t* q = row.candidate;
  int64_t r = 0;
  for (; r + 4 <= row.count; r += 4) {
    for (int64_t j = 0; j < 4; ++j) prefetch_ahead(candidates, row, next, r + j + kAhead);
    const S* rows[4] = {candidates.row(q[r]), candidates.row(q[r + 1]), candidates.row(q[r + 2]),
                        candidates.row(q[r + 3])};
    dot4(anchor, rows, width, out + r);
  }
  for (; r < row.count; ++r) {
    prefetch_ahead(candidates, row, next, r + kAhead);
    out[r] = dot(anchor, candidates.row(q[r]), width);
  }
  for (r = 0; r < row.count; ++r) out[r] *= inverse[q[r]];
}

// Results of the forward pass for every anchor; share and pulled are null if no gradient is wanted.
template <typename T>
struct Outputs {
  T *loss, *pull, *share, *pulled;
};

// The forward pass over one set of embeddings: one tile of candidates at a time, with an online log-sum-exp.
template <typename S>
class Forward {
  using T = Compute<S>;

 public:
  Forward(const Embeddings<S>& anchors, const Embeddings<S>& positives, const Embeddings<S>& candidates,
          const int32_t* negatives, int64_t draws, double temperature, std::optional<double> margin, bool normalize,
          const Outputs<T>& out)
      : anchors_(anchors), positives_(positives), candidates_(candidates),
        // Logits overwrite their candidates if they have the same size.
        negatives_(negatives, anchors.rows, draws, candidates.rows, tile_shift<S>(candidates.width),
                   sizeof(T) == sizeof(int32_t) ? out.share : nullptr),
        draws_(draws),
        scale_(static_cast<T>(1 / temperature)), margin_(margin), out_(out),
        inverse_anchor_(inverse_norms(anchors, normalize)), inverse_positive_(inverse_norms(positives, normalize)),
        inverse_(inverse_norms(candidates, normalize)), good_(anchors.rows), top_(anchors.rows), mass_(anchors.rows) {}

  void run() {
    for (int64_t tile = 0; tile < negatives_.tiles(); ++tile)
      parallel_for(0, anchors_.rows, 16, [&](int64_t begin, int64_t end) {
        std::vector<T> anchor(anchors_.width), other(std::max(anchors_.width, draws_));
        std::vector<int32_t> scratch[2] = {std::vector<int32_t>(draws_), std::vector<int32_t>(draws_)};
        const Row none{nullptr, 0, 0};
        Row row = negatives_.row(begin, tile, scratch[0]);
        for (int64_t r = 0; r < kAhead; ++r) prefetch_ahead(candidates_, row, none, r);
        for (int64_t i = begin; i < end; ++i) {
          const Row next = i + 1 < end ? negatives_.row(i + 1, tile, scratch[(i + 1 - begin) % 2]) : none;
          scaled_row(anchors_.row(i), inverse_anchor_[i], anchors_.width, anchor.data());
          if (tile == 0) start(i, anchor.data(), other.data());
          add_tile(i, anchor.data(), row, next, other.data());
          if (tile + 1 == negatives_.tiles()) finish(i, negatives_.count(i, row), other.data());
          row = next;
        }
      });
  }

 private:
  void start(int64_t i, const T* anchor, T* positive) {
    scaled_row(positives_.row(i), inverse_positive_[i], anchors_.width, positive);
    good_[i] = top_[i] = dot(anchor, positive, anchors_.width) * scale_;
    mass_[i] = 0;
    if (out_.pulled != nullptr) std::fill_n(out_.pulled + i * anchors_.width, anchors_.width, T(0));
  }

  void add_tile(int64_t i, const T* anchor, const Row& row, const Row& next, T* logits) {
    similarities(anchor, candidates_, inverse_, row, next, logits);
    T top = top_[i];
    for (int64_t r = 0; r < row.count; ++r) {
      if (margin_) logits[r] = std::max<T>(logits[r] - static_cast<T>(*margin_), 0);
      logits[r] *= scale_;
      top = std::max(top, logits[r]);
    }
    const bool keep = out_.share != nullptr;
    T* kept = keep ? out_.share + i * draws_ + row.begin : nullptr;  // by tile until the end
    if (keep) std::copy_n(logits, row.count, kept);
    const T shrink = std::exp(top_[i] - top);
    mass_[i] = mass_[i] * shrink + exp_and_sum(logits, row.count, top);
    top_[i] = top;
    if (!keep) return;
    T* pulled = out_.pulled + i * anchors_.width;
    if (shrink != 1) scaled_row(pulled, shrink, anchors_.width, pulled);
    for (int64_t r = 0; r < row.count; ++r) {
      const bool pushes = !margin_ || kept[r] > 0;
      logits[r] = pushes ? logits[r] * inverse_[row.candidate[r]] : T(0);
    }
    add_weighted_rows<T, S>(
        pulled, anchors_.width, row.count, [&](int64_t r) { return candidates_.row(row.candidate[r]); },
        [&](int64_t r) { return logits[r]; });
  }

  void finish(int64_t i, int64_t count, T* scratch) {
    const AnchorLoss<T> result = anchor_loss(top_[i], good_[i], mass_[i]);
    out_.loss[i] = result.loss, out_.pull[i] = result.pull;
    if (out_.share == nullptr) return;
    const T inverse = mass_[i] > 0 ? result.pull / mass_[i] : T(0);
    T* share = out_.share + i * draws_;
    std::copy_n(share, count, scratch);
    if (margin_)  // below the margin, a negative counts in the sum but has no gradient
      for (int64_t r = 0; r < count; ++r)
        scratch[r] = scratch[r] > 0 ? scratch[r] : -std::numeric_limits<T>::infinity();
    exp_and_sum(scratch, count, top_[i]);
    for (int64_t r = 0; r < count; ++r) scratch[r] *= inverse;
    negatives_.scatter(i, scratch, count, share);
    scaled_row(out_.pulled + i * anchors_.width, inverse, anchors_.width, out_.pulled + i * anchors_.width);
  }

  const Embeddings<S>&anchors_, &positives_, &candidates_;
  NegativesByTile negatives_;
  int64_t draws_;
  T scale_;
  std::optional<double> margin_;
  Outputs<T> out_;
  std::vector<T> inverse_anchor_, inverse_positive_, inverse_, good_, top_, mass_;
};

template <typename S>
void candidates_backward(const Embeddings<S>& anchors, const Embeddings<S>& candidates, const int32_t* negatives,
                         int64_t draws, const Compute<S>* grad, const Compute<S>* share, double temperature,
                         const std::vector<Compute<S>>& inverse, bool normalize, S* out) {
  using T = Compute<S>;
  const T scale = static_cast<T>(1 / temperature);
  const int64_t width = anchors.width, last = std::max<int64_t>(anchors.rows, 1);
  const int64_t size = int64_t{1} << tile_shift<S>(width);
  const auto inverse_candidate = inverse_norms(candidates, normalize);
  // Sums of the candidates over one tile of anchors after the other; in the result itself if its type allows it.
  Buffer<T> storage(std::is_same_v<S, T> ? 0 : candidates.rows * width);
  T* sums = std::is_same_v<S, T> ? reinterpret_cast<T*>(out) : storage.data();
  for (int64_t first = 0; first < last; first += size) {
    const int64_t until = std::min(first + size, anchors.rows);
    const InvertedIndex<T> index(negatives, draws, first, until, candidates.rows, [&](int64_t a, int64_t i) {
      return share[i] * (grad[a] * scale * inverse[a]);
    });
    parallel_for(0, candidates.rows, 64, [&](int64_t begin, int64_t end) {
      const auto* uses = index.uses.data();
      const int64_t end_of_uses = index.start[end];
      for (int64_t q = begin; q < end; ++q) {
        T* total = sums + q * width;
        if (first == 0) std::fill_n(total, width, T(0));
        const int64_t own = index.start[q];
        add_weighted_rows<T, S>(
            total, width, index.start[q + 1] - own,
            [&](int64_t r) {
              prefetch_row(anchors.row(uses[std::min(own + r + kAhead, end_of_uses - 1)].anchor), width);
              return anchors.row(uses[own + r].anchor);
            },
            [&](int64_t r) { return uses[own + r].weight; });
        if (first + size >= last)
          write_row_gradient(total, candidates.row(q), inverse_candidate[q], normalize, width, out + q * width);
      }
    });
  }
}

// Gradients of the anchors, from `pulled` of the forward pass, and of the positives unless null.
template <typename S>
void anchors_backward(const Embeddings<S>& anchors, const Embeddings<S>& positives, const Compute<S>* grad,
                      const Compute<S>* pull, const Compute<S>* pulled, double temperature,
                      const std::vector<Compute<S>>& inverse, bool normalize, S* grad_anchors, S* grad_positives) {
  using T = Compute<S>;
  const T scale = static_cast<T>(1 / temperature);
  const int64_t width = anchors.width;
  const auto inverse_positive = inverse_norms(positives, normalize);
  parallel_for(0, anchors.rows, 64, [&](int64_t begin, int64_t end) {
    std::vector<T> anchor(width), positive(width), g(width);
    for (int64_t i = begin; i < end; ++i) {
      scaled_row(anchors.row(i), inverse[i], width, anchor.data());
      scaled_row(positives.row(i), inverse_positive[i], width, positive.data());
      const T factor = grad[i] * scale, attraction = factor * pull[i];
      for (int64_t d = 0; d < width; ++d) g[d] = factor * pulled[i * width + d] - attraction * positive[d];
      write_row_gradient(g.data(), anchors.row(i), inverse[i], normalize, width, grad_anchors + i * width);
      if (grad_positives == nullptr) continue;
      for (int64_t d = 0; d < width; ++d) g[d] = -attraction * anchor[d];
      write_row_gradient(g.data(), positives.row(i), inverse_positive[i], normalize, width, grad_positives + i * width);
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> pixel_contrast(const Tensor& anchors, const Tensor& positives,
                                                          const Tensor& candidates, const Tensor& negatives,
                                                          const Tensor& temperature, std::optional<double> margin,
                                                          bool normalize, bool with_grad) {
  const Tensor a = packed(anchors), p = packed(positives), c = packed(candidates);
  const Tensor index = checked_indices("negatives", negatives, c.size(0));
  const int64_t count = index.size(1), kept = with_grad ? a.size(0) : 0;
  const auto options = compute_options(a);
  const Tensor loss = recycled_empty({a.size(0)}, options), pull = recycled_empty({a.size(0)}, options);
  const Tensor share = recycled_empty({kept, count}, options), pulled = recycled_empty({kept, a.size(1)}, options);
  by_embedding_dtype("pixel_contrast", a, [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = Compute<scalar_t>;
    const Outputs<T> out{loss.mutable_data_ptr<T>(), pull.mutable_data_ptr<T>(),
                         with_grad ? share.mutable_data_ptr<T>() : nullptr,
                         with_grad ? pulled.mutable_data_ptr<T>() : nullptr};
    const auto rows = embeddings<scalar_t>(a), others = embeddings<scalar_t>(p), all = embeddings<scalar_t>(c);
    Forward<scalar_t>(rows, others, all, index.const_data_ptr<int32_t>(), count, checked_temperature(temperature),
                      margin, normalize, out)
        .run();
  });
  return {loss, share, pull, pulled};
}

std::tuple<Tensor, Tensor, Tensor> pixel_contrast_backward(const Tensor& grad, const Tensor& anchors,
                                                           const Tensor& positives, const Tensor& candidates,
                                                           const Tensor& negatives, const Tensor& share,
                                                           const Tensor& pull, const Tensor& pulled,
                                                           const Tensor& temperature, bool normalize,
                                                           bool with_positives, bool with_candidates) {
  const Tensor a = packed(anchors), p = packed(positives), c = packed(candidates);
  const Tensor index = checked_indices("negatives", negatives, c.size(0)), g = packed(grad);
  const Tensor grad_anchors = recycled_empty(a.sizes(), options_of(a));
  const Tensor grad_positives = recycled_empty({with_positives ? p.size(0) : 0, p.size(1)}, options_of(p));
  const Tensor grad_candidates = recycled_empty({with_candidates ? c.size(0) : 0, c.size(1)}, options_of(c));
  const double t = checked_temperature(temperature);
  by_embedding_dtype("pixel_contrast_backward", a, [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = Compute<scalar_t>;
    const auto rows = embeddings<scalar_t>(a);
    const auto inverse = inverse_norms(rows, normalize);
    anchors_backward<scalar_t>(rows, embeddings<scalar_t>(p), g.const_data_ptr<T>(), pull.const_data_ptr<T>(),
                               pulled.const_data_ptr<T>(), t, inverse, normalize,
                               grad_anchors.mutable_data_ptr<scalar_t>(),
                               with_positives ? grad_positives.mutable_data_ptr<scalar_t>() : nullptr);
    if (with_candidates)
      candidates_backward<scalar_t>(rows, embeddings<scalar_t>(c), index.const_data_ptr<int32_t>(), index.size(1),
                                    g.const_data_ptr<T>(), share.const_data_ptr<T>(), t, inverse, normalize,
                                    grad_candidates.mutable_data_ptr<scalar_t>());
  });
  return {grad_anchors, grad_positives, grad_candidates};
}

}  // namespace sskd_fast
