// Correct kernels and their faulty twins, for tests/test_emulation.py: `emulation_kernels NAME ORDER` runs one and prints
// its result. The same file compiles with nvcc.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "cuda/compressed_rows.cu"
#include "cuda/device.h"
#include "cuda/row_bounds.h"

using namespace sskd_fast;
using cuda::kAllLanes;
using cuda::launch;

// out[i] = the sum of the block's other half, through shared memory.
template <bool Barrier>
__global__ void reversed_by_shared_memory(const float* in, float* out) {
  SSKD_SHARED(float, tile, [64]);
  tile[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  if (Barrier) __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = tile[63 - threadIdx.x];
}

// Sums of 32 numbers each. Wrong: the last step is missing, or reads from a lane that is not in the mask.
template <unsigned int Mask, int LastStep>
__global__ void sums_by_shuffles(const float* in, float* out) {
  float x = in[blockIdx.x * 32 + threadIdx.x];
  if ((Mask >> threadIdx.x & 1) == 0) return;
  for (int step = 16; step >= LastStep; step /= 2) x += __shfl_xor_sync(Mask, x, step);
  if (threadIdx.x == 0) out[blockIdx.x] = x;
}

// out[i] = in[i] + 1 for i < n. Wrong: writes past the end.
template <bool Checked>
__global__ void increments(const float* in, float* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (!Checked || i < n) out[i] = (i < n ? in[i] : 0) + 1;
}

// Writes dynamic shared memory, `length` of its numbers.
__global__ void fills_dynamic_memory(float* out, int length) {
  SSKD_DYNAMIC_SHARED(bytes);
  float* const numbers = reinterpret_cast<float*>(bytes);
  for (int i = static_cast<int>(threadIdx.x); i < length; i += 32) numbers[i] = static_cast<float>(i);
  __syncthreads();
  if (threadIdx.x < 32) out[threadIdx.x] = numbers[31 - threadIdx.x];
}

// Threads that exit, or wait elsewhere, while the others wait for them.
__global__ void barrier_after_exit(float* out) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void barriers_in_two_places(float* out) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}
__global__ void ballot_without_a_lane(float* out) {
  if (threadIdx.x != 7) out[threadIdx.x] = static_cast<float>(__popc(__ballot_sync(kAllLanes, 1)));
}

// Reads shared memory that this block did not write; the first block leaves its numbers there.
__global__ void reads_what_the_last_block_left(float* out) {
  SSKD_SHARED(float, tile, [32]);
  if (blockIdx.x == 0) tile[threadIdx.x] = 1;
  __syncthreads();
  out[blockIdx.x * 32 + threadIdx.x] = tile[threadIdx.x];
}

// Every function of a warp, out (12, 32).
__global__ void warp_functions(const int* in, int* out) {
  const int lane = static_cast<int>(threadIdx.x), x = in[lane];
  int* row = out + lane;
  row[0 * 32] = __shfl_sync(kAllLanes, x, lane + 3);
  row[1 * 32] = __shfl_sync(kAllLanes, x, 1, 8);
  row[2 * 32] = __shfl_up_sync(kAllLanes, x, 3);
  row[3 * 32] = __shfl_down_sync(kAllLanes, x, 3, 16);
  row[4 * 32] = __shfl_xor_sync(kAllLanes, x, 5);
  row[5 * 32] = static_cast<int>(__ballot_sync(kAllLanes, x % 3 == 0));
  row[6 * 32] = __any_sync(kAllLanes, x == 4) * 2 + __all_sync(kAllLanes, x >= 0);
  row[7 * 32] = static_cast<int>(__match_any_sync(kAllLanes, x % 5));
  row[8 * 32] = __reduce_add_sync(kAllLanes, x);
  row[9 * 32] = __reduce_max_sync(kAllLanes, x) - __reduce_min_sync(kAllLanes, x);
  const unsigned int half = lane < 16 ? 0xFFFFu : 0xFFFF0000u;  // two groups that need not wait for each other
  row[10 * 32] = lane < 16 ? __shfl_xor_sync(half, x, 1) : __reduce_add_sync(half, x);
  row[11 * 32] = static_cast<int>(__shfl_xor_sync(kAllLanes, static_cast<long long>(x) << 33, 1) >> 33);
}

// Bounds of 32 rows and as many others, lane by lane: out (32, 32, 2).
__global__ void bounds_by_bytes(cuda::CompressedRows coarse, cuda::CompressedRows fine, float slack, float* out) {
  const int row = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  const cuda::Bounds bounds = cuda::bounds_of({coarse, fine, row}, coarse, lane, slack);
  out[(row * 32 + lane) * 2] = bounds.low, out[(row * 32 + lane) * 2 + 1] = bounds.high;
}

#if defined(SSKD_EMULATION)

// Numbers in an allocation of exactly their size.
template <typename T>
struct Numbers {
  explicit Numbers(int n, int first, int step = 1) : size(n), data(new T[n]) {
    for (int i = 0; i < n; ++i) data[i] = static_cast<T>(first + step * i);
  }
  operator T*() const { return data.get(); }
  int size;
  std::unique_ptr<T[]> data;
};

template <typename T>
void print(const Numbers<T>& numbers) {
  for (int i = 0; i < numbers.size; ++i) std::printf("%.17g ", static_cast<double>(numbers[i]));
  std::printf("\n");
}

// 32 rows of `width` numbers from 0 to 1. The first is 0, the second next to 0; the next two are not finite.
template <typename S>
void print_bounds(int width) {
  const int stride = static_cast<int>(cuda::compressed_stride(width));
  Numbers<S> rows(32 * width, 0);
  for (int i = 0; i < 32 * width; ++i) {
    const float factor = i < width ? 0.0f : i < 2 * width ? 1e-20f : 1.0f;
    rows[i] = narrow<S>(static_cast<float>(i * 7919 % 1009) / 1009 * factor);
  }
  rows[3 * width - 1] = narrow<S>(NAN), rows[3 * width] = narrow<S>(INFINITY);
  Numbers<double> centre(width, 0, 0);
  // Aligned to 16 bytes, as memory of PyTorch is.
  std::vector<uint4> first(32 * stride / 16), second(first.size());
  const cuda::CompressedRows coarse{reinterpret_cast<uint8_t*>(first.data()), stride};
  const cuda::CompressedRows fine{reinterpret_cast<uint8_t*>(second.data()), stride};
  cuda::launch_compression<S>({rows, 32, width}, centre, coarse, fine, 0);
  Numbers<float> out(32 * 32 * 2, 0);
  launch(bounds_by_bytes, dim3{32}, dim3{32}, 0, 0, coarse, fine, rounding_slack(width), out);
  print(out);
}

int run(const char* name) {
  const auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
  Numbers<float> in(128, 0), out(128, 0), short_out(127, 0);
  Numbers<int> numbers(32, 0, 3), found(12 * 32, 0);
  const auto start = [&](auto kernel, unsigned int blocks, unsigned int threads, auto... arguments) {
    launch(kernel, dim3{blocks}, dim3{threads}, 0, 0, arguments...);
    return print(out), 0;
  };
  const auto start_with_memory = [&](size_t bytes) {
    launch(fills_dynamic_memory, dim3{1}, dim3{32}, bytes, 0, out, 33);
    return print(out), 0;
  };
  float *x = in, *y = out, *short_y = short_out;
  if (is("barrier")) return start(reversed_by_shared_memory<true>, 2, 64, x, y);
  if (is("missing_barrier")) return start(reversed_by_shared_memory<false>, 2, 64, x, y);
  if (is("shuffle")) return start(sums_by_shuffles<kAllLanes, 1>, 4, 32, x, y);
  if (is("shuffle_without_the_last_step")) return start(sums_by_shuffles<kAllLanes, 2>, 4, 32, x, y);
  if (is("shuffle_beyond_the_mask")) return start(sums_by_shuffles<0xFFu, 1>, 4, 32, x, y);
  if (is("in_bounds")) return start(increments<true>, 2, 64, x, y, 127);
  if (is("out_of_bounds")) return start(increments<false>, 2, 64, x, short_y, 127);
  if (is("dynamic_memory")) return start_with_memory(33 * sizeof(float));
  if (is("dynamic_memory_too_small")) return start_with_memory(32 * sizeof(float));
  if (is("barrier_after_exit")) return start(barrier_after_exit, 1, 64, y);
  if (is("barriers_in_two_places")) return start(barriers_in_two_places, 1, 64, y);
  if (is("ballot_without_a_lane")) return start(ballot_without_a_lane, 1, 32, y);
  if (is("stale_shared_memory")) return start(reads_what_the_last_block_left, 2, 32, y);
  if (is("block_too_large")) return start(barrier_after_exit, 1, 1025, y);
  if (is("empty_grid")) return start(barrier_after_exit, 0, 32, y);
  if (std::strncmp(name, "bounds_", 7) == 0) return print_bounds<float>(std::atoi(name + 7)), 0;
  if (std::strncmp(name, "half_bounds_", 12) == 0) return print_bounds<Half>(std::atoi(name + 12)), 0;
  if (!is("warp_functions")) return 2;
  launch(warp_functions, dim3{1}, dim3{32}, 0, 0, numbers, found);
  return print(found), 0;
}

int main(int count, char** arguments) {
  if (count != 3) return 2;
  emulation::the_grid.order_threads(std::strtoull(arguments[2], nullptr, 10));
  try {
    return run(arguments[1]);
  } catch (const emulation::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

#endif
