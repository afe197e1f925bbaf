// A copy of embedding rows that are read many times: normalised, in the type of the sums, in huge pages, and padded
// with zeros to whole vectors.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/embeddings.h"
#include "cpu/lanes.h"
#include "cpu/threads.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace sskd_fast {

// Limits on the size of a tile. Rows read at random are processed in tiles, within the limits a few of the whole table.
// More tiles cost more than they save: every one of them reads and writes the rows of the other side again.
struct TileBytes {
  int64_t least, most;
};

// Tiles of which a use of every row is written at random, too. The least stays in the second-level cache of a core.
constexpr TileBytes kWrittenTiles{int64_t{1} << 19, int64_t{1} << 22};

// Tiles that are only read, in the second-level or in the last-level cache.
constexpr TileBytes kNearTiles{int64_t{1} << 20, int64_t{1} << 22}, kFarTiles{int64_t{1} << 23, int64_t{1} << 23};

// Whether tiles that are only read should stay in the second-level cache. An Intel Xeon with 2 MB of it per core reads
// rows from 1 MB 2.5 times faster than from 4 MB, and 3.9 times than from 8; an AMD EPYC with 1 MB 1.2 to 1.4 and 1.3
// to 1.7 times, and the tiles cost more than that. True if the system does not tell the size.
inline bool rows_in_second_level() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return bytes <= 0 || bytes >= int64_t{1} << 21;
#else
  return true;
#endif
}

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

  // log2 of the number of rows in a tile.
  int tile_shift(const TileBytes& limits) const {
    constexpr int64_t few = 8;
    const int64_t bytes = std::max<int64_t>(1, width_ * static_cast<int64_t>(sizeof(T)));
    const int64_t rows = std::clamp(rows_ * bytes / few, limits.least, limits.most) / bytes;
    int shift = 0;
    while ((int64_t{2} << shift) <= rows) ++shift;
    return shift;
  }

 private:
  int64_t rows_, width_;
  Buffer<T> data_;
};

}  // namespace sskd_fast
