// Hardest negatives on the GPU: one warp for each anchor compares it with 32 draws at a time, eight lanes per row.
// Then it sorts the draws.
#include "cuda/hardest_negatives.h"

#include "cuda/bitonic_sort.h"
#include "cuda/compared_rows.h"
#include "math/hardest_negatives.h"
#include "math/pixel_contrast.h"

namespace sskd_fast::cuda {
namespace {

constexpr uint16_t kNobody = UINT16_MAX;  // no draw: behind all others

template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    hardest_negatives_kernel(Rows<S> anchors, Rows<S> candidates, const int32_t* all_drawn, int32_t num_drawn,
                             int32_t num_negatives, int32_t size, Compute<S>* all_similarities, uint16_t* all_order,
                             int32_t* hardest) {
  using T = Compute<S>;
  SSKD_DYNAMIC_SHARED(memory);
  const int64_t anchor = own_row();
  if (anchor >= anchors.count) return;  // the whole warp
  const int lane = own_lane();
  const int32_t* drawn = all_drawn + anchor * num_drawn;
  T* const shared = reinterpret_cast<T*>(memory);
  const int64_t warp = threadIdx.x / kWarp;
  const bool is_shared = all_similarities == nullptr;
  T* const similarity = is_shared ? shared + warp * num_drawn : all_similarities + anchor * num_drawn;
  uint16_t* const order = is_shared ? reinterpret_cast<uint16_t*>(shared + int64_t{kRowWarps} * num_drawn) + warp * size
                                    : all_order + anchor * size;
#pragma unroll 1
  for (int32_t begin = 0; begin < num_drawn; begin += kWarp) {
    const int32_t r = begin + lane, q = r < num_drawn ? drawn[r] : -1;
    if (q < -1 || q >= candidates.count) __trap();
    T sums[2] = {};  // <x, y> and |y|^2
    const auto add = [](T x, T y, T (&sums)[2]) { sums[0] += x * y, sums[1] += y * y; };
    compare_rows(anchors.row(anchor), candidates, q, add, sums);
    const T own = hardness(sums[0], inverse_norm(sums[1]));
    if (r < num_drawn) similarity[r] = own, order[r] = q < 0 ? kNobody : static_cast<uint16_t>(r);
  }
#pragma unroll 1
  for (int32_t r = num_drawn + lane; r < size; r += kWarp) order[r] = kNobody;
  __syncwarp();
  // The most similar first, then by number.
  const auto later = [&](int32_t i, int32_t j) {
    const uint16_t first = order[i], second = order[j];
    if (first == kNobody || second == kNobody) return first == kNobody && second != kNobody;
    const T own = similarity[first], other = similarity[second];
    return own < other || (own == other && first > second);
  };
  const auto exchange = [&](int32_t i, int32_t j) {
    const uint16_t first = order[i];
    order[i] = order[j], order[j] = first;
  };
  bitonic_sort(size, lane, kWarp, later, exchange, [] { __syncwarp(); });
  int32_t* out = hardest + anchor * num_negatives;
#pragma unroll 1
  for (int32_t i = lane; i < num_negatives; i += kWarp) out[i] = order[i] == kNobody ? -1 : drawn[order[i]];
}

template <typename S>
int64_t shared_bytes(int64_t drawn) {
  return kRowWarps * (drawn * static_cast<int64_t>(sizeof(Compute<S>)) +
                      order_size(drawn) * static_cast<int64_t>(sizeof(uint16_t)));
}

}  // namespace

int64_t order_size(int64_t drawn) { return power_of_two(drawn); }

template <typename S>
bool order_is_shared(int64_t drawn) {
  return shared_bytes<S>(drawn) <= kSharedBytes;
}

template <typename S>
void launch_hardest_negatives(const Rows<S>& anchors, const Rows<S>& candidates, const int32_t* drawn,
                              int32_t num_drawn, int32_t num_negatives, Compute<S>* similarities, uint16_t* order,
                              int32_t* hardest, Stream stream) {
  const size_t bytes = similarities != nullptr ? 0 : static_cast<size_t>(shared_bytes<S>(num_drawn));
  launch(hardest_negatives_kernel<S>, warps_for(anchors.count), dim3{kRowThreads, 1, 1}, bytes, stream, anchors,
         candidates, drawn, num_drawn, num_negatives, static_cast<int32_t>(order_size(num_drawn)), similarities, order,
         hardest);
}

#define SSKD_INSTANTIATE(S)                                                                                   \
  template bool order_is_shared<S>(int64_t);                                                                  \
  template void launch_hardest_negatives<S>(const Rows<S>&, const Rows<S>&, const int32_t*, int32_t, int32_t, \
                                            Compute<S>*, uint16_t*, int32_t*, Stream);
SSKD_INSTANTIATE(float)
SSKD_INSTANTIATE(double)
SSKD_INSTANTIATE(BFloat16)
SSKD_INSTANTIATE(Half)
#undef SSKD_INSTANTIATE

}  // namespace sskd_fast::cuda
