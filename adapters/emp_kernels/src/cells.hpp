// What recurrent cells do with the sums of their gates, element by element, as a table of functions; a part of each instruction set's kernels.
#pragma once
#include <cstdint>

namespace emp {

// `x` holds what the input gives to each gate, `h` what the state gives, both with biases: as many gates of `n` floats as the cell has, in ONNX's
// order. Sigmoid and tanh are within 3e-7 of the exact ones; NaN stays NaN.
struct Cells {
    // Gates: input, output, forget, cell. c and state are read and written.
    void (*lstm)(const float* x, const float* h, int64_t n, float* c, float* state);
    // Gates: update, reset, hidden; the reset is applied to what the state gives.
    void (*gru)(const float* x, const float* h, int64_t n, float* state);
    // The reset is applied to the state itself: first the gates `update` and the state times reset; then, with h of the hidden gate alone, the state.
    void (*gru_reset)(const float* x, const float* h, int64_t n, const float* state, float* update, float* reset);
    void (*gru_finish)(const float* x, const float* h, int64_t n, const float* update, float* state);
    // x becomes Gelu of x, x * (1 + erf(x / sqrt 2)) / 2, within 2e-7 |x|; not of a cell, but as well done element by element.
    void (*gelu)(float* x, int64_t n);
    // The same by tanh: x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2, within 3e-7 |x|.
    void (*gelu_tanh)(float* x, int64_t n);
    // state = tanh(x + h)
    void (*rnn)(const float* x, const float* h, int64_t n, float* state);
};

}  // namespace emp
