// Matrix products for tiled losses, a block at a time: its sums stay in registers over the whole depth of the product.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/lanes.h"

namespace sskd_fast {

// Rows per block. Two vectors a row and their factors fill the 32 registers of AVX-512, or 16. Fewer rows would load
// more numbers for every multiplication, and too few sums would wait for each other.
#if defined(__AVX512F__)
constexpr int kBlockRows = 8;
#else
constexpr int kBlockRows = 6;
#endif

// Columns per block.
template <typename T>
constexpr int64_t kPanel = 2 * Lanes<T>::count;

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// The sums of a block: kBlockRows rows of kPanel numbers.
template <typename T>
struct Block {
  Vector<T> at[kBlockRows][2];
};

// A matrix cut into strips of `step` columns, the last one padded: strip after strip, each row by row. So a product
// that sums over the rows reads its operands in order, without gaps.
template <typename T, int64_t step>
struct Strips {
  int64_t rows = 0, columns = 0;
  Buffer<T> data;

  Strips() = default;
  Strips(int64_t rows_, int64_t columns_) : rows(rows_), columns(columns_), data(rows_ * round_up(columns_, step)) {}

  int64_t count() const { return (columns + step - 1) / step; }
  T* strip(int64_t s) { return data.data() + s * rows * step; }
  const T* strip(int64_t s) const { return data.data() + s * rows * step; }
  void clear() { std::fill_n(data.data(), data.size(), T(0)); }

  // Row i from x (columns), with the padding; column j, which may be padding, from x (rows).
  void set_row(int64_t i, const T* x) {
    for (int64_t s = 0; s < count(); ++s) {
      const int64_t known = std::min(step, columns - s * step);
      std::fill(std::copy_n(x + s * step, known, strip(s) + i * step), strip(s) + (i + 1) * step, T(0));
    }
  }
  void set_column(int64_t j, const T* x) {
    T* out = strip(j / step) + j % step;
    for (int64_t k = 0; k < rows; ++k) out[k * step] = x[k];
  }

  // Row i to out (columns); the first n numbers of column j to out.
  void get_row(int64_t i, T* out) const {
    for (int64_t s = 0; s < count(); ++s)
      std::copy_n(strip(s) + i * step, std::min(step, columns - s * step), out + s * step);
  }
  void get_column(int64_t j, int64_t n, T* out) const {
    const T* x = strip(j / step) + j % step;
    for (int64_t k = 0; k < n; ++k) out[k] = x[k * step];
  }
};

// block += a (kBlockRows x depth) times b (depth x kPanel, row by row). Number (i, k) of a is at
// i * row_step + k * depth_step.
template <int64_t row_step, int64_t depth_step, typename T>
inline void multiply(const T* a, const T* b, int64_t depth, Block<T>& block) {
  Vector<T> sums[kBlockRows][2];
  for (int i = 0; i < kBlockRows; ++i) sums[i][0] = block.at[i][0], sums[i][1] = block.at[i][1];
  for (int64_t k = 0; k < depth; ++k) {
    const Vector<T> left = load(b + k * kPanel<T>), right = load(b + k * kPanel<T> + Lanes<T>::count);
#pragma GCC unroll 8
    for (int i = 0; i < kBlockRows; ++i) {
      const T factor = a[i * row_step + k * depth_step];
      sums[i][0] += factor * left;
      sums[i][1] += factor * right;
    }
  }
  for (int i = 0; i < kBlockRows; ++i) block.at[i][0] = sums[i][0], block.at[i][1] = sums[i][1];
}

// x (kBlockRows rows of kPanel, one after the other) += block. Sums of their own for a part of the depth round less
// than one sum over all of it.
template <typename T>
inline void add_sums(T* x, const Block<T>& block) {
  for (int i = 0; i < kBlockRows; ++i)
    for (int v = 0; v < 2; ++v) {
      T* const at = x + i * kPanel<T> + v * Lanes<T>::count;
      store<T>(at, load(at) + block.at[i][v]);
    }
}

}  // namespace sskd_fast
