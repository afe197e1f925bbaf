// Warp-wide functions. Reading from a lane that does not take part is an error here, and undefined in CUDA.
#pragma once

#include "emulation/grid.h"

namespace sskd_fast::emulation {

// The lane that PTX's shfl reads: `lane` itself if the wanted lane is outside its segment of `width` lanes.
enum class Shuffle { kIndex, kUp, kDown, kXor };

inline unsigned int source_lane(Shuffle mode, unsigned int lane, unsigned int b, unsigned int width) {
  const unsigned int segment = 32 - width, first = lane & segment, last = first | (width - 1);
  switch (mode) {
    case Shuffle::kIndex:
      return first | (b & (width - 1));
    case Shuffle::kUp:
      return lane < first + b ? lane : lane - b;
    case Shuffle::kDown:
      return lane + b > last ? lane : lane + b;
    case Shuffle::kXor:
      return (lane ^ b) > last ? lane : lane ^ b;
  }
  return lane;
}

template <typename T>
T shuffle(Shuffle mode, const char* what, uint32_t mask, T value, unsigned int b, int width, Place place) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    throw Error(std::string(what) + " with width " + std::to_string(width) + ", expected a power of two up to 32");
  the_grid.warp_barrier(what, mask, value, place);
  const unsigned int source = source_lane(mode, the_grid.lane(), b & 31, static_cast<unsigned int>(width));
  if ((mask >> source & 1) == 0)
    throw Error(std::string(what) + " reads from lane " + std::to_string(source) + ", which is not in its mask, at " +
                place.file_name() + ":" + std::to_string(place.line()));
  return the_grid.operand<T>(source);
}

// The lanes of `mask` combine their operands: combine(combine(first, second), third) ...
template <typename T, typename Combine>
T combined(const char* what, uint32_t mask, T value, Place place, Combine&& combine) {
  the_grid.warp_barrier(what, mask, value, place);
  T result{};
  bool first = true;
  for (unsigned int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const T other = the_grid.operand<T>(lane);
    result = first ? other : combine(result, other);
    first = false;
  }
  return result;
}

// A bit for every lane of `mask` whose operand satisfies holds().
template <typename T, typename Holds>
unsigned int lanes_where(const char* what, uint32_t mask, T value, Place place, Holds&& holds) {
  the_grid.warp_barrier(what, mask, value, place);
  unsigned int bits = 0;
  for (unsigned int lane = 0; lane < 32; ++lane)
    if ((mask >> lane & 1) != 0 && holds(the_grid.operand<T>(lane))) bits |= 1u << lane;
  return bits;
}

}  // namespace sskd_fast::emulation

#define SSKD_PLACE sskd_fast::emulation::Place place = sskd_fast::emulation::Place::current()
#define SSKD_SHUFFLE(name, mode)                                                                               \
  template <typename T>                                                                                        \
  T name(unsigned int mask, T value, unsigned int b, int width = 32, SSKD_PLACE) {                             \
    return sskd_fast::emulation::shuffle(sskd_fast::emulation::Shuffle::mode, #name, mask, value, b, width, place); \
  }
SSKD_SHUFFLE(__shfl_sync, kIndex)
SSKD_SHUFFLE(__shfl_up_sync, kUp)
SSKD_SHUFFLE(__shfl_down_sync, kDown)
SSKD_SHUFFLE(__shfl_xor_sync, kXor)
#undef SSKD_SHUFFLE

inline void __syncwarp(unsigned int mask = 0xFFFFFFFFu, SSKD_PLACE) {
  sskd_fast::emulation::the_grid.warp_barrier("__syncwarp", mask, 0, place);
}
inline unsigned int __ballot_sync(unsigned int mask, int predicate, SSKD_PLACE) {
  return sskd_fast::emulation::lanes_where("__ballot_sync", mask, predicate, place, [](int x) { return x != 0; });
}
inline int __any_sync(unsigned int mask, int predicate, SSKD_PLACE) {
  return sskd_fast::emulation::lanes_where("__any_sync", mask, predicate, place, [](int x) { return x != 0; }) != 0;
}
inline int __all_sync(unsigned int mask, int predicate, SSKD_PLACE) {
  return sskd_fast::emulation::lanes_where("__all_sync", mask, predicate, place, [](int x) { return x == 0; }) == 0;
}
template <typename T>
unsigned int __match_any_sync(unsigned int mask, T value, SSKD_PLACE) {
  return sskd_fast::emulation::lanes_where("__match_any_sync", mask, value, place, [&](T x) { return x == value; });
}

#define SSKD_REDUCE(name, type, expression)                                                     \
  inline type name(unsigned int mask, type value, SSKD_PLACE) {                                 \
    return sskd_fast::emulation::combined(#name, mask, value, place, [](type x, type y) -> type { return expression; }); \
  }
SSKD_REDUCE(__reduce_add_sync, unsigned int, x + y)
SSKD_REDUCE(__reduce_add_sync, int, static_cast<int>(static_cast<unsigned int>(x) + static_cast<unsigned int>(y)))
SSKD_REDUCE(__reduce_min_sync, unsigned int, x < y ? x : y)
SSKD_REDUCE(__reduce_min_sync, int, x < y ? x : y)
SSKD_REDUCE(__reduce_max_sync, unsigned int, x < y ? y : x)
SSKD_REDUCE(__reduce_max_sync, int, x < y ? y : x)
SSKD_REDUCE(__reduce_or_sync, unsigned int, x | y)
SSKD_REDUCE(__reduce_and_sync, unsigned int, x & y)
#undef SSKD_REDUCE
#undef SSKD_PLACE
