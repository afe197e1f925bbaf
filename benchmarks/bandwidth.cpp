// The machine's memory bandwidth: random reads of 512-byte rows from tables of several sizes, and a sequential read, on
// two threads. The random reads are prefetched, as in the operators. Prints "name GB/s" lines.
#include <omp.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

using Vector = float __attribute__((vector_size(64)));

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static Vector row_sum(const float* row, Vector total) {
  for (int j = 0; j < 8; ++j) {
    Vector v;
    std::memcpy(&v, row + 16 * j, sizeof(v));
    total += v;
  }
  return total;
}

int main() {
  constexpr int kThreads = 2, kReads = 1500000, kAhead = 12;
  float sink = 0;
  for (const int64_t megabytes : {1, 4, 8, 32, 256}) {
    const int64_t rows = megabytes * 2048;
    std::vector<float> table(rows * 128, 1.0f);
    double best = 0;
    for (int repeat = 0; repeat < 3; ++repeat) {
      const double start = now();
#pragma omp parallel num_threads(kThreads) reduction(+ : sink)
      {
        uint64_t state = 88172645463325252ull + omp_get_thread_num();
        const auto next = [&] {
          state ^= state << 13, state ^= state >> 7, state ^= state << 17;
          return static_cast<int64_t>(state % rows);
        };
        int64_t ring[kAhead];
        for (auto& r : ring) r = next();
        Vector total{};
        for (int i = 0; i < kReads; ++i) {
          const int64_t row = ring[i % kAhead], ahead = ring[i % kAhead] = next();
          for (int j = 0; j < 8; ++j) __builtin_prefetch(table.data() + ahead * 128 + 16 * j);
          total = row_sum(table.data() + row * 128, total);
        }
        sink += total[0];
      }
      const double rate = 512e-9 * kReads * kThreads / (now() - start);
      best = rate > best ? rate : best;
    }
    std::printf("random-rows-%lld-MB %.2f\n", static_cast<long long>(megabytes), best);
    if (megabytes != 256) continue;
    best = 0;
    for (int repeat = 0; repeat < 3; ++repeat) {
      const double start = now();
#pragma omp parallel for num_threads(kThreads) reduction(+ : sink)
      for (int64_t i = 0; i < rows; ++i) sink += row_sum(table.data() + i * 128, Vector{})[0];
      const double rate = 512e-9 * rows / (now() - start);
      best = rate > best ? rate : best;
    }
    std::printf("sequential-256-MB %.2f\n", best);
  }
  return sink == 0.5f;
}
