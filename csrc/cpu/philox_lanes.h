// Philox of common/philox.h for eight counters at a time, in one 64-bit lane each: in one register, or in several. Two
// trials are made of each.
#pragma once

#include <cstdint>
#include <limits>

#include "common/philox.h"
#include "math/negative_sampling.h"

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

// The sixteen trials of these words, as `propose` of math/negative_sampling.h makes them: slot and level word of trial
// 2 i are words 0 and 1 of counter i, those of trial 2 i + 1 words 2 and 3. level: rounded to float; infinite for
// unfair slots and from trial `valid` on.
inline void propose_lanes(const uint64_t words[4][8], const AnchorProposals& p, uint32_t unfair_below, int64_t valid,
                          uint32_t* slot, uint32_t* level_word, float* level) {
  // Counters of a register as pairs of trials, in the halves of the lanes: in order, since bytes are little-endian.
  using Trials = uint32_t __attribute__((vector_size(sizeof(WordLanes))));
  using Levels = float __attribute__((vector_size(sizeof(WordLanes))));
  constexpr uint64_t low_half = 0xFFFFFFFFu;
  const uint32_t count = static_cast<uint32_t>(p.count), skip_from = static_cast<uint32_t>(p.skip_from);
  const float bound = static_cast<float>(p.bound * 0x1p-32);
  for (int part = 0; part < kWordRegisters; ++part) {
    WordLanes w[4];
    for (int i = 0; i < 4; ++i) __builtin_memcpy(&w[i], words[i] + part * kWordLanes, sizeof(WordLanes));
    const WordLanes first = multiply_low(w[0], count), second = multiply_low(w[2], count);
    const Trials high = (Trials)((first >> 32) | (second & ~low_half));
    const Trials low = (Trials)((first & low_half) | (second << 32));
    const Trials random = (Trials)(w[1] | (w[3] << 32));
    const Trials proposed = high + static_cast<uint32_t>(p.first) +
                            (high >= skip_from ? Trials{} + static_cast<uint32_t>(p.skip_length) : Trials{});
    Trials number;
    for (int i = 0; i < 2 * kWordLanes; ++i) number[i] = static_cast<uint32_t>(part * 2 * kWordLanes + i);
    const auto possible = (low >= unfair_below) & (number < static_cast<uint32_t>(valid < 0 ? 0 : valid));
    const Levels never = Levels{} + std::numeric_limits<float>::infinity();
    const Levels rounded = possible ? (__builtin_convertvector(random, Levels) + 0.5f) * bound : never;
    __builtin_memcpy(slot + part * 2 * kWordLanes, &proposed, sizeof(proposed));
    __builtin_memcpy(level_word + part * 2 * kWordLanes, &random, sizeof(random));
    __builtin_memcpy(level + part * 2 * kWordLanes, &rounded, sizeof(rounded));
  }
}

}  // namespace sskd_fast
