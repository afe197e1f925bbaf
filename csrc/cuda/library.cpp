// The operators for CUDA tensors. Emulated, they take CPU tensors as `torch.ops.sskd_fast_emulated`, so that tests run
// all of this code without a GPU.
#include <torch/csrc/stable/library.h>

#include "cuda/operators.h"

namespace {

void implement_operators(torch::stable::detail::StableLibrary& m) {
  using namespace sskd_fast::cuda;
  m.impl("negative_sampling", TORCH_BOX(&negative_sampling));
  m.impl("hardest_negatives", TORCH_BOX(&hardest_negatives));
  m.impl("pixel_contrast", TORCH_BOX(&pixel_contrast));
  m.impl("pixel_contrast_backward", TORCH_BOX(&pixel_contrast_backward));
}

}  // namespace

#if defined(SSKD_EMULATION)

#include "cuda/device.h"
#include "schemas.h"

namespace {

void order_threads(int64_t order) { sskd_fast::emulation::the_grid.order_threads(static_cast<uint64_t>(order)); }

}  // namespace

STABLE_TORCH_LIBRARY(sskd_fast_emulated, m) {
  sskd_fast::define_operators(m);
  m.def("order_threads(int order) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sskd_fast_emulated, CompositeExplicitAutograd, m) {
  m.impl("order_threads", TORCH_BOX(&order_threads));
}

STABLE_TORCH_LIBRARY_IMPL(sskd_fast_emulated, CPU, m) { implement_operators(m); }

#else

STABLE_TORCH_LIBRARY_IMPL(sskd_fast_native, CUDA, m) { implement_operators(m); }

#endif
