// The negatives of every anchor in the order in which tiles of candidates are processed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/threads.h"

namespace sskd_fast {

// The negatives of every anchor by tile, without ignored ones. They are sorted once if there are several tiles, and
// copied one row at a time if there is only one.
class NegativesByTile {
 public:
  // The negatives of one anchor that lie in a tile of the candidates.
  struct Row {
    const int32_t* candidate;
    int64_t begin, count;  // begin: place of the first among all negatives of the anchor, by tile
  };

  // room: space for anchors x draws candidates, used if there are several tiles; null to allocate it. The entries of a
  // tile may be overwritten once its row has been read.
  NegativesByTile(const int32_t* negatives, int64_t anchors, int64_t draws, int64_t candidates, int shift, void* room)
      : negatives_(negatives), draws_(draws), tiles_(candidates == 0 ? 1 : ((candidates - 1) >> shift) + 1),
        room_(static_cast<char*>(room)) {
    if (draws > std::numeric_limits<uint16_t>::max()) tiles_ = 1;
    if (tiles_ == 1) return;
    if (room == nullptr) {
      own_room_ = Buffer<int32_t>(anchors * draws);
      room_ = reinterpret_cast<char*>(own_room_.data());
    }
    column_ = Buffer<uint16_t>(anchors * draws);
    start_ = Buffer<int32_t>(anchors * (tiles_ + 1));
    parallel_for(0, anchors, 64, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> sorted(draws);
      for (int64_t i = begin; i < end; ++i) sort(i, shift, sorted.data());
    });
  }

  int64_t tiles() const { return tiles_; }

  Row row(int64_t anchor, int64_t tile, std::vector<int32_t>& scratch) const {
    if (tiles_ == 1) {
      const int32_t* index = negatives_ + anchor * draws_;
      int64_t count = 0;
      for (int64_t r = 0; r < draws_; ++r) {
        scratch[count] = index[r];
        count += index[r] >= 0;
      }
      return {scratch.data(), 0, count};
    }
    const int32_t* start = start_.data() + anchor * (tiles_ + 1) + tile;
    const int64_t count = start[1] - start[0];
    std::memcpy(scratch.data(), room_ + (anchor * draws_ + start[0]) * sizeof(int32_t),
                count * sizeof(int32_t));
    return {scratch.data(), start[0], count};
  }

  // The number of negatives of an anchor whose row in the last tile is `last`.
  int64_t count(int64_t anchor, const Row& last) const {
    return tiles_ == 1 ? last.count : start_[anchor * (tiles_ + 1) + tiles_];
  }

  // out (R) <- values of an anchor's negatives, moved from tile order to their own columns; 0 for ignored negatives.
  template <typename T>
  void scatter(int64_t anchor, const T* by_tile, int64_t count, T* out) const {
    if (tiles_ == 1) {
      const int32_t* index = negatives_ + anchor * draws_;
      for (int64_t r = 0, next = 0; r < draws_; ++r) {
        out[r] = index[r] >= 0 ? by_tile[next] : T(0);
        next += index[r] >= 0 && next + 1 < count;
      }
      return;
    }
    std::fill_n(out, draws_, T(0));
    const uint16_t* column = column_.data() + anchor * draws_;
    for (int64_t r = 0; r < count; ++r) out[column[r]] = by_tile[r];
  }

 private:
  void sort(int64_t anchor, int shift, int32_t* sorted) {
    const int32_t* index = negatives_ + anchor * draws_;
    int32_t* start = start_.data() + anchor * (tiles_ + 1);
    uint16_t* column = column_.data() + anchor * draws_;
    std::fill_n(start, tiles_ + 1, 0);
    for (int64_t r = 0; r < draws_; ++r)
      if (index[r] >= 0) ++start[index[r] >> shift];
    int32_t total = 0;
    for (int64_t t = 0; t <= tiles_; ++t) total += std::exchange(start[t], total);
    // Each start moves to the end of its tile, which is the start of the next.
    for (int64_t r = 0; r < draws_; ++r) {
      if (index[r] < 0) continue;
      const int32_t place = start[index[r] >> shift]++;
      sorted[place] = index[r], column[place] = static_cast<uint16_t>(r);
    }
    for (int64_t t = tiles_; t > 0; --t) start[t] = start[t - 1];
    start[0] = 0;
    std::memcpy(room_ + anchor * draws_ * sizeof(int32_t), sorted, draws_ * sizeof(int32_t));
  }

  const int32_t* negatives_;
  int64_t draws_, tiles_;
  char* room_;
  Buffer<int32_t> own_room_, start_;
  Buffer<uint16_t> column_;
};

}  // namespace sskd_fast
