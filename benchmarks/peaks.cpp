// The machine's peaks on two threads: random reads of 512-byte rows and sequential reads of tables of several sizes, in
// GB/s, and multiply-adds, in 10^9 instructions of 64 bytes a second. Random reads are prefetched, as in the operators.
// Prints "name rate" lines.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

constexpr int kThreads = 2, kRepeats = 3;
using Vector = float __attribute__((vector_size(64)));

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The most of `amount` in a second over some calls of work(thread), which returns a number to keep.
template <typename F>
static double best_rate(double amount, F work) {
  double best = 0;
  float sink = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const double start = now();
#pragma omp parallel num_threads(kThreads) reduction(+ : sink)
    sink += work(omp_get_thread_num());
    best = std::max(best, amount * kThreads / (now() - start));
  }
  return sink == 0.5f ? 0 : best;
}

static Vector row_sum(const float* row, Vector total) {
  for (int j = 0; j < 8; ++j) {
    Vector v;
    std::memcpy(&v, row + 16 * j, sizeof(v));
    total += v;
  }
  return total;
}

static float random_rows(const std::vector<float>& table, int64_t rows, int reads, int thread) {
  constexpr int kAhead = 12;
  uint64_t state = 88172645463325252ull + thread;
  const auto next = [&] {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<int64_t>(state % rows);
  };
  int64_t ring[kAhead];
  for (auto& r : ring) r = next();
  Vector total{};
  for (int i = 0; i < reads; ++i) {
    const int64_t row = ring[i % kAhead], ahead = ring[i % kAhead] = next();
    for (int j = 0; j < 8; ++j) __builtin_prefetch(table.data() + ahead * 128 + 16 * j);
    total = row_sum(table.data() + row * 128, total);
  }
  return total[0];
}

// Every thread reads its half of the table, as often as it takes to read `reads` rows.
static float sequential_rows(const std::vector<float>& table, int64_t rows, int64_t reads, int thread) {
  const int64_t half = rows / kThreads;
  Vector even{}, odd{};
  for (int64_t done = 0; done < reads; done += half)
    for (int64_t i = thread * half; i + 1 < (thread + 1) * half; i += 2) {
      even = row_sum(table.data() + i * 128, even);
      odd = row_sum(table.data() + (i + 1) * 128, odd);
    }
  return even[0] + odd[0];
}

// Twelve independent sums, enough for two units with four cycles each.
static float multiply_adds(int64_t rounds) {
  const Vector factor = Vector{} + 0.999f, step = Vector{} + 1e-3f;
  Vector sums[12];
  for (int j = 0; j < 12; ++j) sums[j] = Vector{} + static_cast<float>(j);  // alike, they would be computed once
  for (int64_t i = 0; i < rounds; ++i)
    for (auto& x : sums) x = x * factor + step;
  float result = 0;
  for (const auto& x : sums) result += x[0];
  return result;
}

int main() {
  constexpr int kReads = 1500000;
  for (const int64_t megabytes : {1, 4, 8, 32, 256}) {
    const int64_t rows = megabytes * 2048;
    const std::vector<float> table(rows * 128, 1.0f);
    const double gigabytes = 512e-9 * kReads;
    const double random = best_rate(gigabytes, [&](int thread) { return random_rows(table, rows, kReads, thread); });
    std::printf("random-%lld-MB %.2f\n", static_cast<long long>(megabytes), random);
    const double passes = static_cast<double>((kReads + rows / kThreads - 1) / (rows / kThreads));
    const double read = 512e-9 * passes * (rows / kThreads);
    const double ordered = best_rate(read, [&](int thread) { return sequential_rows(table, rows, kReads, thread); });
    std::printf("sequential-%lld-MB %.2f\n", static_cast<long long>(megabytes), ordered);
  }
  constexpr int64_t kRounds = 20000000;
  std::printf("multiply-adds %.2f\n", best_rate(12e-9 * kRounds, [](int) { return multiply_adds(kRounds); }));
}
