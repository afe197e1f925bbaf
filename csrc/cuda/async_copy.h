// Asynchronous copies from global to shared memory (sm_80 and later).
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/storage.h"

#if defined(SSKD_EMULATION)
#include <cstring>
#endif

namespace sskd_fast::cuda {

// Copies 16 bytes, aligned to 16; writes zeros without reading `from` unless `there`.
__device__ inline void copy_async(void* to, const void* from, bool there) {
  require_alignment(to);
#if defined(SSKD_EMULATION)
  if (there) {
    require_alignment(from);
    std::memcpy(to, from, 16);
  } else {
    std::memset(to, 0, 16);
  }
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
#endif
}

// The index of the thread in its block, hidden from the compiler. Otherwise it would hoist values computed from the
// index out of a loop into registers that the loop needs.
__device__ inline int forgotten_thread() {
  int thread = static_cast<int>(threadIdx.x);
#if !defined(SSKD_EMULATION)
  asm volatile("" : "+r"(thread));
#endif
  return thread;
}

// Waits for the copies that this thread has started; a barrier must follow before other threads read them.
__device__ inline void wait_for_copies() {
#if !defined(SSKD_EMULATION)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace sskd_fast::cuda
