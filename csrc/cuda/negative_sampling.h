// Negative sampling on the GPU: launchers on raw pointers.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/numbers.h"
#include "math/negative_sampling.h"

namespace sskd_fast::cuda {

// What is drawn from, and the tables for it: see `Proposals` in sskd_fast/reference/proposals.py. A anchors, M
// candidates, at least one of each. Scores are there for both or for neither.
template <typename S>
struct SamplingTables {
  Rows<S> anchors, candidates;  // (A, E), (M, E); data null without scores
  const double* weight;         // (M,), or null
  bool same;
  const int32_t* entries;
  const double *ratio, *bound;
  const int64_t *table, *first, *count, *skip_from, *skip_length, *available;
  const int32_t* order;
  const int64_t *own_from, *own_until;
  const int64_t* seed;
};

// Blocks of the race: they share the anchors out among them, so that working memory does not grow with the anchors.
constexpr int kRaceBlocks = 512;

// Numbers of int32 a warp needs to know what it has drawn; they lie in shared memory where they fit.
int64_t drawn_set_size(int64_t num_negatives);
bool drawn_set_is_shared(int64_t num_negatives);
// Entries that a block of the race sorts at a time; likewise.
int64_t race_buffer_size(int64_t num_negatives);
bool race_buffer_is_shared(int64_t num_negatives);

// picks (A, R): up to R candidates by rejection, -1 behind them. sets (A, drawn_set_size), or null where it is shared.
template <typename S>
void launch_trials(const SamplingTables<S>& tables, int64_t num_negatives, int32_t* sets, int32_t* picks, Stream stream);

// Fills the rows of picks that have -1 by the exact race. marks (kRaceBlocks, ceil(M / 32)), zeros before and after;
// arrivals, racers (kRaceBlocks, race_buffer_size), or null where they are shared.
template <typename S>
void launch_race(const SamplingTables<S>& tables, int64_t num_negatives, uint32_t* marks, double* arrivals,
                 int32_t* racers, int32_t* picks, Stream stream);

}  // namespace sskd_fast::cuda
