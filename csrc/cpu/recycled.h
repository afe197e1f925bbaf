// Large blocks of memory that are used again. The system clears fresh memory page by page when it is first touched, and
// takes blocks of this size back as soon as they are freed: a step would wait for that longer than for its arithmetic.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <iterator>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sskd_fast {

// Blocks from this size on are recycled; what is idle is kept up to this size altogether, the latest first.
constexpr int64_t kLeastRecycled = int64_t{1} << 20, kMostIdle = int64_t{1} << 29;
constexpr int64_t kHugePage = int64_t{1} << 21;

struct MemoryBlock {
  void* data = nullptr;
  int64_t bytes = 0;
  bool huge = false;  // in huge pages where the system has them
};

// Where idle blocks wait; shared by all threads.
class Recycler {
 public:
  // A block of at least `bytes`, not initialised. Raises std::bad_alloc.
  MemoryBlock acquire(int64_t bytes, bool huge) {
    if (bytes >= kLeastRecycled) {
      const std::lock_guard<std::mutex> lock(mutex_);
      // The latest that fits and is not much too large: its memory is the likeliest to be in a cache.
      for (auto block = idle_.rbegin(); block != idle_.rend(); ++block) {
        if (block->huge != huge || block->bytes < bytes || block->bytes > bytes + bytes / 4) continue;
        const MemoryBlock found = *block;
        idle_.erase(std::next(block).base());
        idle_bytes_ -= found.bytes;
        return found;
      }
    }
    return fresh(bytes, huge);
  }

  void release(const MemoryBlock& block) {
#if defined(__SANITIZE_ADDRESS__)
    constexpr int64_t most = 0;  // so that a use after the release is found
#else
    constexpr int64_t most = kMostIdle;
#endif
    if (block.bytes < kLeastRecycled) return std::free(block.data);
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(block);
    idle_bytes_ += block.bytes;
    shrink(most);
  }

  // Gives what is idle back to the system; returns how many bytes.
  int64_t clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t before = idle_bytes_;
    shrink(0);
    return before;
  }

  // Never destroyed: tensors may outlive everything that has a destructor.
  static Recycler& shared() {
    static Recycler* const recycler = new Recycler;
    return *recycler;
  }

 private:
  static MemoryBlock fresh(int64_t bytes, bool huge) {
    const int64_t alignment = huge ? kHugePage : 64;
    const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* const data = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded));
    if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (huge) (void)madvise(data, static_cast<size_t>(rounded), MADV_HUGEPAGE);
#endif
    return {data, rounded, huge};
  }

  void shrink(int64_t most) {
    for (; idle_bytes_ > most; idle_.pop_front()) {
      idle_bytes_ -= idle_.front().bytes;
      std::free(idle_.front().data);
    }
  }

  std::mutex mutex_;
  std::deque<MemoryBlock> idle_;
  int64_t idle_bytes_ = 0;
};

// A contiguous tensor that is not initialised. read_at_random: in huge pages, see buffer.h.
inline at::Tensor recycled_empty(at::IntArrayRef sizes, const at::TensorOptions& options, bool read_at_random = false) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  if (bytes < kLeastRecycled) return at::empty(sizes, options);
  const MemoryBlock block = Recycler::shared().acquire(bytes, read_at_random && bytes >= kHugePage);
  return at::from_blob(block.data, sizes, [block](void*) { Recycler::shared().release(block); }, options);
}

}  // namespace sskd_fast
