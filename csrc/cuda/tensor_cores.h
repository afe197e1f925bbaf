// Products of tiles by the tensor cores of a warp (sm_80 and later): d (16, 8) += a (16, K) b (K, 8), sums in float.
//
// Fragments in PTX's layout of mma.sync; lane = 4 g + t. A register holds two two-byte numbers, the lower one first:
//
//   two-byte numbers, K = 16                         tf32, K = 8
//   a[0]  row g      columns 2 t, 2 t + 1            a[0]  row g      column t
//   a[1]  row g + 8  columns 2 t, 2 t + 1            a[1]  row g + 8  column t
//   a[2]  row g      columns 2 t + 8, 2 t + 9        a[2]  row g      column t + 4
//   a[3]  row g + 8  columns 2 t + 8, 2 t + 9        a[3]  row g + 8  column t + 4
//   b[0]  rows 2 t, 2 t + 1      column g            b[0]  row t      column g
//   b[1]  rows 2 t + 8, 2 t + 9  column g            b[1]  row t + 4  column g
//   d[0], d[1]  row g      columns 2 t, 2 t + 1      the same
//   d[2], d[3]  row g + 8  columns 2 t, 2 t + 1
//
// So d of one product, narrowed to two bytes, is half of an a of the next one: columns n .. n + 7 of d fill a[0], a[1],
// and columns n + 8 .. n + 15 fill a[2], a[3]. All 32 lanes must take part.
#pragma once

#include "common/half_precision.h"
#include "cuda/device.h"

#if defined(SSKD_EMULATION)
#include "emulation/tensor_cores.h"
#define SSKD_PLACE , emulation::Place place = emulation::Place::current()
#else
#define SSKD_PLACE
#endif

namespace sskd_fast::cuda {

// Two numbers as one register of a fragment.
template <typename T>
__device__ __forceinline__ uint32_t packed(T low, T high) {
  return static_cast<uint32_t>(low.bits) | static_cast<uint32_t>(high.bits) << 16;
}

// x with the precision that tensor cores keep of a float: ten bits of mantissa, rounded to nearest.
__device__ __forceinline__ uint32_t tf32(float x) {
#if defined(SSKD_EMULATION)
  const uint32_t bits = bits_of(x);
  return x - x != 0 ? bits : (bits + 0x1000) & 0xFFFFE000u;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

#if defined(SSKD_EMULATION)
#define SSKD_MULTIPLY(name, depth, pack, number, ptx)                                                  \
  inline void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] SSKD_PLACE) {         \
    emulation::multiply<depth, pack>(d, a, b, number, #name, place);                                   \
  }
#else
#define SSKD_MULTIPLY(name, depth, pack, number, ptx)                                                  \
  __device__ __forceinline__ void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned." ptx " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                  \
  }
#endif
SSKD_MULTIPLY(multiply_half, 16, 2, emulation::half_of<Half>, "m16n8k16.row.col.f32.f16.f16.f32")
SSKD_MULTIPLY(multiply_bfloat16, 16, 2, emulation::half_of<BFloat16>, "m16n8k16.row.col.f32.bf16.bf16.f32")
SSKD_MULTIPLY(multiply_tf32, 8, 1, ([](uint32_t x, int) { return float_of(x & 0xFFFFE000u); }),
              "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef SSKD_MULTIPLY

// d += a b for fragments of two-byte numbers of type T.
template <typename T>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] SSKD_PLACE);
#if defined(SSKD_EMULATION)
template <>
inline void multiply<Half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emulation::Place place) {
  multiply_half(d, a, b, place);
}
template <>
inline void multiply<BFloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], emulation::Place place) {
  multiply_bfloat16(d, a, b, place);
}
#else
template <>
__device__ __forceinline__ void multiply<Half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_half(d, a, b);
}
template <>
__device__ __forceinline__ void multiply<BFloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_bfloat16(d, a, b);
}
#endif

// Fragments from shared memory: four 8 x 8 tiles of two-byte numbers. Lane l gives the address of row l % 8 of tile
// l / 8, aligned to 16 bytes. registers[i] of lane 4 g + t: row g, columns 2 t and 2 t + 1 of tile i (of its
// transpose).
template <bool Transposed>
__device__ __forceinline__ void load_tiles(uint32_t (&registers)[4], const void* row SSKD_PLACE) {
#if defined(SSKD_EMULATION)
  emulation::load_tiles(registers, row, Transposed, place);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
#endif
}

}  // namespace sskd_fast::cuda

#undef SSKD_PLACE
