// Code shared by the launchers: rows in the layout of the kernels, and the choice of a kernel by storage type. Nothing
// here waits for the device.
#pragma once

#include "cuda/device.h"
#include "cuda/named_operators.h"
#include "cuda/numbers.h"
#include "cuda/on_device.h"
#include "tensors.h"

namespace sskd_fast::cuda {

// f(S()) for the storage type S of a scalar type.
template <typename F>
void with_storage(ScalarType type, F f) {
  switch (type) {
    case ScalarType::Float:
      return f(float());
    case ScalarType::Double:
      return f(double());
    case ScalarType::BFloat16:
      return f(BFloat16());
    case ScalarType::Half:
      return f(Half());
    default:
      check_value(false, "found ", type, ", expected float32, float64, bfloat16 or float16");
  }
}

template <typename T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

template <typename T>
const T* const_data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

// The width of x, rounded up so that a row is a multiple of 16 bytes.
inline int64_t aligned_width(const Tensor& x) {
  const int64_t pack = 16 / x.element_size();
  return (x.size(1) + pack - 1) / pack * pack;
}

// Contiguous rows of this width, aligned to 16 bytes, padded with zeros.
inline Tensor aligned_rows(const Tensor& x, int64_t width) {
  const Tensor rows = width == x.size(1) ? packed(x) : torch::stable::pad(x, {0, width - x.size(1)});
  return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 16 == 0 ? rows : torch::stable::clone(rows);
}

// A matrix in the layout of the kernels: rows aligned and padded to `width` numbers, less than 2^31 bytes.
inline Tensor readable_rows(const char* name, const Tensor& x, int64_t width) {
  check_value(width <= INT32_MAX / x.element_size(), name, ": found width ", x.size(1),
              ", expected rows of less than 2^31 bytes");
  return aligned_rows(x, width);
}

inline Tensor readable_rows(const char* name, const Tensor& x) { return readable_rows(name, x, aligned_width(x)); }

template <typename S>
Rows<S> rows_of(const Tensor& readable) {
  return {const_data<S>(readable), readable.size(0), static_cast<int32_t>(readable.size(1))};
}

// Working memory of `count` numbers for each of `rows`; undefined if shared memory has room for it.
inline Tensor scratch(bool is_shared, int64_t rows, int64_t count, const Options& options) {
  return is_shared ? Tensor() : empty({rows, count}, options);
}

template <typename T>
T* data_or_null(const Tensor& x) {
  return x.defined() ? data<T>(x) : nullptr;
}

// Indices as int32 for the kernels. An index that does not fit becomes an invalid one, so that the kernels report it
// instead of reading the candidate that truncation would give.
inline Tensor narrowed_indices(const Tensor& index) {
  const Tensor near = index.scalar_type() == ScalarType::Long ? clamped(index, -2, INT32_MAX) : index;
  return packed(with_dtype(near, ScalarType::Int));
}

// The first `width` columns, contiguous: removes the padding of aligned_rows().
inline Tensor without_padding(const Tensor& rows, int64_t width) {
  Tensor whole = rows;
  return packed(torch::stable::narrow(whole, 1, 0, width));
}

}  // namespace sskd_fast::cuda
