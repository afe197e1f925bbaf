// Pixel contrast on the CPU: every anchor reads the rows of its negatives once, for its loss and for its own gradient.
// The gradient of the candidates goes through an inverted index, one candidate at a time. So the bits do not depend on
// the number of threads. Either side reads rows of the other at random, many times each, from a copy (unit_rows.h).

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
#include "cpu/row_dots.h"
#include "cpu/threads.h"
#include "cpu/unit_rows.h"
#include "math/pixel_contrast.h"
#include "tensors.h"

namespace sskd_fast {
namespace {

using Row = NegativesByTile::Row;

// Results of the forward pass for every anchor; share and pulled are null if no gradient is wanted.
template <typename T>
struct Outputs {
  T *loss, *pull, *share, *pulled;
};

// The forward pass over one set of embeddings: one tile of candidates at a time, with an online log-sum-exp.
template <typename S>
class Forward {
  using T = Compute<S>;
  static constexpr int64_t kBlock = Lanes<T>::count;  // negatives that are read at a time

 public:
  Forward(const Embeddings<S>& anchors, const Embeddings<S>& positives, const Embeddings<S>& candidates,
          const int32_t* negatives, int64_t draws, double temperature, std::optional<double> margin, bool normalize,
          const Outputs<T>& out)
      : anchors_(anchors), positives_(positives), candidates_(candidates, normalize),
        // Logits overwrite their candidates if they have the same size.
        negatives_(negatives, anchors.rows, draws, candidates.rows,
                   candidates_.tile_shift(rows_in_second_level() ? kNearTiles : kFarTiles),
                   sizeof(T) == sizeof(int32_t) ? out.share : nullptr),
        draws_(draws), scale_(static_cast<T>(1 / temperature)), margin_(margin), normalize_(normalize), out_(out),
        good_(anchors.rows), top_(anchors.rows), mass_(anchors.rows), held_(anchors.rows) {}

  void run() {
    for (int64_t tile = 0; tile < negatives_.tiles(); ++tile)
      parallel_for(0, anchors_.rows, 16, [&](int64_t begin, int64_t end) {
        std::vector<T> anchor(candidates_.width()), other(std::max(anchors_.width, draws_ + kBlock));
        std::vector<int32_t> scratch(draws_ + kBlock);
        for (int64_t i = begin; i < end; ++i) {
          fetch(std::min(i + 1, end - 1));
          const Row row = negatives_.row(i, tile, held_[i], scratch);
          unit_row(anchors_.row(i), normalize_, anchors_.width, anchor.data());
          if (tile == 0) start(i, anchor.data(), other.data());
          add_tile(i, anchor.data(), row, other.data());
          held_[i] += static_cast<int32_t>(row.count);
          if (tile + 1 == negatives_.tiles()) finish(i, held_[i], other.data());
        }
      });
  }

 private:
  // What is read of an anchor beside the rows of its negatives.
  void fetch(int64_t i) const {
    negatives_.fetch(i);
    prefetch_row(anchors_.row(i), anchors_.width);
    if (out_.pulled != nullptr) prefetch_row(out_.pulled + i * anchors_.width, anchors_.width);
  }

  void start(int64_t i, const T* anchor, T* positive) {
    unit_row(positives_.row(i), normalize_, anchors_.width, positive);
    good_[i] = top_[i] = dot(anchor, positive, anchors_.width) * scale_;
    mass_[i] = 0;
    if (out_.pulled != nullptr) std::fill_n(out_.pulled + i * anchors_.width, anchors_.width, T(0));
  }

  // Negatives that are read at a time.
  struct Block {
    const T* rows[kBlock];
    T weight[kBlock];
    int64_t count = 0;
  };

  // Block by block, so that the second reading of a row, for the gradient, finds it in the first-level cache. It comes
  // after the dot products of the next block, which have no need to wait for the exponentials.
  void add_tile(int64_t i, const T* anchor, const Row& row, T* logits) {
    const bool keep = out_.share != nullptr;
    T* pulled = keep ? out_.pulled + i * anchors_.width : nullptr;
    // How much of a row to fetch ahead: 128 bytes. The processor fetches the rest itself once the row is read in order.
    const int64_t ahead = std::min(anchors_.width, int64_t{128} / static_cast<int64_t>(sizeof(T)));
    Block blocks[2], *now = &blocks[0], *before = &blocks[1];
    const auto pull = [&](const Block& block) {
      add_weighted_rows<T, T>(
          pulled, anchors_.width, block.count, [&](int64_t r) { return block.rows[r]; },
          [&](int64_t r) { return block.weight[r]; });
    };
    T top = top_[i], earlier = mass_[i];
    Vector<T> mass{};
    for (int64_t begin = 0; begin < row.count; begin += kBlock) {
      const int64_t count = std::min(kBlock, row.count - begin);
      for (int64_t r = 0; r < kBlock; ++r)
        now->rows[r] = candidates_.row(row.candidate[begin + std::min(r, count - 1)]);
      if (far_)
        for (int64_t r = begin + kBlock; r < std::min(begin + 2 * kBlock, row.count); ++r)
          prefetch_row(candidates_.row(row.candidate[r]), ahead);
      const int64_t groups = (count + kDotGroup<T> - 1) / kDotGroup<T>;
      Vector<T> logit = dots(anchor, now->rows, groups, candidates_.width());
      if (margin_) {
        const Vector<T> over = logit - static_cast<T>(*margin_);
        logit = over > 0 ? over : Vector<T>{};
      }
      logit *= scale_;
      logit = lanes_below<T>(count) ? logit : Vector<T>{} - std::numeric_limits<T>::infinity();
      store(logits + begin, logit);
      if (keep) pull(*before);
      const T highest = largest_of<T, Vector<T>>(logit);
      if (highest > top) {
        const T shrink = std::exp(top - highest);
        earlier *= shrink, mass *= shrink, top = highest;
        if (keep) scaled_row(pulled, shrink, anchors_.width, pulled);
      }
      const Vector<T> e = exp(logit - top);
      mass += e;
      // Below the margin, a negative counts in the sum but has no gradient.
      store(now->weight, margin_ ? (logit > 0 ? e : Vector<T>{}) : e);
      now->count = count;
      std::swap(now, before);
    }
    mass_[i] = earlier + sum(mass), top_[i] = top;
    if (!keep) return;
    pull(*before);
    if (negatives_.tiles() > 1) std::copy_n(logits, row.count, out_.share + i * draws_ + row.begin);
  }

  // logits: of the only tile; those of several tiles are in `share` so far, and are copied to it.
  void finish(int64_t i, int64_t count, T* logits) {
    const AnchorLoss<T> result = anchor_loss(top_[i], good_[i], mass_[i]);
    out_.loss[i] = result.loss, out_.pull[i] = result.pull;
    if (out_.share == nullptr) return;
    const T inverse = mass_[i] > 0 ? result.pull / mass_[i] : T(0);
    T* share = out_.share + i * draws_;
    if (negatives_.tiles() > 1) std::copy_n(share, count, logits);
    if (margin_)  // below the margin, a negative counts in the sum but has no gradient
      for (int64_t r = 0; r < count; ++r) logits[r] = logits[r] > 0 ? logits[r] : -std::numeric_limits<T>::infinity();
    exp_and_sum(logits, count, top_[i]);
    for (int64_t r = 0; r < count; ++r) logits[r] *= inverse;
    negatives_.scatter(i, logits, count, share);
    scaled_row(out_.pulled + i * anchors_.width, inverse, anchors_.width, out_.pulled + i * anchors_.width);
  }

  const Embeddings<S>&anchors_, &positives_;
  const UnitRows<T> candidates_;
  NegativesByTile negatives_;
  int64_t draws_;
  T scale_;
  std::optional<double> margin_;
  bool normalize_, far_ = !rows_in_second_level();
  Outputs<T> out_;
  std::vector<T> good_, top_, mass_;
  std::vector<int32_t> held_;  // negatives of the tiles so far
};

template <typename S>
void candidates_backward(const Embeddings<S>& anchors, const Embeddings<S>& candidates, const int32_t* negatives,
                         int64_t draws, const Compute<S>* grad, const Compute<S>* share, double temperature,
                         bool normalize, S* out) {
  using T = Compute<S>;
  const T scale = static_cast<T>(1 / temperature);
  const int64_t width = anchors.width, last = std::max<int64_t>(anchors.rows, 1);
  const UnitRows<T> units(anchors, normalize);
  // The uses of a tile are written at random, and their places fit into 32 bits.
  const int64_t size = std::clamp<int64_t>(std::numeric_limits<int32_t>::max() / std::max<int64_t>(draws, 1), 1,
                                           int64_t{1} << units.tile_shift(kWrittenTiles));
  // Sums of the candidates over one tile of anchors after the other; in the result itself if its type allows it.
  Buffer<T> storage(std::is_same_v<S, T> ? 0 : candidates.rows * width);
  T* sums = std::is_same_v<S, T> ? reinterpret_cast<T*>(out) : storage.data();
  for (int64_t first = 0; first < last; first += size) {
    const int64_t until = std::min(first + size, anchors.rows);
    const InvertedIndex<T> index(negatives, draws, first, until, candidates.rows, share,
                                 [&](int64_t a) { return grad[a] * scale; });
    parallel_for(0, candidates.rows, 64, [&](int64_t begin, int64_t end) {
      std::vector<T> unit(width);
      const auto* uses = index.uses.data();
      for (int64_t q = begin; q < end; ++q) {
        T* total = sums + q * width;
        if (first == 0) std::fill_n(total, width, T(0));
        const auto* own = uses + index.start[q];
        add_weighted_rows<T, T>(
            total, width, index.start[q + 1] - index.start[q], [&](int64_t r) { return units.row(own[r].anchor); },
            [&](int64_t r) { return own[r].weight; });
        if (first + size < last) continue;
        const T inverse = unit_row(candidates.row(q), normalize, width, unit.data());
        write_row_gradient(total, candidates.row(q), inverse, normalize, width, out + q * width);
      }
    });
  }
}

// Gradients of the anchors, from `pulled` of the forward pass, and of the positives unless null.
template <typename S>
void anchors_backward(const Embeddings<S>& anchors, const Embeddings<S>& positives, const Compute<S>* grad,
                      const Compute<S>* pull, const Compute<S>* pulled, double temperature, bool normalize,
                      S* grad_anchors, S* grad_positives) {
  using T = Compute<S>;
  const T scale = static_cast<T>(1 / temperature);
  const int64_t width = anchors.width;
  parallel_for(0, anchors.rows, 64, [&](int64_t begin, int64_t end) {
    std::vector<T> anchor(width), positive(width), g(width);
    for (int64_t i = begin; i < end; ++i) {
      const T inverse = unit_row(anchors.row(i), normalize, width, anchor.data());
      const T inverse_positive = unit_row(positives.row(i), normalize, width, positive.data());
      const T factor = grad[i] * scale, attraction = factor * pull[i];
      for (int64_t d = 0; d < width; ++d) g[d] = factor * pulled[i * width + d] - attraction * positive[d];
      write_row_gradient(g.data(), anchors.row(i), inverse, normalize, width, grad_anchors + i * width);
      if (grad_positives == nullptr) continue;
      for (int64_t d = 0; d < width; ++d) g[d] = -attraction * anchor[d];
      write_row_gradient(g.data(), positives.row(i), inverse_positive, normalize, width, grad_positives + i * width);
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
    anchors_backward<scalar_t>(rows, embeddings<scalar_t>(p), g.const_data_ptr<T>(), pull.const_data_ptr<T>(),
                               pulled.const_data_ptr<T>(), t, normalize, grad_anchors.mutable_data_ptr<scalar_t>(),
                               with_positives ? grad_positives.mutable_data_ptr<scalar_t>() : nullptr);
    if (with_candidates)
      candidates_backward<scalar_t>(rows, embeddings<scalar_t>(c), index.const_data_ptr<int32_t>(), index.size(1),
                                    g.const_data_ptr<T>(), share.const_data_ptr<T>(), t, normalize,
                                    grad_candidates.mutable_data_ptr<scalar_t>());
  });
  return {grad_anchors, grad_positives, grad_candidates};
}

}  // namespace sskd_fast
