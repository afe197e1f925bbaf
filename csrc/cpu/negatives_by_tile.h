// The negatives of every anchor in the order in which tiles of candidates are processed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/lane_selection.h"
#include "cpu/lanes.h"
#include "cpu/threads.h"

namespace sskd_fast {

// The negatives of every anchor by tile, without ignored ones. They are sorted once if there are many tiles. If there
// are few, those of a tile are picked out of the row for each tile anew, which costs less.
class NegativesByTile {
 public:
  static constexpr int64_t kMostPicked = 8;  // tiles whose negatives are picked

  // The negatives of one anchor that lie in a tile of the candidates.
  struct Row {
    const int32_t* candidate;
    int64_t begin, count;  // begin: place of the first among all negatives of the anchor, by tile
  };

  // room: space for anchors x draws candidates, used if there are several tiles; null to allocate it. The entries of a
  // tile may be overwritten once its row has been read.
  NegativesByTile(const int32_t* negatives, int64_t anchors, int64_t draws, int64_t candidates, int shift, void* room)
      : negatives_(negatives), draws_(draws), tiles_(candidates == 0 ? 1 : ((candidates - 1) >> shift) + 1),
        size_(int32_t{1} << std::min(shift, 30)), room_(static_cast<char*>(room)) {
    if (draws > std::numeric_limits<uint16_t>::max() || candidates > int64_t{1} << 30) tiles_ = 1, size_ = INT32_MAX;
    if (picked()) return;
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

  void fetch(int64_t anchor) const {
    if (picked()) prefetch_row(negatives_ + anchor * draws_, draws_);
  }

  // begin: place of the first, the end of the anchor's row in the tile before. scratch: room for draws + 16 numbers.
  Row row(int64_t anchor, int64_t tile, int64_t begin, std::vector<int32_t>& scratch) const {
    if (picked()) {
      const int32_t from = static_cast<int32_t>(tile) * size_;
      const int64_t count = numbers_within(negatives_ + anchor * draws_, draws_, from, size_, scratch.data());
      return {scratch.data(), begin, count};
    }
    const int32_t* start = start_.data() + anchor * (tiles_ + 1) + tile;
    const int64_t count = start[1] - start[0];
    std::memcpy(scratch.data(), room_ + (anchor * draws_ + start[0]) * sizeof(int32_t), count * sizeof(int32_t));
    return {scratch.data(), start[0], count};
  }

  // out (R) <- values of an anchor's negatives, moved from tile order to their own columns; 0 for ignored negatives.
  // by_tile: with room for 16 more.
  template <typename T>
  void scatter(int64_t anchor, const T* by_tile, int64_t count, T* out) const {
    if (tiles_ == 1 && count == draws_) {
      std::copy_n(by_tile, count, out);
      return;
    }
    std::fill_n(out, draws_, T(0));
    if (picked()) {
      const int32_t* index = negatives_ + anchor * draws_;
      for (int64_t tile = 0; tile < tiles_; ++tile)
        by_tile += spread_within(index, draws_, static_cast<int32_t>(tile) * size_, size_, by_tile, out);
      return;
    }
    const uint16_t* column = column_.data() + anchor * draws_;
    for (int64_t r = 0; r < count; ++r) out[column[r]] = by_tile[r];
  }

 private:
  bool picked() const { return tiles_ <= kMostPicked; }

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
  int32_t size_;  // of a tile, in candidates
  char* room_;
  Buffer<int32_t> own_room_, start_;
  Buffer<uint16_t> column_;
};

}  // namespace sskd_fast
