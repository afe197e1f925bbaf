// Group ids (any integers) as numbers from 0 on, in ascending order of the ids.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tensors.h"

namespace sskd_fast {

class GroupIds {
 public:
  GroupIds(const int64_t* ids, int64_t size) {
    for (int64_t i = 0; i < size; ++i)
      if (known_.empty() || known_.back() != ids[i]) known_.push_back(ids[i]);
    std::sort(known_.begin(), known_.end());
    known_.erase(std::unique(known_.begin(), known_.end()), known_.end());
  }

  int64_t count() const { return static_cast<int64_t>(known_.size()); }

  // The numbers of some ids, -1 for unknown ones. Equal ids mostly follow each other, so the last one is remembered.
  std::vector<int32_t> numbers(const int64_t* ids, int64_t size) const {
    std::vector<int32_t> result(size);
    for (int64_t i = 0; i < size; ++i) {
      if (i > 0 && ids[i] == ids[i - 1]) {
        result[i] = result[i - 1];
        continue;
      }
      const auto found = std::lower_bound(known_.begin(), known_.end(), ids[i]);
      result[i] = found != known_.end() && *found == ids[i] ? static_cast<int32_t>(found - known_.begin()) : -1;
    }
    return result;
  }

 private:
  std::vector<int64_t> known_;
};

// Group numbers of both sides, by the ids of the first.
inline void dense_group_ids(const Tensor& first, const Tensor& second, std::vector<int32_t>& first_numbers,
                            std::vector<int32_t>& second_numbers) {
  const GroupIds ids(first.const_data_ptr<int64_t>(), first.numel());
  first_numbers = ids.numbers(first.const_data_ptr<int64_t>(), first.numel());
  second_numbers = ids.numbers(second.const_data_ptr<int64_t>(), second.numel());
}

}  // namespace sskd_fast
