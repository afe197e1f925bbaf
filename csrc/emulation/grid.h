// Runs a __global__ function over a grid on the CPU, one block after another. Each thread is a fiber that stops where
// threads wait for each other. order_threads() chooses the order of the threads between two such points, so that a missing
// barrier changes the result. A deadlock, or threads that wait at different points instead of one, is an error that
// names the threads. On a GPU this would hang or be undefined.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "emulation/fiber.h"
#include "emulation/types.h"

inline dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace sskd_fast::emulation {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Place = std::source_location;

constexpr unsigned char kPoison = 0xFF;  // NaN as float, -1 as int: shared memory before it is written
constexpr size_t kLargestOperand = 48;   // bytes that a lane passes to the other lanes of its warp at a time

class Grid {
 public:
  // 0: threads and blocks in ascending order, 1: in descending order, otherwise shuffled by this seed.
  void order_threads(uint64_t order) { order_ = order; }

  void run(const std::function<void()>& kernel, dim3 grid, dim3 block, size_t shared_bytes) {
    check_limits(grid, block, shared_bytes);
    kernel_ = &kernel;
    running_ = this;
    gridDim = grid, blockDim = block;
    random_.seed(order_);
    const unsigned int count = block.x * block.y * block.z;
    while (threads_.size() < count) threads_.emplace_back();
    running_threads_ = count;
    for (const uint64_t index : order(uint64_t{grid.x} * grid.y * grid.z)) {
      blockIdx = {static_cast<unsigned int>(index % grid.x), static_cast<unsigned int>(index / grid.x % grid.y),
                  static_cast<unsigned int>(index / grid.x / grid.y)};
      ++serial_;
      // Exactly this size, so that AddressSanitizer detects accesses beyond it.
      dynamic_shared_.reset(new unsigned char[shared_bytes]);
      std::memset(dynamic_shared_.get(), kPoison, shared_bytes);
      run_block();
    }
    dynamic_shared_.reset();
  }

  // All threads of the block wait for each other.
  void block_barrier(Place place) {
    Thread& self = *current_;
    self.wait = {State::kAtBarrier, "__syncthreads", 0, place};
    self.fiber.suspend();
  }

  // The lanes of `mask` wait for each other; afterwards operand(lane) gives the operand of each.
  template <typename T>
  void warp_barrier(const char* what, uint32_t mask, const T& own, Place place) {
    static_assert(sizeof(T) <= kLargestOperand && std::is_trivially_copyable_v<T>);
    Thread& self = *current_;
    if ((mask >> lane() & 1) == 0) throw Error(what + (" with a mask that lacks the calling lane" + at(place)));
    std::memcpy(self.brought, &own, sizeof(T));
    self.wait = {State::kAtWarp, what, mask, place};
    self.fiber.suspend();
  }

  template <typename T>
  T operand(unsigned int of_lane) const {
    T result;
    std::memcpy(&result, threads_[index_ - lane() + of_lane].handed, sizeof(T));
    return result;
  }

  unsigned int lane() const { return index_ % 32; }
  unsigned char* dynamic_shared() const { return dynamic_shared_.get(); }
  uint64_t block_serial() const { return serial_; }

 private:
  enum class State { kReady, kAtBarrier, kAtWarp, kDone };
  struct Wait {
    State state = State::kDone;
    const char* what = "";
    uint32_t mask = 0;
    Place place;
  };
  struct Thread {
    Fiber fiber;
    Wait wait;
    dim3 index;
    alignas(16) unsigned char brought[kLargestOperand], handed[kLargestOperand];
  };

  static void check_limits(dim3 grid, dim3 block, size_t shared_bytes) {
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    if (threads == 0 || threads > 1024 || block.z > 64)
      throw Error("a block of " + std::to_string(threads) + " threads, expected 1 to 1024");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535)
      throw Error("a grid of " + text(grid) + " blocks, expected 1 to (2^31 - 1, 65535, 65535)");
    if (shared_bytes > 227 * 1024)
      throw Error(std::to_string(shared_bytes) + " bytes of shared memory, expected at most 227 KB");
  }

  std::vector<uint64_t> order(uint64_t count) {
    std::vector<uint64_t> result(count);
    std::iota(result.begin(), result.end(), uint64_t{0});
    if (order_ == 1) std::reverse(result.begin(), result.end());
    if (order_ > 1) std::shuffle(result.begin(), result.end(), random_);
    return result;
  }

  void run_block() {
    for (unsigned int i = 0; i < running_threads_; ++i) {
      Thread& thread = threads_[i];
      thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
      thread.wait = {State::kReady, "", 0, {}};
      thread.fiber.start([] { running_->enter(); });
    }
    for (bool going = true; going;) {
      for (const uint64_t i : order(running_threads_))
        if (threads_[i].wait.state == State::kReady) resume(static_cast<unsigned int>(i));
      going = release_barrier();
      for (unsigned int first = 0; first < running_threads_; first += 32) going |= release_warp(first);
    }
    for (unsigned int i = 0; i < running_threads_; ++i)
      if (threads_[i].wait.state != State::kDone) throw Error(stuck(i));
  }

  void enter() {
    try {
      (*kernel_)();
    } catch (...) {
      failure_ = std::current_exception();
    }
    current_->wait.state = State::kDone;
  }

  void resume(unsigned int index) {
    current_ = &threads_[index];
    index_ = index;
    threadIdx = current_->index;
    current_->fiber.resume();
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  bool release_barrier() {
    const Wait& first = threads_[0].wait;
    if (first.state != State::kAtBarrier) return false;
    for (unsigned int i = 1; i < running_threads_; ++i) {
      const Wait& wait = threads_[i].wait;
      if (wait.state != State::kAtBarrier) return false;
      if (!same_place(wait, first)) throw Error(stuck(i) + "; " + stuck(0));
    }
    for (unsigned int i = 0; i < running_threads_; ++i) threads_[i].wait.state = State::kReady;
    return true;
  }

  bool release_warp(unsigned int first) {
    bool released = false;
    for (unsigned int i = first; i < std::min(first + 32, running_threads_); ++i) {
      const Wait wait = threads_[i].wait;
      if (wait.state != State::kAtWarp || !complete(first, wait)) continue;
      for (unsigned int lane = 0; lane < 32; ++lane) {
        if ((wait.mask >> lane & 1) == 0) continue;
        Thread& thread = threads_[first + lane];
        std::memcpy(thread.handed, thread.brought, kLargestOperand);
        thread.wait.state = State::kReady;
      }
      released = true;
    }
    return released;
  }

  bool complete(unsigned int first, const Wait& wait) const {
    for (unsigned int lane = 0; lane < 32; ++lane) {
      if ((wait.mask >> lane & 1) == 0) continue;
      if (first + lane >= running_threads_)
        throw Error(std::string(wait.what) + " with a mask that names lane " + std::to_string(lane) +
                    ", which the block does not have" + at(wait.place));
      const Wait& other = threads_[first + lane].wait;
      if (other.state != State::kAtWarp || other.mask != wait.mask || !same_place(other, wait)) return false;
    }
    return true;
  }

  static bool same_place(const Wait& a, const Wait& b) {
    return a.place.line() == b.place.line() && a.place.column() == b.place.column() &&
           std::strcmp(a.place.file_name(), b.place.file_name()) == 0;
  }

  std::string stuck(unsigned int i) const {
    const Thread& thread = threads_[i];
    unsigned int ended = 0;
    for (unsigned int j = 0; j < running_threads_; ++j) ended += threads_[j].wait.state == State::kDone;
    return "block " + text(blockIdx) + ", thread " + text(thread.index) + " waits for ever in " + thread.wait.what +
           at(thread.wait.place) + (ended ? "; " + std::to_string(ended) + " threads of the block have ended" : "");
  }

  static std::string at(const Place& place) {
    return std::string(" at ") + place.file_name() + ":" + std::to_string(place.line());
  }
  static std::string text(dim3 x) {
    return "(" + std::to_string(x.x) + ", " + std::to_string(x.y) + ", " + std::to_string(x.z) + ")";
  }

  static inline Grid* running_ = nullptr;
  uint64_t order_ = 0, serial_ = 0;
  std::mt19937_64 random_;
  const std::function<void()>* kernel_ = nullptr;
  std::deque<Thread> threads_;
  unsigned int running_threads_ = 0, index_ = 0;
  Thread* current_ = nullptr;
  std::unique_ptr<unsigned char[]> dynamic_shared_;
  std::exception_ptr failure_;
};

inline Grid the_grid;

// A variable in static shared memory: one for all threads of a block, poisoned anew for every block.
template <typename T>
class Shared {
 public:
  T& get() {
    if (serial_ != the_grid.block_serial()) {
      bytes_.reset(new unsigned char[sizeof(T)]);
      std::memset(bytes_.get(), kPoison, sizeof(T));
      serial_ = the_grid.block_serial();
    }
    return *reinterpret_cast<T*>(bytes_.get());
  }

 private:
  uint64_t serial_ = 0;
  std::unique_ptr<unsigned char[]> bytes_;
};

}  // namespace sskd_fast::emulation

inline void __syncthreads(sskd_fast::emulation::Place place = sskd_fast::emulation::Place::current()) {
  sskd_fast::emulation::the_grid.block_barrier(place);
}

[[noreturn]] inline void __trap() { throw sskd_fast::emulation::Error("__trap was called"); }
