// A stable sort of pairs by the lowest bits of their keys: CUB's radix sort, which CUDA graphs can hold, or the
// emulation's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device.h"

#if defined(SSKD_EMULATION)
#include "emulation/stable_sort.h"
#else
#include <cub/device/device_radix_sort.cuh>
#endif

namespace sskd_fast::cuda {

// `count` pairs of an unsigned key and a value, sorted by the lowest `bits` bits of the keys.
struct SortedPairs {
  const uint32_t* keys;
  uint32_t* sorted_keys;
  const int32_t* values;
  int32_t* sorted_values;
  int32_t count;
  int bits;
};

// Sorts in `memory` of at least `bytes` bytes; without memory, stores in `bytes` how many it takes.
inline void sort_pairs(const SortedPairs& x, void* memory, size_t& bytes, Stream stream) {
#if defined(SSKD_EMULATION)
  emulation::stable_sort(x.keys, x.sorted_keys, x.values, x.sorted_values, x.count, x.bits, memory, bytes);
#else
  check_call(cub::DeviceRadixSort::SortPairs(memory, bytes, x.keys, x.sorted_keys, x.values, x.sorted_values, x.count,
                                             0, x.bits, stream));
#endif
}

}  // namespace sskd_fast::cuda
