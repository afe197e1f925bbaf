// Negative sampling on the GPU: launchers on raw pointers.
#pragma once

#include <cstdint>

#include "cuda/compressed_rows.h"
#include "cuda/device.h"
#include "cuda/numbers.h"
#include "math/negative_sampling.h"

namespace sskd_fast::cuda {

// The candidates and their tables, see `Proposals` in sskd_fast/reference/proposals.py. A anchors, M candidates, at least
// one of each. Either both have scores or neither.
template <typename S>
struct SamplingTables {
  Rows<S> anchors, candidates;  // (A, E), (M, E); data null without scores
  // The same in bytes, less the same centre. coarse, fine: the two layers of the anchors.
  CompressedRows coarse, fine, compressed;
  float slack;                  // for the rounding of sums over a row
  const double* weight;         // (M,), or null
  bool same;
  const int32_t* entries;
  const double *ratio, *bound;
  const int64_t *table, *first, *count, *skip_from, *skip_length, *available;
  const int32_t* order;
  const int64_t *own_from, *own_until;
  const int64_t* seed;
};

// Blocks of the race. They split the anchors among them, so working memory does not grow with the anchors.
constexpr int kRaceBlocks = 512;

// int32 numbers in a warp's set of drawn candidates; the set is in shared memory if it fits.
int64_t drawn_set_size(int64_t num_negatives);
bool drawn_set_is_shared(int64_t num_negatives);
// Entries that a block of the race sorts at a time; in shared memory if they fit.
int64_t race_buffer_size(int64_t num_negatives);
bool race_buffer_is_shared(int64_t num_negatives);

// picks (A, R): up to R candidates by rejection, then -1. sets (A, drawn_set_size), or null if in shared memory.
template <typename S>
void launch_trials(const SamplingTables<S>& tables, int64_t num_negatives, int32_t* sets, int32_t* picks, Stream stream);

// Fills up rows of picks that contain -1 by the exact race. marks (kRaceBlocks, ceil(M / 32)), zeros before and after;
// arrivals, racers (kRaceBlocks, race_buffer_size), or null if in shared memory.
template <typename S>
void launch_race(const SamplingTables<S>& tables, int64_t num_negatives, uint32_t* marks, double* arrivals,
                 int32_t* racers, int32_t* picks, Stream stream);

}  // namespace sskd_fast::cuda
