// A stable sort of pairs with the interface of CUB's radix sort.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>

namespace sskd_fast::emulation {

// The order of the pairs is worked out in `memory`, so that too little of it is found by AddressSanitizer.
inline void stable_sort(const uint32_t* keys, uint32_t* sorted_keys, const int32_t* values, int32_t* sorted_values,
                        int32_t count, int bits, void* memory, size_t& bytes) {
  bytes = static_cast<size_t>(count) * sizeof(int32_t) + 1;
  if (memory == nullptr) return;
  int32_t* const order = static_cast<int32_t*>(memory);
  const uint32_t mask = bits < 32 ? (1u << bits) - 1 : ~0u;
  std::iota(order, order + count, 0);
  std::stable_sort(order, order + count, [&](int32_t i, int32_t j) { return (keys[i] & mask) < (keys[j] & mask); });
  for (int32_t i = 0; i < count; ++i) sorted_keys[i] = keys[order[i]], sorted_values[i] = values[order[i]];
}

}  // namespace sskd_fast::emulation
