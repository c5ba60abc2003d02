// Y = activation(X * transposed(W) + bias) for a packed W of float16, bfloat16 or 8-bit integers with scales, and X of float32.
#pragma once
#include "linear.hpp"
#include "narrow_convert.hpp"
#include "rows.hpp"

namespace emp {

template <typename T>
class NarrowLinear {
  public:
    // As Rows::bind; `scale` holds one factor, or one for each row.
    std::string bind(int64_t rows, int64_t columns, bool transposed, const uint8_t* bits, size_t bytes, const T* values, size_t count,
                     std::vector<float> scale);
    // The same promise as Linear::run, for the weight that is as large as its values times their factors.
    void run(const NarrowKernels&, const Kernels&, const float* x, int64_t items, const float* bias, Activation, float* y, const Threads&, const float* added = nullptr) const;

    int64_t rows() const { return weight_.view().rows; }
    int64_t columns() const { return weight_.view().columns; }

  private:
    const Linear& wide() const;
    void spread_non_finite(const float* x, int64_t items, float* y, const Threads&) const;

    Rows<T> weight_;
    std::vector<float> scale_;
    mutable std::once_flag once_;
    mutable Linear wide_;  // in float32, for many items; made when first needed
    mutable Buffer<float> values_;
    mutable std::vector<uint8_t> bits_;
};

}  // namespace emp
