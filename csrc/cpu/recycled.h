// Recycling of large memory blocks. The system clears fresh memory page by page on first touch, and reclaims blocks of
// this size as soon as they are freed. A step would spend more time on that than on arithmetic.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <iterator>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

// A tensor in memory of ours, with what frees it. PyTorch 2.10 has no such function: weak, hence null there, and
// results are PyTorch's own memory.
extern "C" AOTITorchError torch_from_blob(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                                          int64_t storage_offset, int32_t dtype, int32_t device_type,
                                          int32_t device_index, AtenTensorHandle* result, int32_t layout,
                                          const uint8_t* opaque_metadata, int64_t opaque_metadata_size,
                                          void (*deleter)(void* data, void* context), void* context)
    __attribute__((weak));

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
  // A block of at least `wanted` bytes, not initialised. Raises std::bad_alloc.
  MemoryBlock acquire(int64_t wanted, bool huge) {
    const int64_t alignment = huge ? kHugePage : 64, bytes = (wanted + alignment - 1) / alignment * alignment;
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
    return fresh(bytes, alignment, huge);
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
  static MemoryBlock fresh(int64_t bytes, int64_t alignment, bool huge) {
    void* const data = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(bytes));
    if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (huge) (void)madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
    return {data, bytes, huge};
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
inline Tensor recycled_empty(Sizes sizes, const Options& options, bool read_at_random = false) {
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(options.dtype));
  int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 0; bytes *= sizes[i])
    if (i + 1 < sizes.size()) strides[i] = strides[i + 1] * sizes[i + 1];
  if (bytes < kLeastRecycled || torch_from_blob == nullptr) return empty(sizes, options);
  auto block = std::make_unique<MemoryBlock>(Recycler::shared().acquire(bytes, read_at_random && bytes >= kHugePage));
  const auto release = [](void* /*data*/, void* own) {
    const std::unique_ptr<MemoryBlock> released(static_cast<MemoryBlock*>(own));
    Recycler::shared().release(*released);
  };
  AtenTensorHandle tensor = nullptr;
  const AOTITorchError error = torch_from_blob(
      block->data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0, dtype,
      aoti_torch_device_type_cpu(), -1, &tensor, aoti_torch_layout_strided(), nullptr, 0, release, block.get());
  if (error != 0) Recycler::shared().release(*block);
  check_torch(error, "torch_from_blob");
  block.release();
  return Tensor(tensor);
}

}  // namespace sskd_fast
