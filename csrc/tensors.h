// Tensors on LibTorch's stable ABI, so that one library serves every PyTorch from 2.10 on: allocation, checks, and the
// choice of code by element type. Nothing in csrc/ includes ATen, c10 or torch/library.h.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

extern "C" const char* torch_exception_get_what_without_backtrace() __attribute__((weak));

namespace sskd_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Throws unless the condition holds; the message is the parts, one after the other. sskd_fast/ops/_library.py makes a
// ValueError of it by its first word: from 2.15 on PyTorch keeps the message alone of what a stable operator throws.
template <typename... Parts>
void check_value(bool condition, const Parts&... parts) {
  if (condition) [[likely]]
    return;
  std::ostringstream message;
  message << "ValueError: ";
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

// Throws RuntimeError if a call of the stable ABI has failed. Before 2.13 PyTorch prints the cause on stderr alone.
inline void check_torch(AOTITorchError error, const char* what) {
  if (error == 0) [[likely]]
    return;
  const bool known = torch_exception_get_what_without_backtrace != nullptr;
  const std::string cause = known ? torch_exception_get_what_without_backtrace() : "the line above names the cause";
  throw std::runtime_error(std::string("PyTorch failed in ") + what + ": " + cause);
}

// The element type and the device of a tensor.
struct Options {
  ScalarType dtype;
  torch::stable::Device device;
  Options with(ScalarType other) const { return {other, device}; }
};

inline Options options_of(const Tensor& x) { return {x.scalar_type(), x.device()}; }

// The dtype of sums and products of these numbers: double for double, float otherwise.
inline Options compute_options(const Tensor& x) {
  return options_of(x).with(x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

// sskd_fast/ops/_library.py looks for the words "out of memory". Before 2.13 PyTorch names no cause; later, another
// cause than memory is left as it is.
inline Tensor empty(Sizes sizes, const Options& options) {
  try {
    return torch::stable::empty(sizes, options.dtype, std::nullopt, options.device);
  } catch (const std::runtime_error& error) {
    const std::string cause = error.what();
    const bool known = torch_exception_get_what_without_backtrace != nullptr;
    const bool of_memory = cause.find("memory") != cause.npos && cause.find("illegal") == cause.npos;
    if (known && !of_memory) throw;
    std::ostringstream message;
    message << "out of memory for a result of shape [";
    for (size_t i = 0; i < sizes.size(); ++i) message << (i == 0 ? "" : ", ") << sizes[i];
    message << "]: " << cause;
    throw std::runtime_error(message.str());
  }
}

inline Tensor zeros(Sizes sizes, const Options& options) {
  Tensor result = empty(sizes, options);
  return torch::stable::zero_(result);
}

inline Tensor full(Sizes sizes, double value, const Options& options) {
  return torch::stable::full(sizes, value, options.dtype, std::nullopt, options.device);
}

inline Tensor packed(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// The tensor in contiguous memory; undefined if there is none.
inline Tensor packed(const std::optional<Tensor>& x) { return x ? packed(*x) : Tensor(); }

inline Tensor with_dtype(const Tensor& x, ScalarType dtype) {
  return x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
}

inline bool same_sizes(const Tensor& x, const Tensor& y) { return x.sizes().equals(y.sizes()); }

inline std::string name_of(const torch::stable::Device& device) {
  if (device.is_cpu()) return "cpu";
  return (device.is_cuda() ? "cuda:" : "device ") + std::to_string(device.index());
}

// A shape as Python prints it in brackets: [2, 3].
inline std::string shape_of(const Tensor& x) {
  std::ostringstream text;
  for (int64_t i = 0; i < x.dim(); ++i) text << (i == 0 ? "[" : ", ") << x.size(i);
  return text.str() + (x.dim() == 0 ? "[]" : "]");
}

// f(T()) for the element type T of x, one of `Types`.
template <typename... Types, typename F>
void by_dtype(const char* operation, const Tensor& x, F f) {
  const ScalarType type = x.scalar_type();
  const auto runs = [&](auto zero) {
    if (torch::headeronly::CppTypeToScalarType<decltype(zero)>::value != type) return false;
    f(zero);
    return true;
  };
  if ((runs(Types()) || ...)) return;
  std::ostringstream expected;
  const char* separator = "";
  ((expected << separator << torch::headeronly::CppTypeToScalarType<Types>::value, separator = ", "), ...);
  check_value(false, operation, ": found dtype ", type, ", expected one of ", expected.str());
}

// The same for float32 and float64.
template <typename F>
void by_float(const char* operation, const Tensor& x, F f) {
  by_dtype<float, double>(operation, x, f);
}

}  // namespace sskd_fast
