// Code shared by the launchers: rows in the layout of the kernels, and the choice of a kernel by storage type. Nothing
// here waits for the device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>

#include "cuda/device.h"
#include "cuda/numbers.h"
#include "cuda/on_device.h"

namespace sskd_fast::cuda {

// f(S()) for the storage type S of a scalar type.
template <typename F>
void with_storage(at::ScalarType type, F f) {
  switch (type) {
    case at::kFloat:
      return f(float());
    case at::kDouble:
      return f(double());
    case at::kBFloat16:
      return f(BFloat16());
    case at::kHalf:
      return f(Half());
    default:
      TORCH_CHECK(false, "found ", type, ", expected float32, float64, bfloat16 or float16");
  }
}

// The dtype of sums and products of these embeddings: double for double, float otherwise.
inline at::TensorOptions compute_options(const at::Tensor& x) {
  return x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

template <typename T>
T* data(const at::Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

template <typename T>
const T* const_data(const at::Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

// The width of x, rounded up so that a row is a multiple of 16 bytes.
inline int64_t aligned_width(const at::Tensor& x) {
  const int64_t pack = 16 / x.element_size();
  return (x.size(1) + pack - 1) / pack * pack;
}

// Contiguous rows of this width, aligned to 16 bytes, padded with zeros.
inline at::Tensor aligned_rows(const at::Tensor& x, int64_t width) {
  const at::Tensor rows = width == x.size(1) ? x.contiguous() : at::constant_pad_nd(x, {0, width - x.size(1)});
  return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 16 == 0 ? rows : rows.clone();
}

// A matrix in the layout of the kernels: aligned rows, fewer than 2^31 numbers wide.
inline at::Tensor readable_rows(const char* name, const at::Tensor& x) {
  const at::Tensor rows = aligned_rows(x, aligned_width(x));
  TORCH_CHECK_VALUE(rows.size(1) <= INT32_MAX, name, ": found width ", x.size(1), ", expected less than 2^31");
  return rows;
}

template <typename S>
Rows<S> rows_of(const at::Tensor& readable) {
  return {const_data<S>(readable), readable.size(0), static_cast<int32_t>(readable.size(1))};
}

// Working memory of `count` numbers for each of `rows`; undefined if shared memory has room for it.
inline at::Tensor scratch(bool is_shared, int64_t rows, int64_t count, const at::TensorOptions& options) {
  return is_shared ? at::Tensor() : at::empty({rows, count}, options);
}

template <typename T>
T* data_or_null(const at::Tensor& x) {
  return x.defined() ? data<T>(x) : nullptr;
}

// Indices as int32 for the kernels. An index that does not fit becomes an invalid one, so that the kernels report it
// instead of reading the candidate that truncation would give.
inline at::Tensor narrowed_indices(const at::Tensor& index) {
  const at::Tensor near = index.scalar_type() == at::kLong ? at::clamp(index, -2, INT32_MAX) : index;
  return near.to(at::kInt).contiguous();
}

// The first `width` columns, contiguous: removes the padding of aligned_rows().
inline at::Tensor without_padding(const at::Tensor& rows, int64_t width) {
  return rows.narrow(1, 0, width).contiguous();
}

}  // namespace sskd_fast::cuda
