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

// Where the pixels of a channel lie.
struct Layout {
    int64_t height, width, out_h, out_w;
    int64_t row, phase, plane;  // floats of a row of a phase, of a phase, of a channel
    bool direct;                // the image itself is its only phase
    // Along the phase's rows, from the first output to the last; a few of them lie behind the end of a row and are no outputs.
    int64_t positions() const { return (out_h - 1) * row + out_w; }
    std::vector<bool> used[2];  // phases that some tap reads, by axis

    Layout(const ConvShape& s, int64_t height, int64_t width)
        : height(height), width(width), out_h(s.out(0, height)), out_w(s.out(1, width)) {
        direct = true;
        for (int axis = 0; axis < 2; axis++)
            direct = direct && s.stride[axis] == 1 && s.pad_begin[axis] == 0 && s.pad_end[axis] == 0;
        const int64_t padded_h = height + s.pad_begin[0] + s.pad_end[0], padded_w = width + s.pad_begin[1] + s.pad_end[1];
        row = (padded_w + s.stride[1] - 1) / s.stride[1];
        phase = row * ((padded_h + s.stride[0] - 1) / s.stride[0]);
        plane = phase * s.stride[0] * s.stride[1];
        for (int axis = 0; axis < 2; axis++) {
            used[axis].assign(size_t(s.stride[axis]), false);
            for (int64_t k = 0; k < s.kernel[axis]; k++) used[axis][size_t(k * s.dilation[axis] % s.stride[axis])] = true;
        }
    }
};

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
