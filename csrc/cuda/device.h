// The interface to the compiler, nvcc or the emulation: shared memory, launches, streams.
//
//   SSKD_SHARED(float, tile, [32][33]);   static shared memory: a reference to the array `tile`
//   SSKD_DYNAMIC_SHARED(bytes);           `unsigned char* bytes`, at least 16-byte aligned, once per kernel
//   launch(kernel, grid, block, shared_bytes, stream, arguments...);
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace sskd_fast::cuda {

// Dynamic shared memory available to every launch; more must be requested.
constexpr int kSharedBytes = 48 * 1024;

}  // namespace sskd_fast::cuda

#if defined(SSKD_EMULATION)

#include "emulation/cuda.h"

#define SSKD_SHARED(type, name, extent)                              \
  using name##_array = type extent;                                  \
  static sskd_fast::emulation::Shared<name##_array> name##_storage;  \
  name##_array& name = name##_storage.get()
#define SSKD_DYNAMIC_SHARED(name) unsigned char* const name = sskd_fast::emulation::the_grid.dynamic_shared()

namespace sskd_fast::cuda {

using Stream = int;  // the emulation has a single stream

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream /*stream*/,
            std::type_identity_t<Parameters>... arguments) {
  emulation::the_grid.run([=] { kernel(arguments...); }, grid, block, shared_bytes);
}

}  // namespace sskd_fast::cuda

#else

#include <cuda_runtime.h>

#define SSKD_SHARED(type, name, extent) __shared__ type name extent
#define SSKD_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace sskd_fast::cuda {

using Stream = cudaStream_t;

inline void check_call(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

#if defined(__CUDACC__)
template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            std::type_identity_t<Parameters>... arguments) {
  if (shared_bytes > size_t{kSharedBytes})
    check_call(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)));
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  check_call(cudaGetLastError());
}
#endif

}  // namespace sskd_fast::cuda

#endif
