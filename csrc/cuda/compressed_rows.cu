// Rows of scores in bytes: a warp writes a row.
#include "cuda/compressed_rows.h"

#include <cmath>

#include "cuda/rows.h"
#include "math/compressed_rows.h"

namespace sskd_fast::cuda {
namespace {

__device__ inline float rounded(float x) { return floorf(fminf(fmaxf(x, -kLargestInteger), kLargestInteger) + 0.5f); }

__device__ inline void write_header(const CompressedRows& rows, int64_t i, float scale, float norm, float error) {
  float* const header = reinterpret_cast<float*>(rows.data + (i + 1) * rows.stride) - 3;
  header[0] = scale, header[1] = norm, header[2] = error;
}

// Reads its row twice. Column `width` and the next ones, up to the header, are zeros.
template <typename S>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    negative_sampling_bytes_kernel(Rows<S> rows, const double* centre, CompressedRows coarse, CompressedRows fine) {
  const int64_t i = own_row();
  if (i >= rows.count) return;  // the whole warp
  const auto centred = [&](int32_t column) {
    if (column >= rows.width) return 0.0f;
    return static_cast<float>(static_cast<double>(widen(rows.row(i)[column])) - centre[column]);
  };
  float largest = 0;
#pragma unroll 1
  for (int32_t column = own_lane(); column < rows.width; column += kWarp)
    largest = fmaxf(largest, fabsf(centred(column)));
  largest = groups_max<1>(largest);
  const float scale = largest / kLargestInteger, inverse = inverse_scale(scale);
  float squares = 0, errors = 0, fine_errors = 0;
#pragma unroll 1
  for (int32_t column = own_lane(); column < coarse.stride - 12; column += kWarp) {
    float x = centred(column);
    squares += x * x;
    float integer = rounded(x * inverse);
    coarse.data[i * coarse.stride + column] = static_cast<uint8_t>(static_cast<int>(integer));
    x -= scale * integer;
    errors += x * x;
    if (fine.data == nullptr) continue;
    integer = rounded(x * (inverse * kFiner));
    fine.data[i * fine.stride + column] = static_cast<uint8_t>(static_cast<int>(integer));
    x -= scale / kFiner * integer;
    fine_errors += x * x;
  }
  // Wider rows have no bounds.
  const float slack = rows.width > kWidestRow ? HUGE_VALF : rounding_slack(rows.width);
  const auto limit = [&](float sum) { return sqrtf(lanes_sum(sum)) * (1 + slack) + slack * largest; };
  const float norm = sqrtf(lanes_sum(squares)), error = limit(errors), fine_error = limit(fine_errors);
  if (own_lane() != 0) return;
  write_header(coarse, i, scale, norm, error);
  if (fine.data != nullptr) write_header(fine, i, scale, norm, fine_error);
}

}  // namespace

template <typename S>
void launch_compression(const Rows<S>& rows, const double* centre, const CompressedRows& coarse,
                        const CompressedRows& fine, Stream stream) {
  launch(negative_sampling_bytes_kernel<S>, warps_for(rows.count), dim3{kRowThreads, 1, 1}, 0, stream, rows, centre,
         coarse, fine);
}

#define SSKD_INSTANTIATE(S)                                                                                        \
  template void launch_compression<S>(const Rows<S>&, const double*, const CompressedRows&, const CompressedRows&, \
                                      Stream);
SSKD_INSTANTIATE(float)
SSKD_INSTANTIATE(double)
SSKD_INSTANTIATE(BFloat16)
SSKD_INSTANTIATE(Half)

}  // namespace sskd_fast::cuda
