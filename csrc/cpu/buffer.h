// Memory that is not initialised. Tables that are read in random order go into huge pages where the system has them,
// since the translation of addresses is what such reads wait for; what is read in order does not, since huge pages are
// slow to come by.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sskd_fast {

// Asks for huge pages below memory that has not been touched yet; where that fails, it is as good as any.
inline void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / page * page;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>, "the elements are not constructed");

 public:
  Buffer() = default;
  explicit Buffer(int64_t size, bool read_at_random = false) : size_(size) {
    constexpr size_t page = size_t{1} << 21;
    const size_t bytes = static_cast<size_t>(size) * sizeof(T);
    const bool huge = read_at_random && bytes >= page;
    const size_t alignment = huge ? page : 64;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    if (rounded == 0) return;
    data_ = static_cast<T*>(std::aligned_alloc(alignment, rounded));
    if (data_ == nullptr) throw std::bad_alloc();
    if (huge) advise_huge_pages(data_, static_cast<int64_t>(rounded));
  }
  Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() { std::free(data_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace sskd_fast
