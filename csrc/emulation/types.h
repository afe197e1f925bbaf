// CUDA's built-in types, and its functions for a single thread.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <cstdint>

struct dim3 {
  unsigned int x = 1, y = 1, z = 1;
};

#define SSKD_VECTOR_TYPE(T, name, bytes2, bytes4)                                       \
  struct alignas(bytes2) name##2 {                                                      \
    T x, y;                                                                             \
  };                                                                                    \
  struct alignas(bytes4) name##4 {                                                      \
    T x, y, z, w;                                                                       \
  };                                                                                    \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                            \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SSKD_VECTOR_TYPE(float, float, 8, 16)
SSKD_VECTOR_TYPE(int, int, 8, 16)
SSKD_VECTOR_TYPE(unsigned int, uint, 8, 16)
SSKD_VECTOR_TYPE(short, short, 4, 8)
SSKD_VECTOR_TYPE(unsigned short, ushort, 4, 8)
SSKD_VECTOR_TYPE(signed char, char, 2, 4)
SSKD_VECTOR_TYPE(unsigned char, uchar, 2, 4)
SSKD_VECTOR_TYPE(double, double, 16, 16)
#undef SSKD_VECTOR_TYPE
struct alignas(16) longlong2 {
  long long x, y;
};
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }

using std::max;
using std::min;

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / ::sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned int __float_as_uint(float x) { return std::bit_cast<unsigned int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

// c plus the sum of the products of four signed bytes.
inline int __dp4a(int a, int b, int c) {
  for (int shift = 0; shift < 32; shift += 8)
    c += static_cast<int>(static_cast<int8_t>(a >> shift)) * static_cast<int>(static_cast<int8_t>(b >> shift));
  return c;
}

inline int __popc(unsigned int x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned int>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline unsigned int __umulhi(unsigned int x, unsigned int y) {
  return static_cast<unsigned int>((static_cast<unsigned long long>(x) * y) >> 32);
}

// Threads run one at a time, so an atomic operation is an ordinary one. Integers only: sums of floating-point numbers
// by atomics would differ from run to run.
#define SSKD_ATOMIC(name, expression)          \
  template <typename T>                        \
  T name(T* address, T value) {                \
    static_assert(std::is_integral_v<T>);      \
    const T old = *address;                    \
    *address = expression;                     \
    return old;                                \
  }
SSKD_ATOMIC(atomicAdd, static_cast<T>(old + value))
SSKD_ATOMIC(atomicMin, std::min(old, value))
SSKD_ATOMIC(atomicMax, std::max(old, value))
SSKD_ATOMIC(atomicOr, static_cast<T>(old | value))
SSKD_ATOMIC(atomicAnd, static_cast<T>(old & value))
SSKD_ATOMIC(atomicExch, value)
#undef SSKD_ATOMIC
template <typename T>
T atomicCAS(T* address, T compare, T value) {
  static_assert(std::is_integral_v<T>);
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
