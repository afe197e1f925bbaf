// The first row that fails a check, found with several threads.
#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/threads.h"

namespace sskd_fast {

// The smallest i < count for which wrong(i) is true; count if there is none.
template <typename Wrong>
int64_t first_wrong(int64_t count, int64_t grain, Wrong wrong) {
  std::atomic<int64_t> first{count};
  parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!wrong(i)) continue;
      int64_t known = first.load();
      while (i < known && !first.compare_exchange_weak(known, i)) {
      }
      return;
    }
  });
  return first.load();
}

}  // namespace sskd_fast
