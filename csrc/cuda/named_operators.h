// Operators of PyTorch that the stable ABI has no functions for, called by name.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/stableivalue_conversions.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "tensors.h"

namespace sskd_fast::cuda {

// The results of an operator, all of them tensors. The arguments are those of its schema, the optional ones too.
template <size_t results, typename... Arguments>
std::array<Tensor, results> call_by_name(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, std::max(sizeof...(arguments), results)> stack{torch::stable::detail::from(arguments)...};
  check_torch(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION), name);
  std::array<Tensor, results> given;
  for (size_t i = 0; i < results; ++i) given[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return given;
}

// The numbers of a flat tensor in ascending order (a stable sort), and their indices.
inline std::array<Tensor, 2> stable_sort(const Tensor& x) {
  return call_by_name<2>("aten::sort", "stable", x, std::optional<bool>(true), int64_t{0}, false);
}

// For each number of x, the count of smaller ones in `sorted`, or of those that are not larger.
inline Tensor count_below(const Tensor& sorted, const Tensor& x, bool or_equal = false) {
  return call_by_name<1>("aten::searchsorted", "Tensor", sorted, x, false, or_equal, std::nullopt, std::nullopt)[0];
}

// The mean of all numbers.
inline Tensor mean(const Tensor& x) { return call_by_name<1>("aten::mean", "", x, std::nullopt)[0]; }

// Sums of the numbers up to each one, in int64.
inline Tensor cumulative(const Tensor& flat) {
  return call_by_name<1>("aten::cumsum", "", flat, int64_t{0}, std::optional<ScalarType>(ScalarType::Long))[0];
}

// x limited to [least, most].
inline Tensor clamped(const Tensor& x, int64_t least, int64_t most) {
  const auto bound = [&](int64_t value) {
    return std::optional<Tensor>(full({}, static_cast<double>(value), options_of(x)));
  };
  return call_by_name<1>("aten::clamp", "Tensor", x, bound(least), bound(most))[0];
}

}  // namespace sskd_fast::cuda
