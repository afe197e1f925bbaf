// Products of tiles as by the tensor cores of a warp; cuda/tensor_cores.h describes the fragments.
#pragma once

#include "common/half_precision.h"
#include "emulation/warp.h"

namespace sskd_fast::emulation {

// d (16, 8) += a (16, Depth) b (Depth, 8) in float. Each register holds Pack numbers along the depth; number(bits, i) is
// the i-th of them.
template <int Depth, int Pack, typename Number>
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Number&& number, const char* what,
              Place place) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  Operands own;
  std::memcpy(own.a, a, sizeof(a));
  std::memcpy(own.b, b, sizeof(b));
  the_grid.warp_barrier(what, 0xFFFFFFFFu, own, place);
  Operands of_lane[32];
  for (unsigned int lane = 0; lane < 32; ++lane) of_lane[lane] = the_grid.operand<Operands>(lane);
  const int group = static_cast<int>(the_grid.lane() / 4), within = static_cast<int>(the_grid.lane() % 4);
  for (int i = 0; i < 4; ++i) {
    const int row = group + (i < 2 ? 0 : 8), column = within * 2 + i % 2;
    for (int k = 0; k < Depth; ++k) {
      const int lane_in_group = k / Pack % 4, half = k / (4 * Pack);
      const uint32_t x = of_lane[row % 8 * 4 + lane_in_group].a[row / 8 + 2 * half];
      const uint32_t y = of_lane[column * 4 + lane_in_group].b[half];
      d[i] += number(x, k % Pack) * number(y, k % Pack);
    }
  }
}

template <typename T>
float half_of(uint32_t bits, int i) {
  return widen(T{static_cast<uint16_t>(bits >> 16 * i)});
}

// Four 8 x 8 tiles of two-byte numbers; lane l passes the address of row l % 8 of tile l / 8.
inline void load_tiles(uint32_t (&registers)[4], const void* row, bool transposed, Place place) {
  struct Row {
    uint16_t x[8];
  };
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) throw Error("load_tiles: a row that is not aligned to 16 bytes");
  Row own;
  std::memcpy(&own, row, sizeof(own));
  the_grid.warp_barrier("load_tiles", 0xFFFFFFFFu, own, place);
  const unsigned int lane = the_grid.lane();
  for (unsigned int tile = 0; tile < 4; ++tile) {
    uint16_t pair[2];
    for (unsigned int i = 0; i < 2; ++i) {
      const unsigned int r = transposed ? lane % 4 * 2 + i : lane / 4, c = transposed ? lane / 4 : lane % 4 * 2 + i;
      pair[i] = the_grid.operand<Row>(tile * 8 + r).x[c];
    }
    registers[tile] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

}  // namespace sskd_fast::emulation
