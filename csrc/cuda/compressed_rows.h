// Score vectors in bytes on the GPU; math/compressed_rows.h has the bounds. An anchor's error is stored once more in
// bytes, in units of scale / kFiner, so that what is left of it hardly counts.
#pragma once

#include <cstdint>

#include "common/macros.h"
#include "cuda/device.h"
#include "cuda/numbers.h"

namespace sskd_fast::cuda {

// Units of the second layer in one of the first.
constexpr int kFiner = 254;

// Rows of `stride` bytes: integers, zeros, and three float32 numbers in the last 16 bytes.
struct CompressedRows {
  uint8_t* data;
  int32_t stride;

  SSKD_HOST_DEVICE const uint4* packs(int64_t i) const { return reinterpret_cast<const uint4*>(data + i * stride); }
  SSKD_HOST_DEVICE int32_t count() const { return stride / 16; }  // packs of a row
};

// Bytes of a row of so many numbers: whole sectors of 32 bytes.
inline int64_t compressed_stride(int64_t width) { return (width + 12 + 31) / 32 * 32; }

// Rows less a centre (width) in bytes, and their errors if fine.data is not null.
template <typename S>
void launch_compression(const Rows<S>& rows, const double* centre, const CompressedRows& coarse,
                        const CompressedRows& fine, Stream stream);

}  // namespace sskd_fast::cuda
