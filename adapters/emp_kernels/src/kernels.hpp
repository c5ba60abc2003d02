// The kernels of one instruction set, as a table of functions; one table is chosen when the library is loaded.
#pragma once
#include "view.hpp"

namespace emp {

enum class Activation { none, relu };

// Where results go: y[item * item_stride + row], plus bias[row] if there is one, then the activation.
struct Output {
    float* y;
    int64_t item_stride;
    const float* bias;
    Activation activation;
};

constexpr int kLanes = 16;     // columns of a tile come in groups of 16, whatever the width of the registers
constexpr int kMaxItems = 8;   // items that `dot` takes at once

struct Kernels {
    const char* name;
    int max_groups;  // of 16 columns in a tile, so that its sums fit the registers
    bool (*supported)();

    // Few items: the weights are decoded in registers, 8 at a time. x[item * stride + column], zero from `columns` up to the next multiple of 64.
    void (*dot)(const View&, int64_t row, int64_t end, const float* x, int64_t stride, int items, const Output&);
    // One item, very sparse rows; needs the list of columns.
    void (*gather)(const View&, int64_t row, int64_t end, const float* x, const Output&);
    // Many items: sums[row] (+)= weight[row, columns of the segment] * x_tile for `rows` rows; x_tile[column] and sums[row] hold 16 * groups floats,
    // aligned. Where rows come in pairs, `sums` has room for one row more.
    void (*tile)(const Segment&, int64_t rows, bool pairs, const float* x_tile, float* sums, int groups, bool add);
    // out[c * lanes + i] = in[i * stride + c] for i < items, zeros for items ≤ i < lanes; c in [from, to).
    void (*to_lanes)(const float* in, int64_t stride, int items, int lanes, int64_t from, int64_t to, float* out);
    // The way back: y[i * item_stride + row] for i < items, with bias and activation; tile[(row - first) * lanes + i].
    void (*from_lanes)(const float* tile, int lanes, int items, int64_t row, int64_t end, const Output&);
    // out[i] = activation(in[i] + bias) for i < count.
    void (*finish)(const float* in, int64_t count, float bias, Activation, float* out);
    // Whether all are finite.
    bool (*finite)(const float* x, int64_t count);
};

// The best one that this processor has, or the one named by the environment variable EMP_KERNELS_ISA if this processor has it.
const Kernels& kernels();
// By name, or null: "avx512", "avx2", "neon", "portable".
const Kernels* kernels(const char* name);

}  // namespace emp
