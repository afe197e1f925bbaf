// Uninitialised memory. Tables read at random go into huge pages if the system has them, since such reads wait for
// address translation. Data read in order does not, since huge pages are slow to allocate.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "cpu/recycled.h"

namespace sskd_fast {

template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>, "the elements are not constructed");

 public:
  Buffer() = default;
  explicit Buffer(int64_t size, bool read_at_random = false) : size_(size) {
    const int64_t bytes = size * static_cast<int64_t>(sizeof(T));
    if (bytes > 0) block_ = Recycler::shared().acquire(bytes, read_at_random && bytes >= kHugePage);
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    if (block_.data != nullptr) Recycler::shared().release(block_);
  }

  T* data() { return static_cast<T*>(block_.data); }
  const T* data() const { return static_cast<const T*>(block_.data); }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  int64_t size() const { return size_; }

 private:
  MemoryBlock block_;
  int64_t size_ = 0;
};

}  // namespace sskd_fast
