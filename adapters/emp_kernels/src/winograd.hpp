// Weights of a convolution of 3 × 3 taps, stride 1, arranged for Winograd's F(2 × 2, 3 × 3): still packed, and transformed each time.
#pragma once
#include "image.hpp"
#include "matrix.hpp"

namespace emp {

class Winograd {
  public:
    void arrange(const Matrix& weight, int64_t groups);

    // Outputs of a group come in blocks of kWinogradRows, the last one filled up.
    int64_t blocks = 0;  // of a group
    // Of each channel and tap the bits of a block's outputs, and the values of those that are set.
    const uint32_t* mask(int64_t group, int64_t block) const { return mask_.data() + (group * blocks + block) * channels_ * 9; }
    const float* values(int64_t group, int64_t block) const { return values_.data() + first_[size_t(group * blocks + block)]; }

  private:
    int64_t channels_ = 0;
    Buffer<uint32_t> mask_;
    Buffer<float> values_;
    std::vector<int64_t> first_;
};

}  // namespace emp
