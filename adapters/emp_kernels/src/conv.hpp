// Convolution with packed weights, as a product of weights [outputs, channels * taps] with columns of the image.
#pragma once
#include "kernels.hpp"
#include "parallel.hpp"
#include "tiles.hpp"

namespace emp {

struct ConvShape {
    int64_t outputs, channels, group;  // channels of one group
    int64_t kernel[2], stride[2], dilation[2], pad_begin[2], pad_end[2];

    // Rows, or columns, of the output for an input of `size`; < 0 where the kernel is larger than the padded input.
    int64_t out(int axis, int64_t size) const {
        const int64_t reach = size + pad_begin[axis] + pad_end[axis] - dilation[axis] * (kernel[axis] - 1) - 1;
        return reach < 0 ? -1 : reach / stride[axis] + 1;
    }
};

class Conv {
  public:
    ConvShape shape;
    Matrix weight;  // outputs rows, channels * kernel[0] * kernel[1] columns

    // x[images, group * channels, height, width] -> y[images, outputs, ...]. `added`, of the shape of y, or null: added before the activation.
    // The same promise as Linear::run.
    void run(const Kernels&, const float* x, int64_t images, int64_t height, int64_t width, const float* bias, const float* added, Activation,
             float* y, const Threads&) const;

  private:
    mutable std::once_flag once_;
    mutable Tiles tiles_;
};

}  // namespace emp
