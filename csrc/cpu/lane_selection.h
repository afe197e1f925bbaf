// Numbers picked out of vectors, in order.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace sskd_fast {

// Writes the numbers of `index` (n) in [from, from + size) to `out`, in order; returns how many. `out` has
// room for n numbers.
inline int64_t numbers_within(const int32_t* index, int64_t n, int32_t from, int32_t size, int32_t* out) {
  int64_t count = 0, i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    const __m512i v = _mm512_loadu_si512(index + i);
    const __mmask16 inside =
        _mm512_cmplt_epu32_mask(_mm512_sub_epi32(v, _mm512_set1_epi32(from)), _mm512_set1_epi32(size));
    // To a register first: compression to memory is slow on some processors.
    _mm512_storeu_si512(out + count, _mm512_maskz_compress_epi32(inside, v));
    count += __builtin_popcount(inside);
  }
#endif
  for (; i < n; ++i) {
    out[count] = index[i];
    count += static_cast<uint32_t>(index[i] - from) < static_cast<uint32_t>(size);
  }
  return count;
}

// Writes the numbers of x (16) whose bit is set to `out`, in order; returns how many. Writes up to 16 numbers.
inline int64_t compress_by_bits(uint32_t bits, const int32_t* x, int32_t* out) {
#if defined(__AVX512F__)
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), _mm512_loadu_si512(x)));
  return __builtin_popcount(bits);
#else
  int64_t count = 0;
  for (; bits != 0; bits &= bits - 1) out[count++] = x[__builtin_ctz(bits)];
  return count;
#endif
}

// A bit for every i < 16 with a[i] < b[i].
inline uint32_t bits_of_less(const float* a, const float* b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(a), _mm512_loadu_ps(b), _CMP_LT_OQ);
#else
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= static_cast<uint32_t>(a[i] < b[i]) << i;
  return bits;
#endif
}

// The opposite of numbers_within: out[i] <- the next of `values`, for every i < n with index[i] in [from, from + size).
// Returns the number of values that were used; 16 more are read.
template <typename T>
inline int64_t spread_within(const int32_t* index, int64_t n, int32_t from, int32_t size, const T* values, T* out) {
  int64_t count = 0, i = 0;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    for (; i + 16 <= n; i += 16) {
      const __m512i v = _mm512_loadu_si512(index + i);
      const __mmask16 inside =
          _mm512_cmplt_epu32_mask(_mm512_sub_epi32(v, _mm512_set1_epi32(from)), _mm512_set1_epi32(size));
      const __m512 spread = _mm512_maskz_expand_ps(inside, _mm512_loadu_ps(values + count));
      _mm512_mask_storeu_ps(out + i, inside, spread);
      count += __builtin_popcount(inside);
    }
#endif
  for (; i < n; ++i) {
    const bool inside = static_cast<uint32_t>(index[i] - from) < static_cast<uint32_t>(size);
    out[i] = inside ? values[count] : out[i];
    count += inside;
  }
  return count;
}

}  // namespace sskd_fast
