// Embeddings in the layout that the contrast kernels read.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>

#include "cuda/launching.h"
#include "cuda/pixel_contrast.h"

namespace sskd_fast::cuda {

// The temperature as a tensor on the device, so that a captured graph can be replayed with another value.
inline at::Tensor checked_temperature(const at::Tensor& temperature, const at::Tensor& anchors) {
  TORCH_CHECK_VALUE(temperature.scalar_type() == at::kDouble && temperature.numel() == 1 &&
                        temperature.device() == anchors.device(),
                    "temperature: found ", temperature.numel(), " of ", temperature.scalar_type(), " on ",
                    temperature.device(), ", expected one float64 on ", anchors.device());
  return temperature;
}

// Aligned rows and 1 / norm of each, or 1 without normalisation.
struct AlignedEmbeddings {
  at::Tensor rows, inverse;

  AlignedEmbeddings(const at::Tensor& x, bool normalize, Stream stream)
      : rows(readable_rows("embeddings", x)), inverse(at::ones({x.size(0)}, compute_options(x))) {
    if (normalize)
      with_storage(x.scalar_type(), [&](auto zero) {
        using S = decltype(zero);
        launch_inverse_norms<S>(as<S>(), data<Compute<S>>(inverse), stream);
      });
  }

  template <typename S>
  Embeddings<S> as() const {
    return {rows_of<S>(rows), const_data<Compute<S>>(inverse)};
  }
};

}  // namespace sskd_fast::cuda
