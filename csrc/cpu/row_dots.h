// Dot products of one row with as many others as a vector has lanes, as one vector.
#pragma once

#include <cstdint>

#include "cpu/lanes.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace sskd_fast {

// One vector of sums: lane i holds the sum of the numbers of v[i].
template <typename T>
inline Vector<T> sums(const Vector<T>* v) {
  Vector<T> result;
  for (int64_t i = 0; i < Lanes<T>::count; ++i) result[i] = sum(v[i]);
  return result;
}

#if defined(__AVX512F__)
// Four vectors as one: quarter k of the result holds sums of quarter k of each.
inline __m512 sums_by_quarter(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  const __m512 cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  const __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
  return _mm512_castpd_ps(_mm512_unpacklo_pd(x, y)) + _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
}
template <>
inline Vector<float> sums<float>(const Vector<float>* v) {
  __m512 q[4];
  for (int i = 0; i < 4; ++i) q[i] = sums_by_quarter(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
  const auto halves = [](__m512 x, __m512 y) {
    return _mm512_shuffle_f32x4(x, y, 0x88) + _mm512_shuffle_f32x4(x, y, 0xDD);
  };
  return halves(halves(q[0], q[1]), halves(q[2], q[3]));
}
#elif defined(__AVX__)
template <>
inline Vector<float> sums<float>(const Vector<float>* v) {
  const __m256 x = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m256 y = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_permute2f128_ps(x, y, 0x20) + _mm256_permute2f128_ps(x, y, 0x31);
}
#endif

// Rows that share a load of the other side.
template <typename T>
constexpr int64_t kDotGroup = Lanes<T>::count < 4 ? Lanes<T>::count : 4;

// <a, b_i> (a and b_i: n numbers) for as many rows as a vector has lanes, in groups of kDotGroup. Only the first `groups`
// groups are read; the other lanes are 0.
template <typename T, typename S>
inline Vector<T> dots(const T* a, const S* const* b, int64_t groups, int64_t n) {
  constexpr int64_t step = Lanes<T>::count, group = kDotGroup<T>;
  Vector<T> total[step];
#pragma GCC unroll 4
  for (int64_t g = 0; g < step / group; ++g) {
    const S* const* rows = b + g * group;
    Vector<T> part[group] = {};
    if (g < groups)
      for (int64_t i = 0; i + step <= n; i += step) {
        const Vector<T> v = load(a + i);
#pragma GCC unroll 4
        for (int64_t j = 0; j < group; ++j) part[j] += v * load(rows[j] + i);
      }
#pragma GCC unroll 4
    for (int64_t j = 0; j < group; ++j) total[g * group + j] = part[j];
  }
  Vector<T> result = sums<T>(total);
  for (int64_t i = n / step * step; i < n; ++i)
    for (int64_t j = 0; j < groups * group; ++j) result[j] += a[i] * static_cast<T>(b[j][i]);
  return result;
}

}  // namespace sskd_fast
