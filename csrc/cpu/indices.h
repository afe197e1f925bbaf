// Checks of indices into the candidates, before they are narrowed to 32 bits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/first_wrong.h"
#include "tensors.h"

namespace sskd_fast {

// Whether all of n indices are -1 or below `size`. A loop without captured variables, which compilers vectorise.
template <typename I>
bool within_range(const I* index, int64_t n, int64_t size) {
  I low = -1, high = -1;
  for (int64_t i = 0; i < n; ++i) {
    low = index[i] < low ? index[i] : low;
    high = index[i] > high ? index[i] : high;
  }
  return low == -1 && high < size;
}

template <typename I>
void check_range(const char* name, const I* index, int64_t count, int64_t size) {
  constexpr int64_t block = 4096;
  const int64_t blocks = (count + block - 1) / block;
  const int64_t wrong = first_wrong(blocks, 16, [&](int64_t b) {
    return !within_range(index + b * block, std::min(block, count - b * block), size);
  });
  if (wrong == blocks) return;
  // The range for the message, from the values found (-1 need not occur).
  const auto [least, most] = std::minmax_element(index, index + count);
  check_value(false, name, ": found values in [", *least, ", ", *most, "], expected -1 or an index below ", size);
}

// The indices as contiguous int32, -1 or below `size`.
inline Tensor checked_indices(const char* name, const Tensor& index, int64_t size) {
  const Tensor given = packed(index);
  if (given.scalar_type() == ScalarType::Long)
    check_range(name, given.const_data_ptr<int64_t>(), given.numel(), size);
  else
    check_range(name, given.const_data_ptr<int32_t>(), given.numel(), size);
  return with_dtype(given, ScalarType::Int);
}

}  // namespace sskd_fast
