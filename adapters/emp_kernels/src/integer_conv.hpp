// Convolution of 8-bit weights with activations quantised to 8 bits as they come: what onnxruntime does for DynamicQuantizeLinear, ConvInteger and the
// multiplication by both scales that follows. Four channels of a pixel lie together, so that one multiplication takes them at once.
#pragma once
#include "image.hpp"
#include "integer.hpp"

namespace emp {

class IntegerConv {
  public:
    ConvShape shape;  // of one group
    float scale;      // of all weights

    // The weight [outputs, channels, kernel] as in Rows::bind, which says what is wrong.
    std::string bind(const uint8_t* bits, size_t bytes, const int8_t* values, size_t count);
    // x[images, channels, height, width] -> y[images, outputs, ...]; the same promise as IntegerLinear::run.
    void run(const IntegerKernels&, const Kernels&, const float* x, int64_t images, int64_t height, int64_t width, const float* bias, Activation,
             float* y, const Threads&) const;

  private:
    int64_t quads() const { return (shape.channels + 3) / 4; }  // of channels
    // One image, quantised and padded with the zero point: of each four channels the pixels, 4 bytes each.
    void lay_out(const IntegerKernels&, const Layout&, const float* x, const Scales&, float* out, const Threads&) const;
    const Quads& arranged(int groups) const;

    Buffer<uint8_t> mask_;
    Buffer<int8_t> values_;
    Rows<int8_t> weight_;  // columns: fours of channels, taps, channels of a four
    std::vector<int32_t> row_sum_;
    mutable std::once_flag once_[2];
    mutable Quads quads_[2];  // for up to 64 positions, and for more
};

}  // namespace emp
