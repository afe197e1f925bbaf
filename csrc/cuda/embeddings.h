// Embeddings in the layout that the contrast kernels read.
#pragma once

#include "cuda/launching.h"
#include "cuda/pixel_contrast.h"
#include "tensors.h"

namespace sskd_fast::cuda {

// The temperature as a tensor on the device, so that a captured graph can be replayed with another value.
inline Tensor checked_temperature(const Tensor& temperature, const Tensor& anchors) {
  check_value(temperature.scalar_type() == ScalarType::Double && temperature.numel() == 1 &&
                  temperature.device() == anchors.device(),
              "temperature: found ", temperature.numel(), " of ", temperature.scalar_type(), " on ",
              name_of(temperature.device()), ", expected one float64 on ", name_of(anchors.device()));
  return temperature;
}

// Aligned rows, `width` numbers wide, and 1 / norm of each, or 1 without normalisation.
struct AlignedEmbeddings {
  Tensor rows, inverse;

  AlignedEmbeddings(const Tensor& x, int64_t width, bool normalize, Stream stream)
      : rows(readable_rows("embeddings", x, width)),
        inverse(normalize ? empty({x.size(0)}, compute_options(x)) : full({x.size(0)}, 1, compute_options(x))) {
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
