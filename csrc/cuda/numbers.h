// Rows of embeddings in any storage type, for kernels and their launchers.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/half_precision.h"
#include "common/macros.h"

namespace sskd_fast::cuda {

// The compute type for rows of storage type S.
template <typename S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

// Numbers of storage type S in 16 bytes, the unit in which kernels read and write.
template <typename S>
constexpr int kPack = 16 / static_cast<int>(sizeof(S));

// `count` rows of `width` numbers, a multiple of kPack<S>, aligned to 16 bytes.
template <typename S>
struct Rows {
  const S* data;
  int64_t count;
  int32_t width;
  SSKD_HOST_DEVICE const S* row(int64_t i) const { return data + i * width; }
  // A single multiplication: a row has less than 2^31 bytes.
  SSKD_HOST_DEVICE const S* row(int32_t i) const {
    const int32_t bytes = width * static_cast<int32_t>(sizeof(S));
    return reinterpret_cast<const S*>(reinterpret_cast<const char*>(data) + int64_t{i} * bytes);
  }
  SSKD_HOST_DEVICE int32_t packs() const { return width / kPack<S>; }
};

// Rows and 1 / norm of each, or 1 without normalisation.
template <typename S>
struct Embeddings : Rows<S> {
  const Compute<S>* inverse;
};

}  // namespace sskd_fast::cuda
