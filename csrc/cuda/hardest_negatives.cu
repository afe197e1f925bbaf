// Hardest negatives on the GPU: one warp for each anchor compares it with 32 draws at a time, eight lanes per row.
// Then it ranks every draw by counting those that precede it.
#include "cuda/hardest_negatives.h"

#include "cuda/compared_rows.h"
#include "math/hardest_negatives.h"
#include "math/pixel_contrast.h"

namespace sskd_fast::cuda {
namespace {

template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    hardest_negatives_kernel(Rows<S> anchors, Rows<S> candidates, const int32_t* all_drawn, int32_t num_drawn,
                             int32_t num_negatives, Compute<S>* all_similarities, int32_t* hardest) {
  using T = Compute<S>;
  SSKD_DYNAMIC_SHARED(memory);
  const int64_t anchor = own_row();
  if (anchor >= anchors.count) return;  // the whole warp
  const int lane = own_lane();
  const int32_t* drawn = all_drawn + anchor * num_drawn;
  T* const similarity = all_similarities != nullptr
                            ? all_similarities + anchor * num_drawn
                            : reinterpret_cast<T*>(memory) + int64_t{threadIdx.x / kWarp} * num_drawn;
  int32_t* out = hardest + anchor * num_negatives;
  for (int32_t r = lane; r < num_negatives; r += kWarp) out[r] = -1;
#pragma unroll 1
  for (int32_t begin = 0; begin < num_drawn; begin += kWarp) {
    const int32_t r = begin + lane, q = r < num_drawn ? drawn[r] : -1;
    if (q < -1 || q >= candidates.count) __trap();
    T sums[2] = {};  // <x, y> and |y|^2
    const auto add = [](T x, T y, T (&sums)[2]) { sums[0] += x * y, sums[1] += y * y; };
    compare_rows(anchors.row(anchor), candidates, q, add, sums);
    const T own = hardness(sums[0], inverse_norm(sums[1]));
    if (r < num_drawn) similarity[r] = own;
  }
  __syncwarp();
  for (int32_t r = lane; r < num_drawn; r += kWarp) {
    if (drawn[r] < 0) continue;
    const T own = similarity[r];
    int32_t rank = 0;
    for (int32_t other = 0; other < num_drawn; ++other)
      rank += drawn[other] >= 0 && (similarity[other] > own || (similarity[other] == own && other < r));
    if (rank < num_negatives) out[rank] = drawn[r];
  }
}

}  // namespace

template <typename S>
bool similarities_are_shared(int64_t drawn) {
  return drawn * kRowWarps * static_cast<int64_t>(sizeof(Compute<S>)) <= kSharedBytes;
}

template <typename S>
void launch_hardest_negatives(const Rows<S>& anchors, const Rows<S>& candidates, const int32_t* drawn,
                              int32_t num_drawn, int32_t num_negatives, Compute<S>* similarities, int32_t* hardest,
                              Stream stream) {
  const size_t bytes = similarities != nullptr ? 0 : static_cast<size_t>(num_drawn) * kRowWarps * sizeof(Compute<S>);
  launch(hardest_negatives_kernel<S>, warps_for(anchors.count), dim3{kRowThreads, 1, 1}, bytes, stream, anchors,
         candidates, drawn, num_drawn, num_negatives, similarities, hardest);
}

#define SSKD_INSTANTIATE(S)                                                                                      \
  template bool similarities_are_shared<S>(int64_t);                                                             \
  template void launch_hardest_negatives<S>(const Rows<S>&, const Rows<S>&, const int32_t*, int32_t, int32_t,    \
                                            Compute<S>*, int32_t*, Stream);
SSKD_INSTANTIATE(float)
SSKD_INSTANTIATE(double)
SSKD_INSTANTIATE(BFloat16)
SSKD_INSTANTIATE(Half)
#undef SSKD_INSTANTIATE

}  // namespace sskd_fast::cuda
