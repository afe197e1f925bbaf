// Philox of common/philox.h for eight counters at a time, in one 64-bit lane each: in one register, or in several.
#pragma once

#include <cstdint>

#include "common/philox.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace sskd_fast {

#if defined(__AVX512F__)
using WordLanes = uint64_t __attribute__((vector_size(64)));
#else
using WordLanes = uint64_t __attribute__((vector_size(32)));
#endif
constexpr int kWordLanes = sizeof(WordLanes) / sizeof(uint64_t), kWordRegisters = 8 / kWordLanes;

// Products of the low halves of the lanes.
inline WordLanes multiply_low(WordLanes x, uint32_t factor) {
#if defined(__AVX512F__)
  return (WordLanes)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
  return (WordLanes)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(factor));
#else
  return (x & 0xFFFFFFFFu) * factor;
#endif
}

// words[w][i]: word w of the counter (column + i, row, stream, 0), in the low half of a lane.
inline void philox_lanes(PhiloxKey key, uint32_t column, uint32_t row, uint32_t stream, uint64_t words[4][8]) {
  WordLanes x0[kWordRegisters], x1[kWordRegisters], x2[kWordRegisters], x3[kWordRegisters];
  for (int part = 0; part < kWordRegisters; ++part) {
    for (int i = 0; i < kWordLanes; ++i) x0[part][i] = static_cast<uint64_t>(part * kWordLanes + i) + column;
    x1[part] = WordLanes{} + row, x2[part] = WordLanes{} + stream, x3[part] = WordLanes{};
  }
  uint32_t k0 = key.low, k1 = key.high;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
    for (int part = 0; part < kWordRegisters; ++part) {
      // The high halves of x1 and x3 are garbage that nothing reads.
      const WordLanes low = multiply_low(x0[part], 0xD2511F53u), high = multiply_low(x2[part], 0xCD9E8D57u);
      x0[part] = (high >> 32) ^ x1[part] ^ static_cast<uint64_t>(k0);
      x2[part] = (low >> 32) ^ x3[part] ^ static_cast<uint64_t>(k1);
      x1[part] = high, x3[part] = low;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const WordLanes mask = WordLanes{} + 0xFFFFFFFFu;
  for (int part = 0; part < kWordRegisters; ++part) {
    const WordLanes result[4] = {x0[part] & mask, x1[part] & mask, x2[part] & mask, x3[part] & mask};
    for (int w = 0; w < 4; ++w) __builtin_memcpy(words[w] + part * kWordLanes, &result[w], sizeof(WordLanes));
  }
}

}  // namespace sskd_fast
