// Convolution with packed weights, as a product of weights [outputs, channels * taps] with columns of the image.
#pragma once
#include "image.hpp"
#include "parallel.hpp"
#include "tiles.hpp"

namespace emp {

class Conv {
  public:
    ConvShape shape;
    Matrix weight;  // outputs rows, channels * kernel[0] * kernel[1] columns

    // x[images, group * channels, height, width] -> y[images, outputs, ...]; what is `added` before the activation is as large as y, or null.
    // The same promise as Linear::run.
    void run(const Kernels&, const float* x, int64_t images, int64_t height, int64_t width, const float* bias, const float* added, Activation,
             float* y, const Threads&) const;

  private:
    // Whether the input is read where it lies rather than copied for each tile.
    bool in_strips(const Layout&, const float* x) const;
    void run_strips(const Kernels&, const Layout&, const float* x, int64_t images, const float* bias, const float* added, Activation, float* y,
                    const Threads&) const;

    mutable std::once_flag once_, strips_once_;
    mutable Tiles tiles_;
    mutable Strips strips_;
};

}  // namespace emp
