// Loops over PyTorch's threads, as many as torch.set_num_threads says. A nested loop runs on the thread that reaches it.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <exception>
#include <mutex>

#include "tensors.h"

namespace sskd_fast {

inline int64_t num_threads() {
  uint32_t count = 1;
  check_torch(torch_get_num_threads(&count), "torch_get_num_threads");
  return count;
}

// Calls f(from, until) for ranges that cover [begin, end); each but the last has at least `grain` numbers. Rethrows the
// first exception of f, since none may cross the C functions of the stable ABI.
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  struct Work {
    const F& f;
    std::mutex mutex;
    std::exception_ptr failure;
  } work{f, {}, {}};
  const auto run = [](int64_t from, int64_t until, void* data) {
    Work& own = *static_cast<Work*>(data);
    try {
      own.f(from, until);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(own.mutex);
      if (!own.failure) own.failure = std::current_exception();
    }
  };
  check_torch(torch_parallel_for(begin, end, grain, run, &work), "torch_parallel_for");
  if (work.failure) std::rethrow_exception(work.failure);
}

}  // namespace sskd_fast
