// Negative sampling: the arithmetic of one trial and of one entry of the race.
// sskd_fast/reference/negative_sampling.py explains the law.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"
#include "common/philox.h"

namespace sskd_fast {

constexpr int kTrialsPerNegative = 16;
// Mean number of slots of a candidate in a table of proposals.
constexpr int kSlots = 8;
// Subtracted before slots are rounded up, so that masses that differ only in their last bit get the same number.
constexpr double kSlotSlack = 1e-9;
// Mean dissimilarity above which the even envelope accepts more often than the spread one. No short fraction, which
// rows that repeat would hit up to rounding.
constexpr double kEvenFrom = 0.45 - 1e-9;
// Rows of a group with a mean squared distance from their centre below kAlike differ by rounding only. The distance
// kAlikeBeta takes the place of that mean: any number makes a valid envelope, and this one makes t vanish.
constexpr double kAlike = 1e-26, kAlikeBeta = 1e-12;
// Margin of the spread envelope for rounding: too high costs trials, too low would distort the law.
constexpr double kEnvelopeMargin = 1 + 1e-4;

// The proposals of one anchor's trials: slots first .. first + count of the tables, without a skipped range.
struct AnchorProposals {
  int64_t first, count, skip_from, skip_length;
  double bound, acceptance;  // acceptance: expected
  bool spread;
};

struct Trial {
  int64_t slot;
  double level;
  bool fair;
};

SSKD_HOST_DEVICE inline int64_t trial_limit(int64_t num_negatives) { return kTrialsPerNegative * num_negatives + 64; }

// The slot that a trial proposes, and the level that its acceptance ratio must exceed. `unfair_below` is 2^32 mod
// count, for Lemire's rejection: without it the slots would not be equally likely.
SSKD_HOST_DEVICE inline Trial propose(uint32_t slot_word, uint32_t level_word, const AnchorProposals& p,
                                      uint32_t unfair_below) {
  const uint64_t product = static_cast<uint64_t>(slot_word) * static_cast<uint64_t>(p.count);
  int64_t slot = static_cast<int64_t>(product >> 32);
  slot += slot >= p.skip_from ? p.skip_length : 0;
  return {slot + p.first, unit_interval(level_word) * p.bound, static_cast<uint32_t>(product) >= unfair_below};
}

SSKD_HOST_DEVICE inline uint32_t unfair_below(int64_t count) {
  return count > 0 ? static_cast<uint32_t>((uint64_t{1} << 32) % static_cast<uint64_t>(count)) : 0;
}

// Arrival time of a candidate with this weight in the exponential race; infinite for weight 0.
SSKD_HOST_DEVICE inline double arrival(uint32_t word, double weight) { return -std::log(unit_interval(word)) / weight; }

}  // namespace sskd_fast
