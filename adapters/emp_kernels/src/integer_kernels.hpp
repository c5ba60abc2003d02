// The kernels for 8-bit weights and 8-bit activations of one instruction set. Plain, for the reason that view.hpp gives.
#pragma once
#include "kernels.hpp"
#include "rows_view.hpp"

namespace emp {

// What becomes of a sum: float(sum - x_zero * row_sum[row]) * (x_scale * scale[row * scale_step]).
struct Scales {
    const int32_t* row_sum;
    const float* scale;
    int64_t scale_step;  // 0 or 1
    float x_scale;
    int32_t x_zero;
};

// Pairs of rows, and four columns together. A quad that both rows have holds 8 weights, those of the first row first; any other 4.
struct QuadsView {
    const uint16_t* head;    // for each pair the number of quads that both have, that only the first has, that only the second has
    const uint16_t* column;  // of each quad, in fours, from the first of the block
    const int8_t* value;
};

struct IntegerKernels {
    const char* name;
    int max_items;   // that `few` takes at once
    int max_groups;  // of 16 items in a tile
    bool (*supported)();

    // x[item * stride + column], with `stride` a multiple of 64.
    void (*few)(const RowsView<int8_t>&, int64_t row, int64_t end, const uint8_t* x, int64_t stride, int items, const Scales&, const Output&);
    // sums[row] (+)= the products of `pairs` pairs of rows with x_tile[quad][16 * groups items][4 columns]; sums[row] holds 16 * groups numbers, aligned.
    void (*tile)(const QuadsView&, int64_t pairs, const uint8_t* x_tile, int32_t* sums, int groups, bool add);
    // sums[row - first][lanes] as floats, in the same place, before bias and activation.
    void (*scaled)(void* sums, int lanes, int64_t row, int64_t end, const Scales&);
    // The least and the greatest of x and 0.
    void (*range)(const float* x, int64_t count, float* least, float* most);
    // out[i] = x[i] / scale, rounded to even, plus zero, within 0 and 255.
    void (*quantise)(const float* x, int64_t count, float scale, int32_t zero, uint8_t* out);
};

// The best one that goes with the instruction set in use.
const IntegerKernels& integer_kernels();
// By name, or null: "avx512", "avxvnni", "avx2", "portable".
const IntegerKernels* integer_kernels(const char* name);

}  // namespace emp
