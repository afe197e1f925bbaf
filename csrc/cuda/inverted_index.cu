// The inverted index of the negatives: a stable sort of their places by candidate, and a binary search for each
// candidate.
#include "cuda/inverted_index.h"

#include <bit>

#include "cuda/radix_sort.h"

namespace sskd_fast::cuda {
namespace {

constexpr int kThreads = 256;

dim3 blocks_for(int64_t threads) { return dim3{static_cast<unsigned int>((threads + kThreads - 1) / kThreads), 1, 1}; }

__device__ inline int64_t own_thread() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }

__global__ void __launch_bounds__(kThreads) inverted_index_places_kernel(InvertedIndex x) {
  const int64_t i = own_thread();
  if (i < x.count) x.places[i] = static_cast<int32_t>(i);
}

// start[q]: how many negatives are below q. Ignored ones are the largest, as unsigned numbers.
__global__ void __launch_bounds__(kThreads) inverted_index_starts_kernel(InvertedIndex x) {
  const int64_t q = own_thread();
  if (q > x.candidates) return;
  int32_t first = 0, last = x.count;
  while (first < last) {
    const int32_t middle = first + (last - first) / 2;
    if (static_cast<uint32_t>(x.sorted[middle]) < static_cast<uint32_t>(q))
      first = middle + 1;
    else
      last = middle;
  }
  x.start[q] = first;
}

// All bits of -1 are set, so the bits that tell the candidates and one number more apart put it last.
SortedPairs pairs_of(const InvertedIndex& x) {
  return {reinterpret_cast<const uint32_t*>(x.negatives),
          reinterpret_cast<uint32_t*>(x.sorted),
          x.places,
          x.use,
          x.count,
          static_cast<int>(std::bit_width(static_cast<uint32_t>(x.candidates)))};
}

}  // namespace

size_t inverted_index_bytes(const InvertedIndex& x, Stream stream) {
  size_t bytes = 0;
  sort_pairs(pairs_of(x), nullptr, bytes, stream);
  return bytes;
}

void launch_inverted_index(const InvertedIndex& x, void* memory, size_t bytes, Stream stream) {
  if (x.count > 0) {
    launch(inverted_index_places_kernel, blocks_for(x.count), dim3{kThreads, 1, 1}, 0, stream, x);
    sort_pairs(pairs_of(x), memory, bytes, stream);
  }
  launch(inverted_index_starts_kernel, blocks_for(int64_t{x.candidates} + 1), dim3{kThreads, 1, 1}, 0, stream, x);
}

}  // namespace sskd_fast::cuda
