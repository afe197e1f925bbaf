// A sort by the threads of a warp or a block, in memory that they share.
#pragma once

#include <cstdint>

#include "cuda/device.h"

namespace sskd_fast::cuda {

inline int64_t power_of_two(int64_t least) {
  int64_t size = 1;
  while (size < least) size *= 2;
  return size;
}

// Sorts `size` entries, a power of two, by a bitonic network; this is thread number `thread` of `threads`. later(i, j):
// entry i comes after entry j. exchange(i, j) swaps them, and wait() is the barrier of the threads.
template <typename Later, typename Exchange, typename Wait>
__device__ inline void bitonic_sort(int32_t size, int32_t thread, int32_t threads, Later later, Exchange exchange,
                                    Wait wait) {
#pragma unroll 1
  for (int32_t run = 2; run <= size; run *= 2) {
#pragma unroll 1
    for (int32_t step = run / 2; step > 0; step /= 2) {
#pragma unroll 1
      for (int32_t pair = thread; pair < size / 2; pair += threads) {
        const int32_t i = 2 * pair - (pair & (step - 1)), j = i + step;
        const bool ascending = (i & run) == 0;
        if (later(ascending ? i : j, ascending ? j : i)) exchange(i, j);
      }
      wait();
    }
  }
}

}  // namespace sskd_fast::cuda
