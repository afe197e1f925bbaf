// Recycling of large memory blocks. The system clears fresh memory page by page on first touch, and reclaims blocks of
// this size as soon as they are freed. A step would spend more time on that than on arithmetic.
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

// Least size of a recycled block in bytes, and most bytes of idle blocks; the most recently freed are kept.
constexpr int64_t kLeastRecycled = int64_t{1} << 20, kMostIdle = int64_t{1} << 29;
constexpr int64_t kHugePage = int64_t{1} << 21;

struct MemoryBlock {
  void* data = nullptr;
  int64_t bytes = 0;
  bool huge = false;  // in huge pages if the system has them
};

// The pool of idle blocks, shared by all threads.
class Recycler {
 public:
  // A block of at least `bytes`, not initialised. Raises std::bad_alloc.
  MemoryBlock acquire(int64_t bytes, bool huge) {
    if (bytes >= kLeastRecycled) {
      const std::lock_guard<std::mutex> lock(mutex_);
      // The most recently freed block that fits and is not much too large: it is the likeliest to be in a cache.
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
    constexpr int64_t most = 0;  // so that a use after free is found
#else
    constexpr int64_t most = kMostIdle;
#endif
    if (block.bytes < kLeastRecycled) return std::free(block.data);
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(block);
    idle_bytes_ += block.bytes;
    shrink(most);
  }

  // Returns the idle blocks to the system; gives their size in bytes.
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

// An uninitialised contiguous tensor. read_at_random: in huge pages, see buffer.h.
inline at::Tensor recycled_empty(at::IntArrayRef sizes, const at::TensorOptions& options, bool read_at_random = false) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  if (bytes < kLeastRecycled) return at::empty(sizes, options);
  const MemoryBlock block = Recycler::shared().acquire(bytes, read_at_random && bytes >= kHugePage);
  return at::from_blob(block.data, sizes, [block](void*) { Recycler::shared().release(block); }, options);
}

}  // namespace sskd_fast
