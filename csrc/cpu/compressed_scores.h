// Score vectors in bytes on the CPU; math/compressed_rows.h has the bounds.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/buffer.h"
#include "cpu/lanes.h"
#include "math/compressed_rows.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace sskd_fast {

struct CompressedRow {
  float scale, norm, error, ratio;  // of the candidate: ratio of its weight to the spread envelope
};

// q' = scale * integers + error; returns the header, and writes the integers plus `offset` to bytes. scratch: width
// numbers.
template <typename T>
CompressedRow compress_row(const T* row, const T* centre, int64_t width, float* __restrict__ scratch,
                           uint8_t* __restrict__ bytes, int32_t offset) {
  for (int64_t e = 0; e < width; ++e) scratch[e] = static_cast<float>(row[e] - centre[e]);
  const float largest = largest_magnitude(scratch, width), square = dot(scratch, scratch, width);
  const float scale = largest / kLargestInteger, inverse = inverse_scale(scale);
  for (int64_t e = 0; e < width; ++e) {
    const float scaled = scratch[e] * inverse, above = scaled > -kLargestInteger ? scaled : -kLargestInteger;
    const float integer = std::nearbyint(above < kLargestInteger ? above : kLargestInteger);
    bytes[e] = static_cast<uint8_t>(static_cast<int32_t>(integer) + offset);
    scratch[e] -= scale * integer;
  }
  const float error = std::sqrt(dot(scratch, scratch, width)), slack = rounding_slack(width);
  return {scale, std::sqrt(square), error * (1 + slack) + slack * largest, 1.0f};
}

// For n candidates: the product of their integers with the anchor's, and the fields of their headers.
template <int n>
struct CompressedProducts {
  float product[n], scale[n], norm[n], error[n], ratio[n];
};

class CompressedScores {
 public:
  static constexpr int64_t kHeader = sizeof(CompressedRow);

  // Rows are read in whole chunks of 64 bytes, the last one past its end.
  explicit CompressedScores(int64_t rows, int64_t width)
      : stride_((kHeader + width + 63) / 64 * 64), chunks_((width + 63) / 64), bytes_(rows * stride_ + 64, true) {
    std::memset(bytes_.data() + rows * stride_, 0, 64);
  }

  template <typename T>
  void set_row(int64_t q, const T* row, const T* centre, int64_t width, float ratio, float* scratch) {
    uint8_t* out = bytes_.data() + q * stride_;
    CompressedRow header = compress_row(row, centre, width, scratch, out + kHeader, 128);
    header.ratio = ratio;
    std::memcpy(out, &header, sizeof(header));
  }

  void prefetch(int64_t q) const {
    for (int64_t byte = 0; byte < stride_; byte += 64) __builtin_prefetch(bytes_.data() + q * stride_ + byte);
  }

  int64_t chunks() const { return chunks_; }

  // For n candidates, n a multiple of 4: <integers, anchor> and the fields of the header. anchor: 64 * chunks() bytes,
  // zero beyond the width; offset: 128 times their sum.
  template <int n>
  void products(const int32_t* candidates, const int8_t* anchor, int32_t offset, CompressedProducts<n>& out) const {
    for (int i = 0; i < n; i += 4) {
      int32_t total[4];
      const uint8_t* rows[4];
      for (int64_t j = 0; j < 4; ++j) {
        rows[j] = bytes_.data() + candidates[i + j] * stride_;
        CompressedRow header;
        std::memcpy(&header, rows[j], sizeof(header));
        out.scale[i + j] = header.scale, out.norm[i + j] = header.norm;
        out.error[i + j] = header.error, out.ratio[i + j] = header.ratio;
      }
      product4(rows, anchor, total);
      for (int64_t j = 0; j < 4; ++j) out.product[i + j] = static_cast<float>(total[j] - offset);
    }
  }

 private:
#if defined(__AVX2__)
  static __m256i half_chunk(const void* bytes, int64_t i) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(bytes) + i);
  }
  static __m128i quarter_chunk(const void* bytes, int64_t i) {
    return _mm_loadu_si128(static_cast<const __m128i*>(bytes) + i);
  }
#endif

  void product4(const uint8_t* const* rows, const int8_t* anchor, int32_t* total) const {
#if defined(__AVX512BW__)
    __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
#if defined(__AVX512VNNI__)
    for (int64_t i = 0; i < chunks_; ++i) {
      const __m512i own = _mm512_loadu_si512(anchor + 64 * i);
      for (int j = 0; j < 4; ++j)
        sum[j] = _mm512_dpbusd_epi32(sum[j], _mm512_loadu_si512(rows[j] + kHeader + 64 * i), own);
    }
#else
    for (int64_t i = 0; i < 2 * chunks_; ++i) {
      const __m512i own = _mm512_cvtepi8_epi16(half_chunk(anchor, i));
      for (int j = 0; j < 4; ++j)
        sum[j] =
            _mm512_add_epi32(sum[j], _mm512_madd_epi16(_mm512_cvtepu8_epi16(half_chunk(rows[j] + kHeader, i)), own));
    }
#endif
    // Transpose and add within the quarters of the registers, then the quarters.
    const __m512i even = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[0], sum[1]), _mm512_unpackhi_epi32(sum[0], sum[1]));
    const __m512i odd = _mm512_add_epi32(_mm512_unpacklo_epi32(sum[2], sum[3]), _mm512_unpackhi_epi32(sum[2], sum[3]));
    const __m512i both = _mm512_add_epi32(_mm512_unpacklo_epi64(even, odd), _mm512_unpackhi_epi64(even, odd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
    const __m128i quarter = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(total), quarter);
#elif defined(__AVX2__)
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t i = 0; i < 4 * chunks_; ++i) {
      const __m256i own = _mm256_cvtepi8_epi16(quarter_chunk(anchor, i));
      for (int j = 0; j < 4; ++j)
        sum[j] =
            _mm256_add_epi32(sum[j], _mm256_madd_epi16(_mm256_cvtepu8_epi16(quarter_chunk(rows[j] + kHeader, i)), own));
    }
    const __m256i both = _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]), _mm256_hadd_epi32(sum[2], sum[3]));
    const __m128i quarter = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(total), quarter);
#else
    for (int j = 0; j < 4; ++j) {
      total[j] = 0;
      for (int64_t i = 0; i < 64 * chunks_; ++i)
        total[j] += static_cast<int32_t>(rows[j][kHeader + i]) * static_cast<int32_t>(anchor[i]);
    }
#endif
  }

  int64_t stride_, chunks_;
  Buffer<uint8_t> bytes_;
};

}  // namespace sskd_fast
