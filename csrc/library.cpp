// The schemas and the operators for CPU tensors, registered in this one file because torch/library.h takes longer to
// compile than an operator.
#include "cpu/operators.h"
#include "cpu/recycled.h"
#include "schemas.h"

TORCH_LIBRARY(sskd_fast_native, m) {
  sskd_fast::define_operators(m);
  m.def("release_memory() -> int", [] { return sskd_fast::Recycler::shared().clear(); });
}

TORCH_LIBRARY_IMPL(sskd_fast_native, CPU, m) {
  m.impl("score_fusion", sskd_fast::score_fusion);
  m.impl("score_fusion_backward", sskd_fast::score_fusion_backward);
  m.impl("negative_sampling", sskd_fast::negative_sampling);
  m.impl("hardest_negatives", sskd_fast::hardest_negatives);
  m.impl("pixel_contrast", sskd_fast::pixel_contrast);
  m.impl("pixel_contrast_backward", sskd_fast::pixel_contrast_backward);
  m.impl("expected_pixel_contrast", sskd_fast::expected_pixel_contrast);
  m.impl("expected_pixel_contrast_backward", sskd_fast::expected_pixel_contrast_backward);
}
