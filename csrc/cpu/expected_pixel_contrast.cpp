// The expected form of pixel contrast on the CPU: tiles of anchors against panels of candidates, with an online
// log-sum-exp. The backward pass computes a tile of anchors against all candidates once more. It keeps its derivatives
// until they have been added to the gradients, by candidates and then by anchors, each sum in a fixed order by one
// thread.

#include <limits>
#include <optional>
#include <vector>

#include "cpu/expected_tiles.h"
#include "cpu/operators.h"
#include "cpu/recycled.h"
#include "cpu/threads.h"
#include "math/pixel_contrast.h"
#include "tensors.h"

namespace sskd_fast {
namespace {

// Blocks of anchors that a thread of the forward pass holds while it loops over the panels.
constexpr int64_t kHeldBlocks = 8;
// Anchors of a tile of the backward pass: whole blocks. Their operands stay in the second-level cache. With fewer,
// those of the candidates would be fetched from beyond it too often, and the threads would wait for each other more
// often.
constexpr int64_t kTileRows = 256 / kBlockRows * kBlockRows;
// Panels over which a gradient of anchors is summed in registers: 128 candidates, so that a strip of them and a block's
// factors stay in the first-level cache.
template <typename T>
constexpr int64_t kSummedPanels = 128 / kPanel<T>;

// The online log-sum-exp of an anchor, lane by lane: largest logit, sum of w exp(logit - top), sum of w.
template <typename T>
struct OnlineSums {
  Vector<T> top = Vector<T>{} + std::numeric_limits<T>::lowest(), mass{}, total{};

  void add(const Vector<T> (&logits)[2], const Vector<T> (&weights)[2]) {
    Vector<T> counted[2], higher = top;
    for (int v = 0; v < 2; ++v) {
      counted[v] = weights[v] > 0 ? logits[v] : Vector<T>{} + std::numeric_limits<T>::lowest();
      higher = counted[v] > higher ? counted[v] : higher;
    }
    mass *= exp(top - higher);
    for (int v = 0; v < 2; ++v) {
      mass += exp(counted[v] - higher) * weights[v];
      total += weights[v];
    }
    top = higher;
  }

  T log_mass() const {
    const T highest = largest_of<T, Vector<T>>(top);
    return std::log(sum(exp(top - highest) * mass)) + highest;
  }
};

template <typename T>
void forward(const Tiles<T>& tiles, const T* positive, int64_t num_negatives, T* loss, T* pull, T* log_mass,
             T* weight_sum) {
  const int64_t anchors = tiles.anchors.embedding.columns, panels = tiles.candidates.embedding.count();
  const int64_t blocks = tiles.anchors.embedding.count();
  parallel_for(0, (blocks + kHeldBlocks - 1) / kHeldBlocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kHeldBlocks; first < std::min(end * kHeldBlocks, blocks); first += kHeldBlocks) {
      const int64_t held = std::min(kHeldBlocks, blocks - first);
      OnlineSums<T> sums[kHeldBlocks * kBlockRows];
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t block = 0; block < held; ++block) {
          Block<T> logits, weights;
          tiles.compute(first + block, panel, logits, weights);
          for (int r = 0; r < kBlockRows; ++r) sums[block * kBlockRows + r].add(logits.at[r], weights.at[r]);
        }
      for (int64_t i = first * kBlockRows; i < std::min((first + held) * kBlockRows, anchors); ++i) {
        const OnlineSums<T>& own = sums[i - first * kBlockRows];
        log_mass[i] = own.log_mass();
        weight_sum[i] = sum(own.total);
        const T gap = std::log(static_cast<T>(num_negatives)) + log_mass[i] - std::log(weight_sum[i]) - positive[i];
        const AnchorLoss<T> result =
            expected_loss(weight_sum[i] > 0 ? gap : -std::numeric_limits<T>::infinity());
        loss[i] = result.loss, pull[i] = result.pull;
      }
    }
  });
}

// The anchors' data for the gradient of a tile, zero for padding. It is pulled = grad * pull and, from the forward
// pass, log_mass and 1 / weight_sum (0 if nothing was in scope).
template <typename T>
struct AnchorState {
  std::vector<T> pulled, log_mass, inverse_sum;
};

// A gradient by way of the tiles: the derivatives of a tile of anchors, and the sums over them.
template <typename T>
struct TileGradient {
  using Left = Strips<T, kBlockRows>;
  using Right = Strips<T, kPanel<T>>;
  const Left& anchors;      // anchors x width
  const Right& candidates;  // candidates x width
  Right factors;            // at most kTileRows x candidates: of the tile
  Right of_anchors;         // anchors (whole blocks) x width
  Right of_candidates;      // width (whole blocks) x candidates: of all tiles so far

  TileGradient(const Left& anchors_, const Right& candidates_)
      : anchors(anchors_), candidates(candidates_),
        factors(std::min(kTileRows, round_up(anchors_.rows, kBlockRows)), candidates_.rows),
        of_anchors(round_up(anchors_.rows, kBlockRows), candidates_.columns),
        of_candidates(round_up(candidates_.columns, kBlockRows), candidates_.rows) {
    of_anchors.clear();
    of_candidates.clear();
  }

  // The panel's candidates += factors^T times the `rows` anchors from `first` on.
  void add_to_candidates(int64_t panel, int64_t first, int64_t rows) {
    for (int64_t s = 0; s < anchors.count(); ++s) {
      Block<T> sums{};
      multiply<1, kBlockRows>(anchors.strip(s) + first * kBlockRows, factors.strip(panel), rows, sums);
      add_sums(of_candidates.strip(panel) + s * kBlockRows * kPanel<T>, sums);
    }
  }

  // The anchors from `first` on += factors times all candidates: units [begin, end) of (strip, block of the tile).
  void add_to_anchors(int64_t first, int64_t blocks, int64_t begin, int64_t end) {
    constexpr int64_t kBlock = kBlockRows * kPanel<T>;
    for (int64_t from = 0; from < factors.count(); from += kSummedPanels<T>) {
      const int64_t until = std::min(from + kSummedPanels<T>, factors.count());
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t strip = unit / blocks, offset = unit % blocks * kBlock;
        Block<T> sums{};
        for (int64_t panel = from; panel < until; ++panel)
          multiply<kPanel<T>, 1>(factors.strip(panel) + offset, candidates.strip(strip) + panel * kPanel<T> * kPanel<T>,
                                 std::min(kPanel<T>, factors.columns - panel * kPanel<T>), sums);
        add_sums(of_anchors.strip(strip) + first * kPanel<T> + offset, sums);
      }
    }
  }
};

// The derivatives of a block by its logits, to `flow`, and, unless `slopes` is null, minus those by its weights. The
// latter are times the candidate's weight and 0 out of scope, since w is a multiple of it.
template <typename T>
void derivatives(const Tiles<T>& tiles, const AnchorState<T>& state, int64_t block, int64_t panel, T* flow, T* slopes) {
  Block<T> logits, weights;
  tiles.compute(block, panel, logits, weights);
  for (int r = 0; r < kBlockRows; ++r)
    for (int v = 0; v < 2; ++v) {
      const int64_t i = block * kBlockRows + r, j = panel * kPanel<T> + v * Lanes<T>::count;
      const int64_t at = r * kPanel<T> + v * Lanes<T>::count;
      const Vector<T> w = weights.at[r][v];
      Vector<T> likelihood = exp(logits.at[r][v] - state.log_mass[i]);
      likelihood = w > 0 ? likelihood : Vector<T>{};
      store<T>(flow + at, w * likelihood * (state.pulled[i] * tiles.scale));
      if (slopes == nullptr) continue;
      const Vector<T> slope = (state.inverse_sum[i] - likelihood) * state.pulled[i];
      const T own = tiles.anchors.weight[i];
      store<T>(slopes + at, tiles.in_scope(slope * (own * load(tiles.candidates.weight.data() + j)), i, j));
    }
}

// Gradients of the unit embeddings and, if wanted, of the scores, handed to `finish_anchor` and `finish_candidate`. The
// last number of a gradient of scores belongs to the one that follows them.
template <typename T, typename FinishAnchor, typename FinishCandidate>
void backward(const Tiles<T>& tiles, const AnchorState<T>& state, bool with_scores, FinishAnchor finish_anchor,
              FinishCandidate finish_candidate) {
  TileGradient<T> embedding(tiles.anchors.embedding_rows, tiles.candidates.embedding_rows);
  std::optional<TileGradient<T>> score;
  if (with_scores) score.emplace(tiles.anchors.score_rows, tiles.candidates.score_rows);
  const int64_t anchors = tiles.anchors.embedding.columns, candidates = tiles.candidates.embedding.columns;
  const int64_t width = embedding.candidates.columns, score_width = with_scores ? score->candidates.columns : 0;
  for (int64_t first = 0; first < anchors; first += kTileRows) {
    const int64_t rows = std::min(kTileRows, anchors - first), blocks = (rows + kBlockRows - 1) / kBlockRows;
    parallel_for(0, embedding.factors.count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t offset = block * kBlockRows * kPanel<T>;
          derivatives(tiles, state, first / kBlockRows + block, panel, embedding.factors.strip(panel) + offset,
                      with_scores ? score->factors.strip(panel) + offset : nullptr);
        }
        embedding.add_to_candidates(panel, first, rows);
        if (with_scores) score->add_to_candidates(panel, first, rows);
      }
    });
    // The units of the embeddings, then those of the scores: all threads wait once.
    const int64_t units = embedding.candidates.count() * blocks;
    const int64_t all = units + (with_scores ? score->candidates.count() * blocks : 0);
    parallel_for(0, all, 1, [&](int64_t begin, int64_t end) {
      embedding.add_to_anchors(first, blocks, begin, std::min(end, units));
      if (with_scores) score->add_to_anchors(first, blocks, std::max(begin, units) - units, end - units);
    });
  }
  parallel_for(0, anchors, 16, [&](int64_t begin, int64_t end) {
    std::vector<T> grad(width), grad_score(score_width);
    for (int64_t i = begin; i < end; ++i) {
      embedding.of_anchors.get_row(i, grad.data());
      if (with_scores) score->of_anchors.get_row(i, grad_score.data());
      finish_anchor(i, grad.data(), grad_score.data());
    }
  });
  parallel_for(0, candidates, 16, [&](int64_t begin, int64_t end) {
    std::vector<T> grad(width), grad_score(score_width);
    for (int64_t q = begin; q < end; ++q) {
      embedding.of_candidates.get_column(q, width, grad.data());
      if (with_scores) score->of_candidates.get_column(q, score_width, grad_score.data());
      finish_candidate(q, grad.data(), grad_score.data());
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> expected_pixel_contrast(
    const Tensor& anchors, const Tensor& positives, const Tensor& candidates,
    const std::optional<Tensor>& anchor_scores, const std::optional<Tensor>& candidate_scores,
    const std::optional<Tensor>& candidate_weight, const std::optional<Tensor>& anchor_group,
    const std::optional<Tensor>& candidate_group, bool same, int64_t num_negatives, const Tensor& temperature,
    bool normalize) {
  const ExpectedInputs in(anchors, positives, candidates, anchor_scores, candidate_scores, candidate_weight,
                          anchor_group, candidate_group, same, normalize, temperature);
  const auto of_anchors = [&] { return recycled_empty({anchors.size(0)}, compute_options(anchors)); };
  const Tensor loss = of_anchors(), pull = of_anchors(), log_mass = of_anchors(), weight_sum = of_anchors();
  by_embedding_dtype("expected_pixel_contrast", in.anchors, [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = Compute<scalar_t>;
    const ExpectedOperands<scalar_t> x(in, {.embeddings = false, .scores = false});
    std::vector<T> positive(x.a.rows), unit(x.a.width), unit_positive(x.a.width);
    for (int64_t i = 0; i < x.a.rows; ++i) {
      scaled_row(x.a.row(i), x.inverse_a[i], x.a.width, unit.data());
      scaled_row(x.p.row(i), x.inverse_p[i], x.a.width, unit_positive.data());
      positive[i] = dot(unit.data(), unit_positive.data(), x.a.width) * static_cast<T>(1 / in.temperature);
    }
    forward(x.tiles(in), positive.data(), num_negatives, loss.mutable_data_ptr<T>(), pull.mutable_data_ptr<T>(),
            log_mass.mutable_data_ptr<T>(), weight_sum.mutable_data_ptr<T>());
  });
  return {loss, pull, log_mass, weight_sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> expected_pixel_contrast_backward(
    const Tensor& grad, const Tensor& anchors, const Tensor& positives, const Tensor& candidates,
    const std::optional<Tensor>& anchor_scores, const std::optional<Tensor>& candidate_scores,
    const std::optional<Tensor>& candidate_weight, const std::optional<Tensor>& anchor_group,
    const std::optional<Tensor>& candidate_group, bool same, const Tensor& pull, const Tensor& log_mass,
    const Tensor& weight_sum, const Tensor& temperature, bool normalize, bool with_scores) {
  const ExpectedInputs in(anchors, positives, candidates, anchor_scores, candidate_scores, candidate_weight,
                          anchor_group, candidate_group, same, normalize, temperature);
  const Tensor grad_a = recycled_empty(anchors.sizes(), options_of(anchors)), g = packed(grad);
  const Tensor grad_p = recycled_empty(positives.sizes(), options_of(positives));
  const Tensor grad_c = recycled_empty(candidates.sizes(), options_of(candidates));
  const auto score_gradient = [&](const Tensor& scores) {
    return with_scores && scores.defined() ? recycled_empty(scores.sizes(), options_of(scores))
                                           : recycled_empty({0}, compute_options(anchors));
  };
  const Tensor grad_ya = score_gradient(in.anchor_scores), grad_yc = score_gradient(in.candidate_scores);
  by_embedding_dtype("expected_pixel_contrast_backward", in.anchors, [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = Compute<scalar_t>;
    const bool scores = with_scores && in.anchor_scores.defined();
    const ExpectedOperands<scalar_t> x(in, {.embeddings = true, .scores = scores});
    const int64_t width = x.a.width;
    AnchorState<T> state;
    for (auto* values : {&state.pulled, &state.log_mass, &state.inverse_sum})
      values->assign(round_up(x.a.rows, kBlockRows), T(0));
    const T *outer = g.const_data_ptr<T>(), *pulls = pull.const_data_ptr<T>();
    const T *mass = log_mass.const_data_ptr<T>(), *total = weight_sum.const_data_ptr<T>();
    for (int64_t i = 0; i < x.a.rows; ++i) {
      if (!(total[i] > 0)) continue;
      state.pulled[i] = outer[i] * pulls[i];
      state.log_mass[i] = mass[i];
      state.inverse_sum[i] = 1 / total[i];
    }
    const T scale = static_cast<T>(1 / in.temperature);
    // Row i of a gradient of scores: what the others' scores add up to, and this row times their count by weight.
    const auto write_scores = [&](const Tensor& out, const CentredScores<T>& own, int64_t i, const T* row) {
      if (!scores) return;
      T* const to = out.mutable_data_ptr<T>() + i * own.width;
      own.row(i, to);
      for (int64_t e = 0; e < own.width; ++e) to[e] = row[e] - row[own.width] * to[e];
    };
    const auto finish_anchor = [&](int64_t i, T* row, const T* score_row) {
      const T attraction = state.pulled[i] * scale;
      std::vector<T> unit(width);
      scaled_row(x.p.row(i), x.inverse_p[i], width, unit.data());
      for (int64_t d = 0; d < width; ++d) row[d] -= attraction * unit[d];
      write_row_gradient(row, x.a.row(i), x.inverse_a[i], normalize, width,
                         grad_a.mutable_data_ptr<scalar_t>() + i * width);
      scaled_row(x.a.row(i), -attraction * x.inverse_a[i], width, unit.data());
      write_row_gradient(unit.data(), x.p.row(i), x.inverse_p[i], normalize, width,
                         grad_p.mutable_data_ptr<scalar_t>() + i * width);
      write_scores(grad_ya, x.scores_a, i, score_row);
    };
    const auto finish_candidate = [&](int64_t q, const T* row, const T* score_row) {
      write_row_gradient(row, x.c.row(q), x.inverse_c[q], normalize, width,
                         grad_c.mutable_data_ptr<scalar_t>() + q * width);
      write_scores(grad_yc, x.scores_c, q, score_row);
    };
    backward(x.tiles(in), state, scores, finish_anchor, finish_candidate);
  });
  return {grad_a, grad_p, grad_c, grad_ya, grad_yc};
}

}  // namespace sskd_fast
