// The expected form of pixel contrast on the CPU: tiles of anchors against panels of candidates. The similarities and
// the weights of a tile are in registers, with an online log-sum-exp. The backward pass computes the tiles again, once
// by anchors and once by candidates, so one thread sums each gradient in a fixed order.

#include <limits>
#include <optional>
#include <vector>

#include "cpu/embeddings.h"
#include "cpu/group_ids.h"
#include "cpu/operators.h"
#include "cpu/products.h"
#include "cpu/recycled.h"
#include "cpu/threads.h"
#include "math/pixel_contrast.h"
#include "tensors.h"

namespace sskd_fast {
namespace {

// Rows that a thread holds while it loops over the panels.
constexpr int64_t kTileRows = 64;

// One side of the tiles, the anchors or the candidates.
template <typename T>
struct Side {
  Operand<T> embedding, score;  // unit rows; scores minus the centre of the candidates' scores
  std::vector<T> half, weight, group;  // |score|^2 / 2; factor of the weights, 0 for padding; number of the group

  template <typename S>
  Side(const Embeddings<S>& x, const std::vector<T>& inverse, const T* scores, int64_t width,
       const std::vector<T>& centre, const T* factor, const std::vector<int32_t>* groups)
      : embedding(x.rows, x.width), score(scores == nullptr ? 0 : x.rows, width), half(embedding.padded_rows, T(0)),
        weight(embedding.padded_rows, T(0)), group(embedding.padded_rows, T(0)) {
    parallel_for(0, embedding.padded_rows / kPanel<T>, 4, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        embedding.fill(p, [&](int64_t i, T* out) { scaled_row(x.row(i), inverse[i], x.width, out); });
        if (scores != nullptr)
          score.fill(p, [&](int64_t i, T* out) {
            for (int64_t e = 0; e < width; ++e) out[e] = scores[i * width + e] - centre[e];
            half[i] = dot(out, out, width) / 2;
          });
      }
    });
    for (int64_t i = 0; i < x.rows; ++i) {
      weight[i] = factor == nullptr ? T(1) : factor[i];
      if (groups != nullptr) group[i] = static_cast<T>((*groups)[i]);
    }
  }
};

// The tiles of a pair of sides: rows against panels of columns.
template <typename T>
struct Tiles {
  const Side<T>&rows, &columns;
  T scale;  // 1 / temperature
  bool scored, grouped, same;

  // Logits and weights of the rows from i on against a panel.
  void compute(int64_t i, int64_t panel, Block<T>& logits, Block<T>& weights) const {
    constexpr int64_t lanes = Lanes<T>::count;
    logits = {};
    multiply(rows.embedding.row(i), rows.embedding.padded_width, columns.embedding.panel(panel), kPanel<T>,
             rows.embedding.width, logits);
    Block<T> products{};
    if (scored)
      multiply(rows.score.row(i), rows.score.padded_width, columns.score.panel(panel), kPanel<T>, rows.score.width,
               products);
    for (int r = 0; r < kBlockRows; ++r)
      for (int v = 0; v < 2; ++v) {
        const int64_t j = panel * kPanel<T> + v * lanes;
        Vector<T> w = load(columns.half.data() + j) + rows.half[i + r] - products.at[r][v];
        w = w > 0 ? w : Vector<T>{};
        if (!scored) w = Vector<T>{} + T(1);
        w *= rows.weight[i + r] * load(columns.weight.data() + j);
        if (grouped) {
          const auto equal = load(columns.group.data() + j) == rows.group[i + r];
          w = same ? (equal ? w : Vector<T>{}) : (equal ? Vector<T>{} : w);
        }
        weights.at[r][v] = w;
        logits.at[r][v] *= scale;
      }
  }
};

template <typename T>
T largest(const Vector<T>& x) {
  T result = x[0];
  for (int i = 1; i < Lanes<T>::count; ++i) result = std::max(result, x[i]);
  return result;
}

template <typename T>
void forward(const Tiles<T>& tiles, const T* positive, int64_t num_negatives, T* loss, T* pull, T* log_mass,
             T* weight_sum) {
  const int64_t anchors = tiles.rows.embedding.rows, panels = tiles.columns.embedding.padded_rows / kPanel<T>;
  parallel_for(0, (anchors + kTileRows - 1) / kTileRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kTileRows; first < std::min(end * kTileRows, anchors); first += kTileRows) {
      const int64_t rows = std::min(kTileRows, tiles.rows.embedding.padded_rows - first);
      T top[kTileRows], mass[kTileRows] = {}, total[kTileRows] = {};
      std::fill_n(top, kTileRows, std::numeric_limits<T>::lowest());
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t i = 0; i < rows; i += kBlockRows) {
          Block<T> logits, weights;
          tiles.compute(first + i, panel, logits, weights);
          for (int r = 0; r < kBlockRows; ++r) {
            T higher = top[i + r];
            for (int v = 0; v < 2; ++v) {
              const Vector<T> none = Vector<T>{} + std::numeric_limits<T>::lowest();
              logits.at[r][v] = weights.at[r][v] > 0 ? logits.at[r][v] : none;
              higher = std::max(higher, largest<T>(logits.at[r][v]));
            }
            mass[i + r] *= std::exp(top[i + r] - higher);
            for (int v = 0; v < 2; ++v) {
              mass[i + r] += sum(exp(logits.at[r][v] - higher) * weights.at[r][v]);
              total[i + r] += sum(weights.at[r][v]);
            }
            top[i + r] = higher;
          }
        }
      for (int64_t i = first; i < std::min(first + kTileRows, anchors); ++i) {
        log_mass[i] = std::log(mass[i - first]) + top[i - first];
        weight_sum[i] = total[i - first];
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

// out (kBlockRows rows of x's padded width) += sign * factors times the rows of x of a panel.
template <typename T>
void accumulate(const Block<T>& factors, const Operand<T>& x, int64_t panel, T sign, T* out) {
  constexpr int64_t lanes = Lanes<T>::count;
  T left[kBlockRows][kPanel<T>];
  for (int r = 0; r < kBlockRows; ++r)
    for (int v = 0; v < 2; ++v) store<T>(left[r] + v * lanes, factors.at[r][v] * sign);
  for (int64_t d = 0; d < x.padded_width; d += kPanel<T>) {
    Block<T> sums;
    for (int r = 0; r < kBlockRows; ++r)
      for (int v = 0; v < 2; ++v) sums.at[r][v] = load(out + r * x.padded_width + d + v * lanes);
    multiply(left[0], kPanel<T>, x.row(panel * kPanel<T>) + d, x.padded_width, kPanel<T>, sums);
    for (int r = 0; r < kBlockRows; ++r)
      for (int v = 0; v < 2; ++v) store<T>(out + r * x.padded_width + d + v * lanes, sums.at[r][v]);
  }
}

// Gradients of the rows (of their unit embeddings and, if wanted, of their scores), handed to `finish`. The anchors are
// the rows or the columns.
template <bool anchors_are_rows, typename T, typename Finish>
void backward(const Tiles<T>& tiles, const AnchorState<T>& state, bool with_scores, Finish finish) {
  constexpr int64_t lanes = Lanes<T>::count;
  const Operand<T>&embedding = tiles.columns.embedding, &score = tiles.columns.score;
  const int64_t count = tiles.rows.embedding.rows, panels = embedding.padded_rows / kPanel<T>;
  parallel_for(0, (count + kTileRows - 1) / kTileRows, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> grad(kTileRows * embedding.padded_width), grad_score(kTileRows * score.padded_width);
    std::vector<T> slope_sum(kTileRows);
    for (int64_t first = begin * kTileRows; first < std::min(end * kTileRows, count); first += kTileRows) {
      const int64_t rows = std::min(kTileRows, tiles.rows.embedding.padded_rows - first);
      std::fill(grad.begin(), grad.end(), T(0));
      std::fill(grad_score.begin(), grad_score.end(), T(0));
      std::fill(slope_sum.begin(), slope_sum.end(), T(0));
      for (int64_t panel = 0; panel < panels; ++panel)
        for (int64_t i = 0; i < rows; i += kBlockRows) {
          Block<T> logits, weights, slopes;
          tiles.compute(first + i, panel, logits, weights);
          for (int r = 0; r < kBlockRows; ++r)
            for (int v = 0; v < 2; ++v) {
              const int64_t j = panel * kPanel<T> + v * lanes;
              const auto of_anchor = [&](const std::vector<T>& x) {
                return anchors_are_rows ? Vector<T>{} + x[first + i + r] : load(x.data() + j);
              };
              const Vector<T> pulled = of_anchor(state.pulled), w = weights.at[r][v];
              Vector<T> likelihood = exp(logits.at[r][v] - of_anchor(state.log_mass));
              likelihood = w > 0 ? likelihood : Vector<T>{};
              weights.at[r][v] = w * likelihood * pulled * tiles.scale;
              if (!with_scores) continue;
              // d loss / d w, times the candidate's weight if in scope, since w is a multiple of it.
              Vector<T> slope = (likelihood - of_anchor(state.inverse_sum)) * pulled;
              slope *= tiles.rows.weight[first + i + r] * load(tiles.columns.weight.data() + j);
              if (tiles.grouped) {
                const auto equal = load(tiles.columns.group.data() + j) == tiles.rows.group[first + i + r];
                slope = tiles.same ? (equal ? slope : Vector<T>{}) : (equal ? Vector<T>{} : slope);
              }
              slopes.at[r][v] = slope;
              slope_sum[i + r] += sum(slope);
            }
          accumulate(weights, embedding, panel, T(1), grad.data() + i * embedding.padded_width);
          if (with_scores) accumulate(slopes, score, panel, T(-1), grad_score.data() + i * score.padded_width);
        }
      for (int64_t i = first; i < std::min(first + kTileRows, count); ++i) {
        T* own = grad_score.data() + (i - first) * score.padded_width;
        if (with_scores)
          for (int64_t e = 0; e < score.width; ++e) own[e] += slope_sum[i - first] * tiles.rows.score.row(i)[e];
        finish(i, grad.data() + (i - first) * embedding.padded_width, own);
      }
    }
  });
}

// The arguments of both passes, made contiguous.
struct Inputs {
  Tensor anchors, positives, candidates, anchor_scores, candidate_scores, weight, anchor_group, candidate_group;
  bool same, normalize;
  double temperature;

  Inputs(const Tensor& a, const Tensor& p, const Tensor& c, const std::optional<Tensor>& ya,
         const std::optional<Tensor>& yq, const std::optional<Tensor>& w, const std::optional<Tensor>& ga,
         const std::optional<Tensor>& gq, bool same_, bool normalize_, const Tensor& temperature_)
      : anchors(packed(a)), positives(packed(p)), candidates(packed(c)), anchor_scores(packed(ya)),
        candidate_scores(packed(yq)), weight(packed(w)), anchor_group(packed(ga)), candidate_group(packed(gq)),
        same(same_), normalize(normalize_), temperature(checked_temperature(temperature_)) {}
};

// Both sides of the tiles, and the norms of the embeddings.
template <typename S>
struct Operands {
  using T = Compute<S>;
  Embeddings<S> a, p, c;
  std::vector<T> inverse_a, inverse_p, inverse_c, centre;
  std::vector<int32_t> group_a, group_c;
  std::optional<Side<T>> anchors, candidates;
  bool scored, grouped;

  explicit Operands(const Inputs& in)
      : a(embeddings<S>(in.anchors)), p(embeddings<S>(in.positives)), c(embeddings<S>(in.candidates)),
        inverse_a(inverse_norms(a, in.normalize)), inverse_p(inverse_norms(p, in.normalize)),
        inverse_c(inverse_norms(c, in.normalize)), scored(in.anchor_scores.defined()),
        grouped(in.anchor_group.defined()) {
    const int64_t width = scored ? in.anchor_scores.size(1) : 0;
    const T* ya = scored ? in.anchor_scores.const_data_ptr<T>() : nullptr;
    const T* yc = scored ? in.candidate_scores.const_data_ptr<T>() : nullptr;
    std::vector<double> mean(width, 0.0);
    for (int64_t q = 0; scored && q < c.rows; ++q)
      for (int64_t e = 0; e < width; ++e) mean[e] += yc[q * width + e];
    for (double& m : mean) m /= std::max<double>(1, static_cast<double>(c.rows));
    centre.assign(mean.begin(), mean.end());
    if (grouped) dense_group_ids(in.candidate_group, in.anchor_group, group_c, group_a);
    // Groups are compared as numbers of type T.
    check_value(group_c.empty() || *std::max_element(group_c.begin(), group_c.end()) < (1 << 24),
                "candidate_group: found more than 2^24 groups");
    anchors.emplace(a, inverse_a, ya, width, centre, nullptr, grouped ? &group_a : nullptr);
    candidates.emplace(c, inverse_c, yc, width, centre, in.weight.defined() ? in.weight.const_data_ptr<T>() : nullptr,
                       grouped ? &group_c : nullptr);
  }

  Tiles<T> tiles(bool by_anchor, const Inputs& in) const {
    const T scale = static_cast<T>(1 / in.temperature);
    return by_anchor ? Tiles<T>{*anchors, *candidates, scale, scored, grouped, in.same}
                     : Tiles<T>{*candidates, *anchors, scale, scored, grouped, in.same};
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> expected_pixel_contrast(
    const Tensor& anchors, const Tensor& positives, const Tensor& candidates,
    const std::optional<Tensor>& anchor_scores, const std::optional<Tensor>& candidate_scores,
    const std::optional<Tensor>& candidate_weight, const std::optional<Tensor>& anchor_group,
    const std::optional<Tensor>& candidate_group, bool same, int64_t num_negatives, const Tensor& temperature,
    bool normalize) {
  const Inputs in(anchors, positives, candidates, anchor_scores, candidate_scores, candidate_weight, anchor_group,
                  candidate_group, same, normalize, temperature);
  const auto of_anchors = [&] { return recycled_empty({anchors.size(0)}, compute_options(anchors)); };
  const Tensor loss = of_anchors(), pull = of_anchors(), log_mass = of_anchors(), weight_sum = of_anchors();
  by_embedding_dtype("expected_pixel_contrast", in.anchors, [&](auto zero) {
    using scalar_t = decltype(zero);
    using T = Compute<scalar_t>;
    const Operands<scalar_t> x(in);
    std::vector<T> positive(x.a.rows), unit(x.a.width);
    for (int64_t i = 0; i < x.a.rows; ++i) {
      scaled_row(x.p.row(i), x.inverse_p[i], x.p.width, unit.data());
      positive[i] = dot(x.anchors->embedding.row(i), unit.data(), x.p.width) * static_cast<T>(1 / in.temperature);
    }
    forward(x.tiles(true, in), positive.data(), num_negatives, loss.mutable_data_ptr<T>(), pull.mutable_data_ptr<T>(),
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
  const Inputs in(anchors, positives, candidates, anchor_scores, candidate_scores, candidate_weight, anchor_group,
                  candidate_group, same, normalize, temperature);
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
    const Operands<scalar_t> x(in);
    const int64_t width = x.a.width, score_width = x.anchors->score.width;
    const bool scores = with_scores && x.scored;
    AnchorState<T> state;
    for (auto* values : {&state.pulled, &state.log_mass, &state.inverse_sum})
      values->assign(x.anchors->embedding.padded_rows, T(0));
    const T *outer = g.const_data_ptr<T>(), *pulls = pull.const_data_ptr<T>();
    const T *mass = log_mass.const_data_ptr<T>(), *total = weight_sum.const_data_ptr<T>();
    for (int64_t i = 0; i < x.a.rows; ++i) {
      if (!(total[i] > 0)) continue;
      state.pulled[i] = outer[i] * pulls[i];
      state.log_mass[i] = mass[i];
      state.inverse_sum[i] = 1 / total[i];
    }
    const T scale = static_cast<T>(1 / in.temperature);
    const auto copy_scores = [&](const Tensor& out, int64_t i, const T* row) {
      if (scores) std::copy_n(row, score_width, out.mutable_data_ptr<T>() + i * score_width);
    };
    backward<true>(x.tiles(true, in), state, scores, [&](int64_t i, T* row, const T* score_row) {
      const T attraction = state.pulled[i] * scale;
      std::vector<T> positive(width);
      scaled_row(x.p.row(i), x.inverse_p[i], width, positive.data());
      for (int64_t d = 0; d < width; ++d) row[d] -= attraction * positive[d];
      write_row_gradient(row, x.a.row(i), x.inverse_a[i], normalize, width,
                         grad_a.mutable_data_ptr<scalar_t>() + i * width);
      for (int64_t d = 0; d < width; ++d) positive[d] = -attraction * x.anchors->embedding.row(i)[d];
      write_row_gradient(positive.data(), x.p.row(i), x.inverse_p[i], normalize, width,
                         grad_p.mutable_data_ptr<scalar_t>() + i * width);
      copy_scores(grad_ya, i, score_row);
    });
    backward<false>(x.tiles(false, in), state, scores, [&](int64_t q, T* row, const T* score_row) {
      write_row_gradient(row, x.c.row(q), x.inverse_c[q], normalize, width,
                         grad_c.mutable_data_ptr<scalar_t>() + q * width);
      copy_scores(grad_yc, q, score_row);
    });
  });
  return {grad_a, grad_p, grad_c, grad_ya, grad_yc};
}

}  // namespace sskd_fast
