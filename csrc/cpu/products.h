// Small matrix products for tiled losses: a few rows by a panel of columns, in registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/lanes.h"

namespace sskd_fast {

// Rows per block, chosen so that the sums of a block fill the registers.
#if defined(__AVX512F__)
constexpr int kBlockRows = 8;
#else
constexpr int kBlockRows = 4;
#endif

template <typename T>
constexpr int64_t kPanel = 2 * Lanes<T>::count;

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// The sums of a block: kBlockRows rows of kPanel numbers.
template <typename T>
struct Block {
  Vector<T> at[kBlockRows][2];
};

// block += a (kBlockRows x depth, rows `stride_a` apart) times b (depth x kPanel, rows `stride_b` apart).
template <typename T>
inline void multiply(const T* a, int64_t stride_a, const T* b, int64_t stride_b, int64_t depth, Block<T>& block) {
  Vector<T> sums[kBlockRows][2];
  for (int i = 0; i < kBlockRows; ++i) sums[i][0] = block.at[i][0], sums[i][1] = block.at[i][1];
  for (int64_t k = 0; k < depth; ++k) {
    const Vector<T> left = load(b + k * stride_b), right = load(b + k * stride_b + Lanes<T>::count);
#pragma GCC unroll 8
    for (int i = 0; i < kBlockRows; ++i) {
      const T factor = a[i * stride_a + k];
      sums[i][0] += factor * left;
      sums[i][1] += factor * right;
    }
  }
  for (int i = 0; i < kBlockRows; ++i) block.at[i][0] = sums[i][0], block.at[i][1] = sums[i][1];
}

// A matrix of rows padded with zeros to whole panels, by row and by panel (depth x kPanel, one after the other).
template <typename T>
struct Operand {
  int64_t rows = 0, width = 0, padded_rows = 0, padded_width = 0;
  Buffer<T> by_row, by_panel;

  Operand() = default;
  Operand(int64_t rows_, int64_t width_)
      : rows(rows_), width(width_), padded_rows(round_up(rows_, kPanel<T>)), padded_width(round_up(width_, kPanel<T>)),
        by_row(padded_rows * padded_width), by_panel(padded_rows * width_) {}

  const T* row(int64_t i) const { return by_row.data() + i * padded_width; }
  const T* panel(int64_t p) const { return by_panel.data() + p * width * kPanel<T>; }

  // Fills panel p and its rows; read(i, out) writes the `width` numbers of row i.
  template <typename Read>
  void fill(int64_t p, Read read) {
    for (int64_t j = 0; j < kPanel<T>; ++j) {
      T* out = by_row.data() + (p * kPanel<T> + j) * padded_width;
      std::fill_n(out, padded_width, T(0));
      if (p * kPanel<T> + j < rows) read(p * kPanel<T> + j, out);
      T* column = by_panel.data() + p * width * kPanel<T> + j;
      for (int64_t k = 0; k < width; ++k) column[k * kPanel<T>] = out[k];
    }
  }
};

}  // namespace sskd_fast
