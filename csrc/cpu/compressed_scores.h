// Score vectors in bytes on the CPU; math/compressed_rows.h has the bounds.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

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
  // A row: integers, then the header at the end of its last cache line. Integers are read in whole lines; the anchor's
  // are 0 from the width on. With the header in front, the last read would reach into the line of another row.
  explicit CompressedScores(int64_t rows, int64_t width)
      : stride_((width + static_cast<int64_t>(sizeof(CompressedRow)) + 63) / 64 * 64), chunks_((width + 63) / 64),
        header_(stride_ - static_cast<int64_t>(sizeof(CompressedRow))), bytes_(rows * stride_, true) {}

  template <typename T>
  void set_row(int64_t q, const T* row, const T* centre, int64_t width, float ratio, float* scratch) {
    uint8_t* out = bytes_.data() + q * stride_;
    CompressedRow header = compress_row(row, centre, width, scratch, out, 128);
    header.ratio = ratio;
    std::memcpy(out + header_, &header, sizeof(header));
  }

  void prefetch(int64_t q) const {
    for (int64_t byte = 0; byte < stride_; byte += 64) __builtin_prefetch(bytes_.data() + q * stride_ + byte);
  }

  int64_t chunks() const { return chunks_; }

  // For n candidates, n a multiple of 4: <integers, anchor> and the fields of the header. anchor: 64 * chunks() bytes,
  // zero beyond the width; offset: 128 times their sum.
  template <int n>
  void products(const int32_t* candidates, const int8_t* anchor, int32_t offset, CompressedProducts<n>& out) const {
    // Up to 192 numbers: loops over a known number of chunks are unrolled, and the sums stay in their registers.
    switch (chunks_) {
      case 1: return products_of<n>(candidates, anchor, offset, out, std::integral_constant<int64_t, 1>());
      case 2: return products_of<n>(candidates, anchor, offset, out, std::integral_constant<int64_t, 2>());
      case 3: return products_of<n>(candidates, anchor, offset, out, std::integral_constant<int64_t, 3>());
      default: return products_of<n>(candidates, anchor, offset, out, chunks_);
    }
  }

 private:
  template <int n, typename Count>
  void products_of(const int32_t* candidates, const int8_t* anchor, int32_t offset, CompressedProducts<n>& out,
                   Count chunks) const {
    for (int i = 0; i < n; i += 4) {
      int32_t total[4];
      const uint8_t* rows[4];
      for (int64_t j = 0; j < 4; ++j) rows[j] = bytes_.data() + candidates[i + j] * stride_;
      // A field of four headers in a register each: one by one, the fields take as long as the products.
      using Four = float __attribute__((vector_size(16)));
      static_assert(sizeof(CompressedRow) == sizeof(Four));
      Four header[4];
      for (int64_t j = 0; j < 4; ++j) std::memcpy(&header[j], rows[j] + header_, sizeof(Four));
      const Four a = __builtin_shuffle(header[0], header[1], Places{0, 4, 1, 5});
      const Four b = __builtin_shuffle(header[2], header[3], Places{0, 4, 1, 5});
      const Four c = __builtin_shuffle(header[0], header[1], Places{2, 6, 3, 7});
      const Four d = __builtin_shuffle(header[2], header[3], Places{2, 6, 3, 7});
      const Four fields[4] = {__builtin_shuffle(a, b, Places{0, 1, 4, 5}), __builtin_shuffle(a, b, Places{2, 3, 6, 7}),
                              __builtin_shuffle(c, d, Places{0, 1, 4, 5}), __builtin_shuffle(c, d, Places{2, 3, 6, 7})};
      float* const places[4] = {out.scale, out.norm, out.error, out.ratio};
      for (int f = 0; f < 4; ++f) std::memcpy(places[f] + i, &fields[f], sizeof(Four));
      product4(rows, anchor, total, chunks);
      for (int64_t j = 0; j < 4; ++j) out.product[i + j] = static_cast<float>(total[j] - offset);
    }
  }

  using Places = int32_t __attribute__((vector_size(16)));

#if defined(__AVX2__)
  static __m256i half_chunk(const void* bytes, int64_t i) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(bytes) + i);
  }
  static __m128i quarter_chunk(const void* bytes, int64_t i) {
    return _mm_loadu_si128(static_cast<const __m128i*>(bytes) + i);
  }
#endif

  template <typename Count>
  static void product4(const uint8_t* const* rows, const int8_t* anchor, int32_t* total, Count chunks) {
#if defined(__AVX512BW__)
    __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
#if defined(__AVX512VNNI__)
    for (int64_t i = 0; i < chunks; ++i) {
      const __m512i own = _mm512_loadu_si512(anchor + 64 * i);
      for (int j = 0; j < 4; ++j) sum[j] = _mm512_dpbusd_epi32(sum[j], _mm512_loadu_si512(rows[j] + 64 * i), own);
    }
#else
    for (int64_t i = 0; i < 2 * chunks; ++i) {
      const __m512i own = _mm512_cvtepi8_epi16(half_chunk(anchor, i));
      for (int j = 0; j < 4; ++j)
        sum[j] = _mm512_add_epi32(sum[j], _mm512_madd_epi16(_mm512_cvtepu8_epi16(half_chunk(rows[j], i)), own));
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
    for (int64_t i = 0; i < 4 * chunks; ++i) {
      const __m256i own = _mm256_cvtepi8_epi16(quarter_chunk(anchor, i));
      for (int j = 0; j < 4; ++j)
        sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(_mm256_cvtepu8_epi16(quarter_chunk(rows[j], i)), own));
    }
    const __m256i both = _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]), _mm256_hadd_epi32(sum[2], sum[3]));
    const __m128i quarter = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(total), quarter);
#else
    for (int j = 0; j < 4; ++j) {
      total[j] = 0;
      for (int64_t i = 0; i < 64 * chunks; ++i)
        total[j] += static_cast<int32_t>(rows[j][i]) * static_cast<int32_t>(anchor[i]);
    }
#endif
  }

  int64_t stride_, chunks_, header_;
  Buffer<uint8_t> bytes_;
};

}  // namespace sskd_fast
