// The kernels for weights stored in fewer bits than float32, with float32 activations: decoded in registers. Plain, as view.hpp says.
#pragma once
#include "kernels.hpp"
#include "rows_view.hpp"

namespace emp {

struct Half {  // IEEE 754 binary16
    uint16_t bits;
};
struct Bfloat {  // the upper half of a float32
    uint16_t bits;
};

// y[item * item_stride + row] = activation(scale[row * scale_step] * (weight * x) + bias[row]); x as for `Kernels::dot`.
struct RowScale {
    const float* scale;
    int64_t step;  // 0 or 1
};

struct NarrowKernels {
    const char* name;
    bool (*supported)();
    void (*half)(const RowsView<Half>&, int64_t row, int64_t end, const float* x, int64_t stride, int items, RowScale, const Output&);
    void (*bfloat)(const RowsView<Bfloat>&, int64_t row, int64_t end, const float* x, int64_t stride, int items, RowScale, const Output&);
    void (*int8)(const RowsView<int8_t>&, int64_t row, int64_t end, const float* x, int64_t stride, int items, RowScale, const Output&);
};

constexpr int kNarrowItems = 4;  // items taken at once

// The best one that goes with the instruction set in use.
const NarrowKernels& narrow_kernels();
// By name, or null: "avx2", "portable".
const NarrowKernels* narrow_kernels(const char* name);

}  // namespace emp
