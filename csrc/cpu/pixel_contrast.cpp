// Pixel contrast on the CPU: every anchor reads the rows of its negatives once, for its loss and for its own gradient;
// the gradient of the candidates goes through an inverted index, a candidate at a time, so that nothing is added twice
// and the bits do not depend on the number of threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/embeddings.h"
#include "cpu/lanes.h"
#include "cpu/operators.h"
#include "math/pixel_contrast.h"

namespace sskd_fast {
namespace {

// Rows fetched ahead of the one that is read.
constexpr int64_t kAhead = 12;
// Rows that are read in random order are worked through in tiles of this many bytes, which stay in the last-level cache.
constexpr int64_t kTileBytes = int64_t{1} << 23;

template <typename S>
int64_t tile_rows(int64_t width) {
  return std::max<int64_t>(1, kTileBytes / std::max<int64_t>(1, width * static_cast<int64_t>(sizeof(S))));
}

template <typename S>
Embeddings<S> embeddings(const at::Tensor& x) {
  return {x.const_data_ptr<S>(), x.size(0), x.size(1)};
}

void check_indices(const at::Tensor& negatives, int64_t candidates) {
  const int32_t* index = negatives.const_data_ptr<int32_t>();
  const int64_t count = negatives.numel();
  if (count == 0) return;
  int32_t low = index[0], high = index[0];
  for (int64_t i = 0; i < count; ++i) low = std::min(low, index[i]), high = std::max(high, index[i]);
  TORCH_CHECK_VALUE(low >= -1 && high < candidates, "negatives: found values in [", low, ", ", high,
                    "], expected -1 or an index below ", candidates);
}

// The negatives of one anchor that lie in a tile of the candidates.
struct Row {
  std::vector<int32_t> candidate, column;
  int64_t count = 0;
  explicit Row(int64_t draws) : candidate(draws), column(draws) {}
  void fill(const int32_t* index, int64_t draws, int64_t first, int64_t last) {
    count = 0;
    for (int64_t r = 0; r < draws; ++r) {
      candidate[count] = index[r], column[count] = static_cast<int32_t>(r);
      count += index[r] >= first && index[r] < last;
    }
  }
};

// Similarities of a unit anchor with its negatives.
template <typename T, typename S>
void similarities(const T* anchor, const Embeddings<S>& candidates, const std::vector<T>& inverse, const Row& row,
                  T* out) {
  const int64_t count = row.count, width = candidates.width;
  const int32_t* q = row.candidate.data();
  for (int64_t r = 0; r < std::min(kAhead, count); ++r) prefetch_row(candidates.row(q[r]), width);
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    for (int64_t ahead = r + kAhead; ahead < std::min(r + kAhead + 4, count); ++ahead)
      prefetch_row(candidates.row(q[ahead]), width);
    const S* rows[4] = {candidates.row(q[r]), candidates.row(q[r + 1]), candidates.row(q[r + 2]),
                        candidates.row(q[r + 3])};
    dot4(anchor, rows, width, out + r);
  }
  for (; r < count; ++r) out[r] = dot(anchor, candidates.row(q[r]), width);
  for (r = 0; r < count; ++r) out[r] *= inverse[q[r]];
}

// What the forward pass gives for every anchor; share and pulled are null where no gradient is wanted.
template <typename T>
struct Outputs {
  T *loss, *pull, *share, *pulled;
};

// The forward pass over one set of embeddings: a tile of candidates at a time, with an online log-sum-exp.
template <typename S>
class Forward {
  using T = Compute<S>;

 public:
  Forward(const Embeddings<S>& anchors, const Embeddings<S>& positives, const Embeddings<S>& candidates,
          const int32_t* negatives, int64_t draws, double temperature, std::optional<double> margin, bool normalize,
          const Outputs<T>& out)
      : anchors_(anchors), positives_(positives), candidates_(candidates), negatives_(negatives), draws_(draws),
        scale_(static_cast<T>(1 / temperature)), margin_(margin), out_(out),
        inverse_anchor_(inverse_norms(anchors, normalize)), inverse_positive_(inverse_norms(positives, normalize)),
        inverse_(inverse_norms(candidates, normalize)), good_(anchors.rows), top_(anchors.rows), mass_(anchors.rows) {}

  void run() {
    const int64_t size = tile_rows<S>(candidates_.width), last = std::max<int64_t>(candidates_.rows, 1);
    for (int64_t first = 0; first < last; first += size)
      at::parallel_for(0, anchors_.rows, 16, [&](int64_t begin, int64_t end) {
        Row row(draws_);
        std::vector<T> anchor(anchors_.width), other(anchors_.width), logits(draws_);
        for (int64_t i = begin; i < end; ++i) {
          scaled_row(anchors_.row(i), inverse_anchor_[i], anchors_.width, anchor.data());
          if (first == 0) start(i, anchor.data(), other.data());
          row.fill(negatives_ + i * draws_, draws_, first, std::min(first + size, last));
          add_tile(i, anchor.data(), row, logits.data());
          if (first + size >= last) finish(i);
        }
      });
  }

 private:
  void start(int64_t i, const T* anchor, T* positive) {
    scaled_row(positives_.row(i), inverse_positive_[i], anchors_.width, positive);
    good_[i] = top_[i] = dot(anchor, positive, anchors_.width) * scale_;
    mass_[i] = 0;
    if (out_.share != nullptr)
      std::fill_n(out_.share + i * draws_, draws_, -std::numeric_limits<T>::infinity());
  }

  void add_tile(int64_t i, const T* anchor, const Row& row, T* logits) {
    similarities(anchor, candidates_, inverse_, row, logits);
    T top = top_[i];
    for (int64_t r = 0; r < row.count; ++r) {
      if (margin_) logits[r] = std::max<T>(logits[r] - static_cast<T>(*margin_), 0);
      logits[r] *= scale_;
      top = std::max(top, logits[r]);
    }
    const bool keep = out_.share != nullptr;
    for (int64_t r = 0; keep && r < row.count; ++r) out_.share[i * draws_ + row.column[r]] = logits[r];
    const T shrink = std::exp(top_[i] - top);
    mass_[i] = mass_[i] * shrink + exp_and_sum(logits, row.count, top);
    top_[i] = top;
    if (!keep) return;
    T* pulled = out_.pulled + i * anchors_.width;
    if (shrink != 1) scaled_row(pulled, shrink, anchors_.width, pulled);
    for (int64_t r = 0; r < row.count; ++r) {
      const bool pushes = !margin_ || out_.share[i * draws_ + row.column[r]] > 0;
      logits[r] = pushes ? logits[r] * inverse_[row.candidate[r]] : T(0);
    }
    add_weighted_rows<T, S>(
        pulled, anchors_.width, row.count, [&](int64_t r) { return candidates_.row(row.candidate[r]); },
        [&](int64_t r) { return logits[r]; });
  }

  void finish(int64_t i) {
    const AnchorLoss<T> result = anchor_loss(top_[i], good_[i], mass_[i]);
    out_.loss[i] = result.loss, out_.pull[i] = result.pull;
    if (out_.share == nullptr) return;
    const T inverse = mass_[i] > 0 ? result.pull / mass_[i] : T(0);
    T* share = out_.share + i * draws_;
    if (margin_)  // below it, a negative has its part of the sum but no gradient
      for (int64_t r = 0; r < draws_; ++r) share[r] = share[r] > 0 ? share[r] : -std::numeric_limits<T>::infinity();
    exp_and_sum(share, draws_, top_[i]);
    for (int64_t r = 0; r < draws_; ++r) share[r] *= inverse;
    scaled_row(out_.pulled + i * anchors_.width, inverse, anchors_.width, out_.pulled + i * anchors_.width);
  }

  const Embeddings<S>&anchors_, &positives_, &candidates_;
  const int32_t* negatives_;
  int64_t draws_;
  T scale_;
  std::optional<double> margin_;
  Outputs<T> out_;
  std::vector<T> inverse_anchor_, inverse_positive_, inverse_, good_, top_, mass_;
};

// Every use of the candidates as negatives of a range of anchors, by candidate and then by anchor.
template <typename T>
struct InvertedIndex {
  struct Use {
    int32_t anchor;
    T weight;
  };
  std::vector<int64_t> start;  // (M + 1)
  Buffer<Use> uses;

  // A counting sort; each thread has its own part of the anchors and its own place in the list of every candidate.
  template <typename WeightOf>
  InvertedIndex(const int32_t* negatives, int64_t draws, int64_t first_anchor, int64_t last_anchor, int64_t candidates,
                WeightOf weight)
      : start(candidates + 1, 0) {
    const int64_t anchors = last_anchor - first_anchor;
    const int64_t parts = std::clamp<int64_t>(anchors / 64, 1, at::get_num_threads());
    const auto first = [&](int64_t part) { return first_anchor + anchors * part / parts; };
    std::vector<int32_t> next(parts * candidates, 0);
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        int32_t* own = next.data() + part * candidates;
        for (int64_t i = first(part) * draws; i < first(part + 1) * draws; ++i)
          if (negatives[i] >= 0) ++own[negatives[i]];
      }
    });
    int64_t total = 0;
    for (int64_t q = 0; q < candidates; ++q) {
      start[q] = total;
      for (int64_t part = 0; part < parts; ++part) {
        const int32_t size = next[part * candidates + q];
        next[part * candidates + q] = static_cast<int32_t>(total - start[q]);
        total += size;
      }
    }
    start[candidates] = total;
    uses = Buffer<Use>(total);
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        int32_t* own = next.data() + part * candidates;
        for (int64_t a = first(part); a < first(part + 1); ++a)
          for (int64_t i = a * draws; i < (a + 1) * draws; ++i) {
            const int32_t q = negatives[i];
            if (q >= 0) uses[start[q] + own[q]++] = {static_cast<int32_t>(a), weight(a, i)};
          }
      }
    });
  }
};

template <typename S>
void candidates_backward(const Embeddings<S>& anchors, const Embeddings<S>& candidates, const int32_t* negatives,
                         int64_t draws, const Compute<S>* grad, const Compute<S>* share, double temperature,
                         const std::vector<Compute<S>>& inverse, bool normalize, S* out) {
  using T = Compute<S>;
  const T scale = static_cast<T>(1 / temperature);
  const int64_t width = anchors.width, size = tile_rows<S>(width), last = std::max<int64_t>(anchors.rows, 1);
  const auto inverse_candidate = inverse_norms(candidates, normalize);
  // The sums of a candidate, over one tile of anchors after the other; in the result itself where its type allows.
  Buffer<T> storage(std::is_same_v<S, T> ? 0 : candidates.rows * width);
  T* sums = std::is_same_v<S, T> ? reinterpret_cast<T*>(out) : storage.data();
  for (int64_t first = 0; first < last; first += size) {
    const int64_t until = std::min(first + size, anchors.rows);
    const InvertedIndex<T> index(negatives, draws, first, until, candidates.rows, [&](int64_t a, int64_t i) {
      return share[i] * (grad[a] * scale * inverse[a]);
    });
    at::parallel_for(0, candidates.rows, 64, [&](int64_t begin, int64_t end) {
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

// Gradients of the anchors, from what the forward pass pulled together, and of the positives.
template <typename S>
void anchors_backward(const Embeddings<S>& anchors, const Embeddings<S>& positives, const Compute<S>* grad,
                      const Compute<S>* pull, const Compute<S>* pulled, double temperature,
                      const std::vector<Compute<S>>& inverse, bool normalize, S* grad_anchors, S* grad_positives) {
  using T = Compute<S>;
  const T scale = static_cast<T>(1 / temperature);
  const int64_t width = anchors.width;
  const auto inverse_positive = inverse_norms(positives, normalize);
  at::parallel_for(0, anchors.rows, 64, [&](int64_t begin, int64_t end) {
    std::vector<T> anchor(width), positive(width), g(width);
    for (int64_t i = begin; i < end; ++i) {
      scaled_row(anchors.row(i), inverse[i], width, anchor.data());
      scaled_row(positives.row(i), inverse_positive[i], width, positive.data());
      const T factor = grad[i] * scale, attraction = factor * pull[i];
      for (int64_t d = 0; d < width; ++d) g[d] = factor * pulled[i * width + d] - attraction * positive[d];
      write_row_gradient(g.data(), anchors.row(i), inverse[i], normalize, width, grad_anchors + i * width);
      for (int64_t d = 0; d < width; ++d) g[d] = -attraction * anchor[d];
      write_row_gradient(g.data(), positives.row(i), inverse_positive[i], normalize, width, grad_positives + i * width);
    }
  });
}

#define SSKD_DISPATCH_EMBEDDINGS(type, name, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, type, name, __VA_ARGS__)

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> pixel_contrast(
    const at::Tensor& anchors, const at::Tensor& positives, const at::Tensor& candidates, const at::Tensor& negatives,
    double temperature, std::optional<double> margin, bool normalize, bool with_grad) {
  const at::Tensor a = anchors.contiguous(), p = positives.contiguous(), c = candidates.contiguous();
  const at::Tensor index = negatives.to(at::kInt).contiguous();
  const int64_t count = index.size(1), kept = with_grad ? a.size(0) : 0;
  check_indices(index, c.size(0));
  const auto options = a.options().dtype(a.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const at::Tensor loss = at::empty({a.size(0)}, options), pull = at::empty({kept ? kept : a.size(0)}, options);
  const at::Tensor share = at::zeros({kept, count}, options), pulled = at::zeros({kept, a.size(1)}, options);
  SSKD_DISPATCH_EMBEDDINGS(a.scalar_type(), "pixel_contrast", [&] {
    using T = Compute<scalar_t>;
    const Outputs<T> out{loss.mutable_data_ptr<T>(), pull.mutable_data_ptr<T>(),
                         with_grad ? share.mutable_data_ptr<T>() : nullptr,
                         with_grad ? pulled.mutable_data_ptr<T>() : nullptr};
    const auto rows = embeddings<scalar_t>(a), others = embeddings<scalar_t>(p), all = embeddings<scalar_t>(c);
    Forward<scalar_t>(rows, others, all, index.const_data_ptr<int32_t>(), count, temperature, margin, normalize, out)
        .run();
  });
  return {loss, share, pull, pulled};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pixel_contrast_backward(
    const at::Tensor& grad, const at::Tensor& anchors, const at::Tensor& positives, const at::Tensor& candidates,
    const at::Tensor& negatives, const at::Tensor& share, const at::Tensor& pull, const at::Tensor& pulled,
    double temperature, bool normalize, bool with_candidates) {
  const at::Tensor a = anchors.contiguous(), p = positives.contiguous(), c = candidates.contiguous();
  const at::Tensor index = negatives.to(at::kInt).contiguous(), g = grad.contiguous();
  const at::Tensor grad_anchors = at::empty(a.sizes(), a.options()), grad_positives = at::empty(p.sizes(), p.options());
  const at::Tensor grad_candidates = at::empty({with_candidates ? c.size(0) : 0, c.size(1)}, c.options());
  SSKD_DISPATCH_EMBEDDINGS(a.scalar_type(), "pixel_contrast_backward", [&] {
    using T = Compute<scalar_t>;
    const auto rows = embeddings<scalar_t>(a);
    const auto inverse = inverse_norms(rows, normalize);
    anchors_backward<scalar_t>(rows, embeddings<scalar_t>(p), g.const_data_ptr<T>(), pull.const_data_ptr<T>(),
                               pulled.const_data_ptr<T>(), temperature, inverse, normalize,
                               grad_anchors.mutable_data_ptr<scalar_t>(), grad_positives.mutable_data_ptr<scalar_t>());
    if (with_candidates)
      candidates_backward<scalar_t>(rows, embeddings<scalar_t>(c), index.const_data_ptr<int32_t>(), index.size(1),
                                    g.const_data_ptr<T>(), share.const_data_ptr<T>(), temperature, inverse, normalize,
                                    grad_candidates.mutable_data_ptr<scalar_t>());
  });
  return {grad_anchors, grad_positives, grad_candidates};
}

}  // namespace sskd_fast
