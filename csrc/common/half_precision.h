// Half-precision numbers as stored in memory, and their conversions; arithmetic is in float. The layouts are those
// of PyTorch's float16 and bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace sskd_fast {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

SSKD_HOST_DEVICE inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

SSKD_HOST_DEVICE inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

SSKD_HOST_DEVICE inline double widen(double x) { return x; }
SSKD_HOST_DEVICE inline float widen(float x) { return x; }
SSKD_HOST_DEVICE inline float widen(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
SSKD_HOST_DEVICE inline float widen(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7FFF;
  if (magnitude >= 0x7C00) return float_of(sign | 0x7F800000u | (magnitude & 0x3FF) << 13);
  // Subnormal numbers are multiples of 2^-24; the exponent of the others shifts by 112.
  if (magnitude < 0x400) return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
  return float_of(sign | ((magnitude << 13) + (112u << 23)));
#endif
}

// x as a T, rounded to nearest, ties to even.
template <typename T>
SSKD_HOST_DEVICE inline T narrow(float x) {
  return x;
}
template <>
SSKD_HOST_DEVICE inline BFloat16 narrow<BFloat16>(float x) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  const uint32_t bits = bits_of(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
#endif
}
template <>
SSKD_HOST_DEVICE inline Half narrow<Half>(float x) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return {static_cast<uint16_t>(sign | 0x7E00)};
  if (magnitude >= 0x477FF000) return {static_cast<uint16_t>(sign | 0x7C00)};  // from 65520 on: infinite
  // Below 2^-14: adding 1/2 leaves units of 2^-24, rounded, in the last bits.
  if (magnitude < 0x38800000)
    return {static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u))};
  return {static_cast<uint16_t>(sign | ((magnitude + 0xFFF + (magnitude >> 13 & 1)) - (112u << 23)) >> 13)};
#endif
}
template <typename T>
SSKD_HOST_DEVICE inline T narrow(double x) {
  return x;
}

}  // namespace sskd_fast
