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

inline Tensor softmax(const Tensor& x, int64_t dim) {
  return call_by_name<1>("aten::softmax", "int", x, dim, std::nullopt)[0];
}

// The mean over the rows.
inline Tensor mean_row(const Tensor& x) {
  const int64_t rows = 0;
  return call_by_name<1>("aten::mean", "dim", x, std::optional<Sizes>(Sizes(&rows, 1)), false, std::nullopt)[0];
}

// x limited to [least, most].
inline Tensor clamped(const Tensor& x, int64_t least, int64_t most) {
  const auto bound = [&](int64_t value) {
    return std::optional<Tensor>(full({}, static_cast<double>(value), options_of(x)));
  };
  return call_by_name<1>("aten::clamp", "Tensor", x, bound(least), bound(most))[0];
}

}  // namespace sskd_fast::cuda
