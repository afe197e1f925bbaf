// The expected form of pixel contrast: its operands in the order in which the products read them, and a block of logits
// and weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/embeddings.h"
#include "cpu/group_ids.h"
#include "cpu/products.h"
#include "cpu/threads.h"
#include "tensors.h"

namespace sskd_fast {

// The arguments of both passes, made contiguous.
struct ExpectedInputs {
  Tensor anchors, positives, candidates, anchor_scores, candidate_scores, weight, anchor_group, candidate_group;
  bool same, normalize;
  double temperature;

  ExpectedInputs(const Tensor& a, const Tensor& p, const Tensor& c, const std::optional<Tensor>& ya,
                 const std::optional<Tensor>& yq, const std::optional<Tensor>& w, const std::optional<Tensor>& ga,
                 const std::optional<Tensor>& gq, bool same_, bool normalize_, const Tensor& temperature_)
      : anchors(packed(a)), positives(packed(p)), candidates(packed(c)), anchor_scores(packed(ya)),
        candidate_scores(packed(yq)), weight(packed(w)), anchor_group(packed(ga)), candidate_group(packed(gq)),
        same(same_), normalize(normalize_), temperature(checked_temperature(temperature_)) {}
};

// Which operands of sums over a side are wanted: the backward pass needs them.
struct Wanted {
  bool embeddings, scores;
};

// Scores (rows x width, null for none), read minus a centre.
template <typename T>
struct CentredScores {
  const T* data;
  int64_t rows, width;
  const std::vector<T>& centre;

  void row(int64_t i, T* out) const {
    for (int64_t e = 0; e < width; ++e) out[e] = data[i * width + e] - centre[e];
  }
};

// One side of the tiles: the anchors in strips of block rows, or the candidates in strips of panels.
template <typename T, int64_t step>
struct Side {
  Strips<T, step> embedding, score;            // D x rows, E x rows: unit vectors, centred scores
  Strips<T, step> embedding_rows, score_rows;  // rows x D, rows x (E + 1): the same, and a one after every score
  std::vector<T> half, weight, group;  // |score|^2 / 2; factor of the weights, 0 for padding; number of the group

  template <typename S>
  Side(const Embeddings<S>& x, const std::vector<T>& inverse, const CentredScores<T>& scores, const T* factor,
       const std::vector<int32_t>& groups, Wanted wanted)
      : embedding(x.width, x.rows), score(scores.width, scores.rows),
        embedding_rows(wanted.embeddings ? x.rows : 0, x.width),
        score_rows(wanted.scores ? x.rows : 0, scores.width + 1), half(round_up(x.rows, step), T(0)),
        weight(half.size(), T(0)), group(half.size(), T(0)) {
    parallel_for(0, embedding.count(), 4, [&](int64_t begin, int64_t end) {
      std::vector<T> unit(x.width), centred(scores.width + 1);
      for (int64_t i = begin * step; i < end * step; ++i) {
        const bool real = i < x.rows;
        if (real) scaled_row(x.row(i), inverse[i], x.width, unit.data());
        if (real && scores.data != nullptr) scores.row(i, centred.data());
        if (!real) std::fill(unit.begin(), unit.end(), T(0)), std::fill(centred.begin(), centred.end(), T(0));
        embedding.set_column(i, unit.data());
        if (scores.data != nullptr) score.set_column(i, centred.data());
        if (!real) continue;
        half[i] = dot(centred.data(), centred.data(), scores.width) / 2;
        weight[i] = factor == nullptr ? T(1) : factor[i];
        if (!groups.empty()) group[i] = static_cast<T>(groups[i]);
        if (wanted.embeddings) embedding_rows.set_row(i, unit.data());
        centred[scores.width] = T(1);
        if (wanted.scores) score_rows.set_row(i, centred.data());
      }
    });
  }
};

// The tiles: blocks of anchors against panels of candidates.
template <typename T>
struct Tiles {
  const Side<T, kBlockRows>& anchors;
  const Side<T, kPanel<T>>& candidates;
  T scale;  // 1 / temperature
  bool scored, grouped, same;

  // w, or 0 for candidates that are not in the scope of anchor i; j: the first of the candidates.
  Vector<T> in_scope(const Vector<T>& w, int64_t i, int64_t j) const {
    if (!grouped) return w;
    const auto equal = load(candidates.group.data() + j) == anchors.group[i];
    return same ? (equal ? w : Vector<T>{}) : (equal ? Vector<T>{} : w);
  }

  // Logits and weights of a block of anchors against a panel.
  void compute(int64_t block, int64_t panel, Block<T>& logits, Block<T>& weights) const {
    logits = {};
    multiply<1, kBlockRows>(anchors.embedding.strip(block), candidates.embedding.strip(panel), anchors.embedding.rows,
                            logits);
    Block<T> products{};
    if (scored)
      multiply<1, kBlockRows>(anchors.score.strip(block), candidates.score.strip(panel), anchors.score.rows, products);
    for (int r = 0; r < kBlockRows; ++r)
      for (int v = 0; v < 2; ++v) {
        const int64_t i = block * kBlockRows + r, j = panel * kPanel<T> + v * Lanes<T>::count;
        Vector<T> w = load(candidates.half.data() + j) + anchors.half[i] - products.at[r][v];
        w = w > 0 ? w : Vector<T>{};
        if (!scored) w = Vector<T>{} + T(1);
        w *= anchors.weight[i] * load(candidates.weight.data() + j);
        weights.at[r][v] = in_scope(w, i, j);
        logits.at[r][v] *= scale;
      }
  }
};

// Both sides of the tiles, and the norms of the embeddings.
template <typename S>
struct ExpectedOperands {
  using T = Compute<S>;
  Embeddings<S> a, p, c;
  std::vector<T> inverse_a, inverse_p, inverse_c, centre;
  CentredScores<T> scores_a, scores_c;
  std::optional<Side<T, kBlockRows>> anchors;
  std::optional<Side<T, kPanel<T>>> candidates;

  ExpectedOperands(const ExpectedInputs& in, Wanted wanted)
      : a(embeddings<S>(in.anchors)), p(embeddings<S>(in.positives)), c(embeddings<S>(in.candidates)),
        inverse_a(inverse_norms(a, in.normalize)), inverse_p(inverse_norms(p, in.normalize)),
        inverse_c(inverse_norms(c, in.normalize)), scores_a(scores(in.anchor_scores)),
        scores_c(scores(in.candidate_scores)) {
    std::vector<double> mean(scores_c.width, 0.0);
    for (int64_t q = 0; q < scores_c.rows; ++q)
      for (int64_t e = 0; e < scores_c.width; ++e) mean[e] += scores_c.data[q * scores_c.width + e];
    for (double& m : mean) m /= std::max<double>(1, static_cast<double>(c.rows));
    centre.assign(mean.begin(), mean.end());
    std::vector<int32_t> group_a, group_c;
    if (in.anchor_group.defined()) dense_group_ids(in.candidate_group, in.anchor_group, group_c, group_a);
    // Groups are compared as numbers of type T.
    check_value(group_c.empty() || *std::max_element(group_c.begin(), group_c.end()) < (1 << 24),
                "candidate_group: found more than 2^24 groups");
    anchors.emplace(a, inverse_a, scores_a, nullptr, group_a, wanted);
    candidates.emplace(c, inverse_c, scores_c, in.weight.defined() ? in.weight.const_data_ptr<T>() : nullptr, group_c,
                       wanted);
  }
  ExpectedOperands(const ExpectedOperands&) = delete;  // scores_a and scores_c refer to centre

  CentredScores<T> scores(const Tensor& x) {
    if (!x.defined()) return {nullptr, 0, 0, centre};
    return {x.const_data_ptr<T>(), x.size(0), x.size(1), centre};
  }

  Tiles<T> tiles(const ExpectedInputs& in) const {
    return {*anchors,
            *candidates,
            static_cast<T>(1 / in.temperature),
            in.anchor_scores.defined(),
            in.anchor_group.defined(),
            in.same};
  }
};

}  // namespace sskd_fast
