// Convolution with packed weights, as a product of weights [outputs, channels * taps] with columns of the image.
#pragma once
#include "image.hpp"
#include "parallel.hpp"
#include "pool.hpp"
#include "sweeps.hpp"
#include "tiles.hpp"
#include "winograd.hpp"

namespace emp {

// The ending of the rows from `row` on.
inline Ending from_row(const Ending& ending, int64_t row) {
    return {ending.activation, ending.low, ending.high, ending.slope ? ending.slope + row : nullptr};
}

class Conv {
  public:
    ConvShape shape;
    Matrix weight;  // outputs rows, channels * kernel[0] * kernel[1] columns

    // For tests: without asking whether it is faster.
    bool winograd_wherever_it_can = false;

    // x[images, group * channels, height, width] -> y[images, outputs, ...]; what is `added` before the activation is as large as y, or null.
    // The same promise as Linear::run.
    void run(const Kernels&, const float* x, int64_t images, int64_t height, int64_t width, const float* bias, const float* added, const Ending&,
             float* y, const Threads&) const;
    // The same with a pool behind it: y[images, outputs, rows and pixels of the pool]. What the pool makes of NaN is NaN.
    void run_pooled(const Kernels&, const float* x, int64_t images, int64_t height, int64_t width, const float* bias, const Ending&, const PoolShape&,
                    float* y, const Threads&) const;

    // Whether a run transforms tiles of the image (conv_winograd.cpp) rather than skip weights.
    bool by_winograd(const Kernels&, const Layout&, int64_t images) const;

  private:
    // What a run was given.
    struct Given {
        const Kernels& kernels;
        const Layout& at;
        const float* x;
        int64_t images;
        const float *bias, *added;
        Ending ending;
        float* y;
        const Threads& threads;
    };
    // Whether the sums slide (conv_slides.cpp), or else the input is read where it lies (conv_strips.cpp) rather than copied for each tile.
    bool slides(const Sliding&, const Layout&) const;
    bool in_strips(const Layout&, const float* x) const;
    // How sums slide; weights are arranged for it on the first call.
    Sliding arranged(const Kernels&, const Layout&) const;
    bool can_slide(const Layout&) const;
    void run_slides(const Given&) const;
    // An image, pooled band by band; whether its input is finite, or else nothing is said of y.
    bool run_bands(const Given&, const PoolShape&, const float* in, float* y) const;
    void run_strips(const Given&) const;
    void run_tiles(const Given&) const;
    // Whether all outputs are finite, or else nothing is said of y.
    bool run_winograd(const Given&) const;
    // 0 * inf is NaN, as in the dense convolution: the outputs that read what is not finite, with a pruned weight.
    void spread_non_finite(const Given&, const float* in, float* y) const;

    mutable std::once_flag once_, strips_once_, sweeps_once_, winograd_once_;
    mutable Tiles tiles_;
    mutable Strips strips_;
    mutable Sweeps sweeps_;
    mutable Winograd winograd_;
    mutable bool shifted_ = false;  // how they were arranged
};

}  // namespace emp
