// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
// The same words as sskd_fast/rng.py: key = the low and the high half of the seed, counter = (column, row, stream, 0).
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace sskd_fast {

constexpr uint32_t kStreamTrials = 0;
constexpr uint32_t kStreamRace = 1;

struct PhiloxKey {
  uint32_t low, high;
};

struct Words {
  uint32_t w[4];
};

SSKD_HOST_DEVICE inline PhiloxKey philox_key(int64_t seed) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)};
}

// The four random words of a counter (column, row, stream, 0).
SSKD_HOST_DEVICE inline Words philox(PhiloxKey key, uint32_t column, uint32_t row, uint32_t stream) {
  uint32_t x0 = column, x1 = row, x2 = stream, x3 = 0;
  uint32_t k0 = key.low, k1 = key.high;
  for (int round = 0; round < 10; ++round) {
    const uint64_t low = static_cast<uint64_t>(x0) * 0xD2511F53u;
    const uint64_t high = static_cast<uint64_t>(x2) * 0xCD9E8D57u;
    x0 = static_cast<uint32_t>(high >> 32) ^ x1 ^ k0;
    x2 = static_cast<uint32_t>(low >> 32) ^ x3 ^ k1;
    x1 = static_cast<uint32_t>(high);
    x3 = static_cast<uint32_t>(low);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{x0, x1, x2, x3}};
}

// A word as a number strictly between 0 and 1.
SSKD_HOST_DEVICE inline double unit_interval(uint32_t word) { return (word + 0.5) * 0x1p-32; }

}  // namespace sskd_fast
