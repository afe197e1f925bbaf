// Numbers in storage precision, read and written 16 bytes at a time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/half_precision.h"
#include "cuda/device.h"
#include "cuda/numbers.h"

namespace sskd_fast::cuda {

__device__ inline void require_alignment([[maybe_unused]] const void* address) {
#if defined(SSKD_EMULATION)
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) throw emulation::Error("a 16-byte access that is not aligned");
#endif
}

// Reads 16 bytes that the kernel does not write.
template <typename S>
__device__ inline uint4 load_words(const S* address) {
  require_alignment(address);
  return __ldg(reinterpret_cast<const uint4*>(address));
}

// The numbers of storage type S in 16 bytes.
template <typename S>
__device__ inline void unpack(const uint4& words, Compute<S> (&out)[kPack<S>]) {
  const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < kPack<S>; ++i) {
    if constexpr (std::is_same_v<S, double>)
      out[i] = __longlong_as_double(static_cast<long long>(static_cast<uint64_t>(word[2 * i + 1]) << 32 | word[2 * i]));
    else if constexpr (std::is_same_v<S, float>)
      out[i] = __uint_as_float(word[i]);
    else
      out[i] = widen(S{static_cast<uint16_t>(word[i / 2] >> (16 * (i % 2)))});
  }
}

template <typename S>
__device__ inline void load_pack(const S* address, Compute<S> (&out)[kPack<S>]) {
  unpack<S>(load_words(address), out);
}

// Reads numbers that the kernel itself has written, as many as a pack of storage type S has.
template <typename S>
__device__ inline void load_sums(const Compute<S>* address, Compute<S> (&out)[kPack<S>]) {
#pragma unroll
  for (int i = 0; i < kPack<S>; i += kPack<Compute<S>>) {
    require_alignment(address + i);
    if constexpr (std::is_same_v<S, double>) {
      const double2 v = *reinterpret_cast<const double2*>(address + i);
      out[i] = v.x, out[i + 1] = v.y;
    } else {
      const float4 v = *reinterpret_cast<const float4*>(address + i);
      out[i] = v.x, out[i + 1] = v.y, out[i + 2] = v.z, out[i + 3] = v.w;
    }
  }
}

template <typename S>
__device__ inline void store_sums(Compute<S>* address, const Compute<S> (&values)[kPack<S>]) {
#pragma unroll
  for (int i = 0; i < kPack<S>; i += kPack<Compute<S>>) {
    require_alignment(address + i);
    if constexpr (std::is_same_v<S, double>)
      *reinterpret_cast<double2*>(address + i) = make_double2(values[i], values[i + 1]);
    else
      *reinterpret_cast<float4*>(address + i) = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
  }
}

// Rounds the numbers to storage type S.
template <typename S>
__device__ inline void store_pack(S* address, const Compute<S> (&values)[kPack<S>]) {
  if constexpr (std::is_same_v<S, Compute<S>>) {
    store_sums<S>(address, values);
  } else {
    require_alignment(address);
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      word[i] = narrow<S>(values[2 * i]).bits | static_cast<uint32_t>(narrow<S>(values[2 * i + 1]).bits) << 16;
    *reinterpret_cast<uint4*>(address) = make_uint4(word[0], word[1], word[2], word[3]);
  }
}

}  // namespace sskd_fast::cuda
