// Rows of numbers in vectors as wide as a register: loads from any storage type, dot products, weighted sums, exp. GCC
// and Clang vector extensions. Wider vectors would work too, but GCC keeps them in memory and compares them number by
// number. That costs the expected form far more than all its arithmetic.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace sskd_fast {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int64_t count = kVectorBytes / 4;
  using Vector = float __attribute__((vector_size(kVectorBytes)));
  using Integer = int32_t __attribute__((vector_size(kVectorBytes)));
};

template <>
struct Lanes<double> {
  static constexpr int64_t count = kVectorBytes / 8;
  using Vector = double __attribute__((vector_size(kVectorBytes)));
  using Integer = int64_t __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vector = typename Lanes<T>::Vector;

// The compute type for rows of storage type S.
template <typename S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <typename T>
inline Vector<T> load(const T* x) {
  Vector<T> v;
  std::memcpy(&v, x, sizeof(v));
  return v;
}

inline Vector<float> load(const c10::BFloat16* x) {
  using Half = uint16_t __attribute__((vector_size(kVectorBytes / 2)));
  using Word = uint32_t __attribute__((vector_size(kVectorBytes)));
  Half bits;
  std::memcpy(&bits, x, sizeof(bits));
  const Word wide = __builtin_convertvector(bits, Word) << 16;
  Vector<float> v;
  std::memcpy(&v, &wide, sizeof(v));
  return v;
}

inline Vector<float> load(const c10::Half* x) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
#else
  Vector<float> v;
  for (int i = 0; i < Lanes<float>::count; ++i) v[i] = static_cast<float>(x[i]);
  return v;
#endif
}

template <typename T>
inline void store(T* x, const Vector<T>& v) {
  std::memcpy(x, &v, sizeof(v));
}

inline void store(c10::Half* x, const Vector<float>& v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < Lanes<float>::count; ++i) x[i] = static_cast<c10::Half>(v[i]);
#endif
}

// Rounded to the nearest, to even if two are as near, as c10::BFloat16 does; NaN becomes 0x7FC0.
inline void store(c10::BFloat16* x, const Vector<float>& v) {
  using Half = uint16_t __attribute__((vector_size(kVectorBytes / 2)));
  using Word = uint32_t __attribute__((vector_size(kVectorBytes)));
  Word bits;
  std::memcpy(&bits, &v, sizeof(bits));
  const Word rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const Half half = __builtin_convertvector(v == v ? rounded : Word{} + 0x7FC0, Half);
  std::memcpy(x, &half, sizeof(half));
}

template <typename T, int bytes>
struct Packed {
  typedef T Type __attribute__((vector_size(bytes)));
};

// The sum of all numbers of a vector, half by half.
template <typename T, typename V>
inline T sum_of_halves(const V& v) {
  if constexpr (sizeof(V) == 2 * sizeof(T)) {
    return v[0] + v[1];
  } else {
    using Half = typename Packed<T, sizeof(V) / 2>::Type;
    Half halves[2];
    std::memcpy(halves, &v, sizeof(v));
    return sum_of_halves<T, Half>(halves[0] + halves[1]);
  }
}

inline float sum(const Vector<float>& v) { return sum_of_halves<float>(v); }
inline double sum(const Vector<double>& v) { return sum_of_halves<double>(v); }

// All bits set in the lanes before number `count`, none in the others.
template <typename T>
inline typename Lanes<T>::Integer lanes_below(int64_t count) {
  typename Lanes<T>::Integer number;
#pragma GCC unroll 16
  for (int i = 0; i < Lanes<T>::count; ++i) number[i] = i;
  return number < static_cast<decltype(number[0] + 0)>(count);
}

// <a, b> of n numbers each.
template <typename T, typename S>
inline T dot(const T* a, const S* b, int64_t n) {
  constexpr int64_t step = Lanes<T>::count;
  Vector<T> even{}, odd{};
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    even += load(a + i) * load(b + i);
    odd += load(a + i + step) * load(b + i + step);
  }
  for (; i + step <= n; i += step) even += load(a + i) * load(b + i);
  if (0 < i && i < n) {  // the rest in a vector that overlaps the last one: number by number takes longer
    odd += lanes_below<T>(i - (n - step)) ? Vector<T>{} : load(a + n - step) * load(b + n - step);
    i = n;
  }
  T total = sum(even + odd);
  for (; i < n; ++i) total += a[i] * static_cast<T>(b[i]);
  return total;
}

// The largest number of a vector, half by half.
template <typename T, typename V>
inline T largest_of(const V& v) {
  if constexpr (sizeof(V) == 2 * sizeof(T)) {
    return v[0] > v[1] ? v[0] : v[1];
  } else {
    using Half = typename Packed<T, sizeof(V) / 2>::Type;
    Half halves[2];
    std::memcpy(halves, &v, sizeof(v));
    return largest_of<T, Half>(halves[0] > halves[1] ? halves[0] : halves[1]);
  }
}

// The smallest of n numbers, at most 0.
template <typename T>
inline T smallest_below_zero(const T* x, int64_t n) {
  Vector<T> least{};
  int64_t i = 0;
  for (; i + Lanes<T>::count <= n; i += Lanes<T>::count) {
    const Vector<T> v = load(x + i);
    least = v < least ? v : least;
  }
  T result = -largest_of<T, Vector<T>>(-least);
  for (; i < n; ++i) result = x[i] < result ? x[i] : result;
  return result;
}

// The largest magnitude of n numbers.
inline float largest_magnitude(const float* x, int64_t n) {
  Vector<float> most{};
  int64_t i = 0;
  for (; i + Lanes<float>::count <= n; i += Lanes<float>::count) {
    const Vector<float> v = load(x + i), magnitude = v < 0 ? -v : v;
    most = magnitude > most ? magnitude : most;
  }
  float result = largest_of<float, Vector<float>>(most);
  for (; i < n; ++i) result = std::max(result, std::abs(x[i]));
  return result;
}

// |a - b|^2 / 2.
template <typename T>
inline T half_squared_distance(const T* a, const T* b, int64_t n) {
  constexpr int64_t step = Lanes<T>::count;
  Vector<T> even{}, odd{};
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    const Vector<T> x = load(a + i) - load(b + i), y = load(a + i + step) - load(b + i + step);
    even += x * x;
    odd += y * y;
  }
  for (; i + step <= n; i += step) {
    const Vector<T> x = load(a + i) - load(b + i);
    even += x * x;
  }
  if (0 < i && i < n) {  // the rest, as in `dot`
    const Vector<T> x = load(a + n - step) - load(b + n - step);
    odd += lanes_below<T>(i - (n - step)) ? Vector<T>{} : x * x;
    i = n;
  }
  T total = sum(even + odd);
  for (; i < n; ++i) total += (a[i] - b[i]) * (a[i] - b[i]);
  return total / 2;
}

template <int blocks, typename T, typename S, typename RowOf, typename WeightOf>
inline void add_block(T* out, int64_t count, RowOf row, WeightOf weight, int64_t offset) {
  constexpr int64_t step = Lanes<T>::count;
  Vector<T> total[blocks];
  for (int j = 0; j < blocks; ++j) total[j] = load(out + j * step);
  for (int64_t r = 0; r < count; ++r) {
    const S* x = row(r) + offset;
    const T w = weight(r);
#pragma GCC unroll 8
    for (int j = 0; j < blocks; ++j) total[j] += w * load(x + j * step);
  }
  for (int j = 0; j < blocks; ++j) store(out + j * step, total[j]);
}

// out (n) += sum over r < count of weight(r) * row(r); the sums stay in registers.
template <typename T, typename S, typename RowOf, typename WeightOf>
inline void add_weighted_rows(T* out, int64_t n, int64_t count, RowOf row, WeightOf weight) {
  constexpr int64_t step = Lanes<T>::count;
  int64_t i = 0;
  for (; i + 8 * step <= n; i += 8 * step) add_block<8, T, S>(out + i, count, row, weight, i);
  for (; i + 4 * step <= n; i += 4 * step) add_block<4, T, S>(out + i, count, row, weight, i);
  for (; i + step <= n; i += step) add_block<1, T, S>(out + i, count, row, weight, i);
  for (; i < n; ++i) {
    T total = out[i];
    for (int64_t r = 0; r < count; ++r) total += weight(r) * static_cast<T>(row(r)[i]);
    out[i] = total;
  }
}

// Fetch the cache lines of a row of n numbers that will be read soon. It may begin within a line.
template <typename S>
inline void prefetch_row(const S* row, int64_t n) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(row), end = begin + n * sizeof(S);
  for (uintptr_t line = begin & ~uintptr_t{63}; line < end; line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(line));
}

// exp, within two units in the last place for float; 0 below the smallest normal number.
inline Vector<float> exp(const Vector<float>& x) {
  using Integer = Lanes<float>::Integer;
  const Vector<float> low = Vector<float>{} - 87.33654f, high = Vector<float>{} + 88.72283f;
  Vector<float> v = x > high ? high : x;
  v = v < low ? low : v;
  const Vector<float> shifted = v * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
  const Vector<float> n = shifted - 12582912.0f;
  const Vector<float> r = (v - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Integer bits;
  std::memcpy(&bits, &p, sizeof(bits));
  // In two steps, so that 2^128 for the largest arguments does not overflow before the multiplication.
  const Integer power = __builtin_convertvector(n, Integer);
  const Integer half = power >> 1;
  const Integer first = (half + 127) << 23, second = (power - half + 127) << 23;
  Vector<float> scale_first, scale_second;
  std::memcpy(&scale_first, &first, sizeof(first));
  std::memcpy(&scale_second, &second, sizeof(second));
  const Vector<float> result = p * scale_first * scale_second;
  return x < low ? Vector<float>{} : result;
}

inline Vector<double> exp(const Vector<double>& x) {
  Vector<double> result;
  for (int i = 0; i < Lanes<double>::count; ++i) result[i] = std::exp(x[i]);
  return result;
}

// x (n) <- exp(x - top); returns the sum, in the order of the lanes.
template <typename T>
inline T exp_and_sum(T* x, int64_t n, T top) {
  constexpr int64_t step = Lanes<T>::count;
  Vector<T> total{};
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    const Vector<T> e = exp(load(x + i) - top);
    store(x + i, e);
    total += e;
  }
  T result = sum(total);
  for (; i < n; ++i) result += x[i] = std::exp(x[i] - top);
  return result;
}

}  // namespace sskd_fast
