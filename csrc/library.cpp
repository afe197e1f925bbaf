// The schemas and the operators for CPU tensors.
#include "cpu/operators.h"
#include "cpu/recycled.h"
#include "schemas.h"

namespace {

int64_t release_memory() { return sskd_fast::Recycler::shared().clear(); }

}  // namespace

STABLE_TORCH_LIBRARY(sskd_fast_native, m) {
  sskd_fast::define_operators(m);
  m.def("release_memory() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(sskd_fast_native, CompositeExplicitAutograd, m) {
  m.impl("release_memory", TORCH_BOX(&release_memory));
}

STABLE_TORCH_LIBRARY_IMPL(sskd_fast_native, CPU, m) {
  m.impl("score_fusion", TORCH_BOX(&sskd_fast::score_fusion));
  m.impl("score_fusion_backward", TORCH_BOX(&sskd_fast::score_fusion_backward));
  m.impl("negative_sampling", TORCH_BOX(&sskd_fast::negative_sampling));
  m.impl("hardest_negatives", TORCH_BOX(&sskd_fast::hardest_negatives));
  m.impl("pixel_contrast", TORCH_BOX(&sskd_fast::pixel_contrast));
  m.impl("pixel_contrast_backward", TORCH_BOX(&sskd_fast::pixel_contrast_backward));
  m.impl("expected_pixel_contrast", TORCH_BOX(&sskd_fast::expected_pixel_contrast));
  m.impl("expected_pixel_contrast_backward", TORCH_BOX(&sskd_fast::expected_pixel_contrast_backward));
}
