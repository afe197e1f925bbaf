// A copy of embedding rows that are read many times: normalised, in the type of the sums, in huge pages, and padded
// with zeros to whole vectors.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/embeddings.h"
#include "cpu/lanes.h"
#include "cpu/threads.h"

namespace sskd_fast {

template <typename T>
class UnitRows {
 public:
  template <typename S>
  UnitRows(const Embeddings<S>& x, bool normalize)
      : rows_(x.rows), width_(padded(x.width)), data_(x.rows * width_, true) {
    parallel_for(0, rows_, 256, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* out = data_.data() + i * width_;
        unit_row(x.row(i), normalize, x.width, out);
        std::fill(out + x.width, out + width_, T(0));
      }
    });
  }

  static int64_t padded(int64_t width) { return (width + Lanes<T>::count - 1) / Lanes<T>::count * Lanes<T>::count; }

  int64_t width() const { return width_; }
  const T* row(int64_t i) const { return data_.data() + i * width_; }

  // log2 of the number of rows in a tile. Rows read at random are processed in tiles, a few of the whole table. A tile
  // of the least number of bytes stays in the second-level cache of a core, the largest in the last-level cache. More
  // tiles cost more than they save: every one of them reads and writes the rows of the other side again.
  int tile_shift(int64_t least) const {
    constexpr int64_t most = int64_t{1} << 22, few = 8;
    const int64_t bytes = std::max<int64_t>(1, width_ * static_cast<int64_t>(sizeof(T)));
    const int64_t rows = std::clamp(rows_ * bytes / few, least, most) / bytes;
    int shift = 0;
    while ((int64_t{2} << shift) <= rows) ++shift;
    return shift;
  }

 private:
  int64_t rows_, width_;
  Buffer<T> data_;
};

}  // namespace sskd_fast
