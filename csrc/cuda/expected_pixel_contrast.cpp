// Launches the kernels of expected_pixel_contrast.cu on tensors.
#include "cuda/expected_pixel_contrast.h"

#include <algorithm>

#include "cuda/embeddings.h"
#include "cuda/launching.h"
#include "cuda/operators.h"
#include "tensors.h"

namespace sskd_fast::cuda {
namespace {

// Minimum number of blocks: two for each multiprocessor of a large device. If there are fewer tiles of rows, the
// columns are split. The split depends only on shapes, so the order of the sums does too.
constexpr int64_t kBlocks = 264;

int32_t splits_of(int64_t rows, int64_t columns) {
  const int64_t row_tiles = std::max<int64_t>(1, (rows + kTile - 1) / kTile);
  const int64_t column_tiles = std::max<int64_t>(1, (columns + kTile - 1) / kTile);
  return static_cast<int32_t>(std::min((kBlocks + row_tiles - 1) / row_tiles, column_tiles));
}

int64_t rounded_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// The arguments of both passes.
struct Inputs {
  AlignedEmbeddings anchors, positives, candidates;
  Tensor anchor_scores, candidate_scores, centre, weight, anchor_group, candidate_group, temperature;
  Scope scope;

  Inputs(const Tensor& a, const Tensor& p, const Tensor& c, const std::optional<Tensor>& ya,
         const std::optional<Tensor>& yq, const std::optional<Tensor>& w, const std::optional<Tensor>& ga,
         const std::optional<Tensor>& gq, bool same, const Tensor& t, bool normalize, Stream stream)
      : anchors(a, aligned_width(a), normalize, stream), positives(p, aligned_width(p), normalize, stream),
        candidates(c, aligned_width(c), normalize, stream), anchor_scores(packed(ya)), candidate_scores(packed(yq)),
        weight(packed(w)), anchor_group(packed(ga)), candidate_group(packed(gq)),
        temperature(checked_temperature(t, a)), scope(!ga    ? Scope::kAll
                                                      : same ? Scope::kSame
                                                             : Scope::kOther) {
    if (!candidate_scores.defined()) return;
    // So that half the squared distance keeps its digits if all scores are alike.
    centre = candidate_scores.size(0) > 0 ? mean_row(candidate_scores)
                                          : zeros({candidate_scores.size(1)}, options_of(candidate_scores));
  }
};

// The state of the forward pass and the gradient of the loss.
struct State {
  Tensor grad, pull, log_mass, weight_sum;
};

template <typename T>
const T* data_or_null(const Tensor& x) {
  return x.defined() ? const_data<T>(x) : nullptr;
}

// One side of the tiles in memory.
template <typename S>
struct SideTensors {
  using T = Compute<S>;
  Tensor embedding, score, entries;
  int64_t count;
  int32_t width, score_width = 0;

  SideTensors(const AlignedEmbeddings& rows, const Tensor& scores, const Tensor& centre, const Tensor& weight,
              const Tensor& group, const Tensor& temperature, const State& state, Stream stream)
      : count(rows.rows.size(0)),
        width(static_cast<int32_t>(rounded_up(std::max<int64_t>(1, rows.rows.size(1)), kPartDepth<S>))) {
    const auto part = std::is_same_v<S, double> ? ScalarType::Double : ScalarType::BFloat16;
    const auto options = options_of(rows.rows).with(part);
    if (scores.defined())
      score_width = static_cast<int32_t>(rounded_up(std::max<int64_t>(1, scores.size(1)), kPartDepth<S>));
    embedding = empty({kParts<S>, count, width}, options);
    score = empty({kScoreParts<S>, count, score_width}, options);
    entries = empty({count, static_cast<int64_t>(sizeof(Entry<T>))}, options.with(ScalarType::Byte));
    SideInputs<S> in{};
    in.rows = rows.as<S>();
    in.score = data_or_null<T>(scores), in.centre = data_or_null<T>(centre);
    in.score_width = scores.defined() ? static_cast<int32_t>(scores.size(1)) : 0;
    in.weight = data_or_null<T>(weight), in.group = data_or_null<int64_t>(group);
    in.temperature = data_or_null<double>(temperature);
    in.grad = data_or_null<T>(state.grad), in.pull = data_or_null<T>(state.pull);
    in.log_mass = data_or_null<T>(state.log_mass), in.weight_sum = data_or_null<T>(state.weight_sum);
    launch_expected_side<S>(
        in, {data<Part<S>>(embedding), data<Part<S>>(score), data<Entry<T>>(entries), width, score_width}, stream);
  }

  Side<S> side() const {
    return {const_data<Part<S>>(embedding), const_data<Part<S>>(score), const_data<Entry<T>>(entries), count};
  }
};

template <typename S>
struct Sides {
  SideTensors<S> anchors, candidates;
  Scope scope;

  Sides(const Inputs& in, const State& state, Stream stream)
      : anchors(in.anchors, in.anchor_scores, in.centre, {}, in.anchor_group, in.temperature, state, stream),
        candidates(in.candidates, in.candidate_scores, in.centre, in.weight, in.candidate_group, {}, {}, stream),
        scope(in.scope) {}

  Tiles<S> tiles(bool by_anchor) const {
    const SideTensors<S>&rows = by_anchor ? anchors : candidates, &columns = by_anchor ? candidates : anchors;
    return {rows.side(), columns.side(), rows.width, rows.score_width, scope, splits_of(rows.count, columns.count)};
  }

  // (rows, width): gradient of the unit embeddings (for anchors, times the temperature) or of the scores.
  Tensor gradients(bool by_anchor, bool of_scores, int64_t width, const Options& options, Stream stream) const {
    const Tiles<S> work = tiles(by_anchor);
    const Tensor parts = empty({work.splits, work.rows.count, width}, options);
    launch_expected_gradients<S>(work, of_scores, static_cast<int32_t>(width), data<Compute<S>>(parts), stream);
    if (work.splits == 1) return torch::stable::select(parts, 0, 0);
    const int64_t splits = 0;
    return torch::stable::sum(parts, Sizes(&splits, 1));
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> expected_pixel_contrast(
    const Tensor& anchors, const Tensor& positives, const Tensor& candidates,
    const std::optional<Tensor>& anchor_scores, const std::optional<Tensor>& candidate_scores,
    const std::optional<Tensor>& candidate_weight, const std::optional<Tensor>& anchor_group,
    const std::optional<Tensor>& candidate_group, bool same, int64_t num_negatives, const Tensor& temperature,
    bool normalize) {
  const OnDevice device(anchors);
  const Stream stream = device.stream();
  const Inputs in(anchors, positives, candidates, anchor_scores, candidate_scores, candidate_weight, anchor_group,
                  candidate_group, same, temperature, normalize, stream);
  const auto of_anchors = [&] { return empty({anchors.size(0)}, compute_options(anchors)); };
  const Tensor loss = of_anchors(), pull = of_anchors(), log_mass = of_anchors(), weight_sum = of_anchors();
  with_storage(anchors.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Compute<S>;
    const Sides<S> sides(in, {}, stream);
    const Tiles<S> tiles = sides.tiles(true);
    const Tensor sums = empty({3, tiles.splits, tiles.rows.count}, compute_options(anchors));
    launch_expected_sums<S>(tiles, data<T>(sums), stream);
    launch_expected_loss<S>(
        {in.anchors.as<S>(), in.positives.as<S>(), const_data<double>(temperature), num_negatives, const_data<T>(sums),
         tiles.splits, data<T>(loss), data<T>(pull), data<T>(log_mass), data<T>(weight_sum)},
        stream);
  });
  return {loss, pull, log_mass, weight_sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> expected_pixel_contrast_backward(
    const Tensor& grad, const Tensor& anchors, const Tensor& positives, const Tensor& candidates,
    const std::optional<Tensor>& anchor_scores, const std::optional<Tensor>& candidate_scores,
    const std::optional<Tensor>& candidate_weight, const std::optional<Tensor>& anchor_group,
    const std::optional<Tensor>& candidate_group, bool same, const Tensor& pull, const Tensor& log_mass,
    const Tensor& weight_sum, const Tensor& temperature, bool normalize, bool with_scores) {
  const OnDevice device(anchors);
  const Stream stream = device.stream();
  const Inputs in(anchors, positives, candidates, anchor_scores, candidate_scores, candidate_weight, anchor_group,
                  candidate_group, same, temperature, normalize, stream);
  const State state{packed(grad), packed(pull), packed(log_mass), packed(weight_sum)};
  const Tensor grad_a = torch::stable::empty_like(in.anchors.rows),
               grad_p = torch::stable::empty_like(in.positives.rows);
  const Tensor grad_c = torch::stable::empty_like(in.candidates.rows);
  const auto options = compute_options(anchors);
  Tensor grad_ya = empty({0}, options), grad_yc = grad_ya;
  with_storage(anchors.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Compute<S>;
    const Sides<S> sides(in, state, stream);
    const int64_t width = in.anchors.rows.size(1);
    const Tensor pulled = sides.gradients(true, false, width, options, stream);
    launch_anchor_gradients<S>(
        {in.anchors.as<S>(), in.positives.as<S>(), const_data<double>(temperature), normalize, true,
         const_data<T>(state.grad), const_data<T>(state.pull), const_data<T>(pulled), data<S>(grad_a), data<S>(grad_p)},
        stream);
    const Tensor pushed = sides.gradients(false, false, width, options, stream);
    launch_expected_rows<S>(in.candidates.as<S>(), const_data<T>(pushed), normalize, data<S>(grad_c), stream);
    if (!with_scores || !in.anchor_scores.defined()) return;
    grad_ya = sides.gradients(true, true, in.anchor_scores.size(1), options, stream);
    grad_yc = sides.gradients(false, true, in.candidate_scores.size(1), options, stream);
  });
  const int64_t width = anchors.size(1);
  return {without_padding(grad_a, width), without_padding(grad_p, width), without_padding(grad_c, width), grad_ya,
          grad_yc};
}

}  // namespace sskd_fast::cuda
