// The operators for CUDA tensors. Emulated, they take CPU tensors as `torch.ops.sskd_fast_emulated`, so that tests run
// all of this code without a GPU.
#include <torch/library.h>

#include "cuda/operators.h"

namespace {

void implement_operators(torch::Library& m) {
  using namespace sskd_fast::cuda;
  m.impl("score_fusion", score_fusion);
  m.impl("score_fusion_backward", score_fusion_backward);
  m.impl("negative_sampling_by_tables", negative_sampling_by_tables);
  m.impl("hardest_negatives", hardest_negatives);
  m.impl("pixel_contrast", pixel_contrast);
  m.impl("pixel_contrast_backward", pixel_contrast_backward);
  m.impl("expected_pixel_contrast", expected_pixel_contrast);
  m.impl("expected_pixel_contrast_backward", expected_pixel_contrast_backward);
}

}  // namespace

#if defined(SSKD_EMULATION)

#include "cuda/device.h"
#include "schemas.h"

TORCH_LIBRARY(sskd_fast_emulated, m) {
  sskd_fast::define_operators(m);
  m.def("order_threads(int order) -> ()",
        [](int64_t order) { sskd_fast::emulation::the_grid.order_threads(static_cast<uint64_t>(order)); });
}

TORCH_LIBRARY_IMPL(sskd_fast_emulated, CPU, m) { implement_operators(m); }

#else

TORCH_LIBRARY_IMPL(sskd_fast_native, CUDA, m) { implement_operators(m); }

#endif
