// The sum of two arrays of different shapes, each spread along the axes where it has one element or none, as ONNX has it: for the rare case that
// what is added to a convolution or a product is not as large as it.
#pragma once
#include "node.hpp"

namespace emp {

// The shape of the sum; throws a Refusal where there is none.
inline std::vector<int64_t> joint(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
    std::vector<int64_t> out = a.size() > b.size() ? a : b;
    const std::vector<int64_t>& shorter = a.size() > b.size() ? b : a;
    for (size_t i = 0; i < shorter.size(); i++) {
        int64_t& size = out[out.size() - shorter.size() + i];
        if (size == 1)
            size = shorter[i];
        else if (shorter[i] != 1 && shorter[i] != size)
            throw ort::Refusal("what is added must fit the shape " + text(a) + ", got " + text(b));
    }
    return out;
}

// How far apart the elements of an array lie along each axis of `out`; 0 along those where it is spread.
inline std::vector<int64_t> steps(const std::vector<int64_t>& shape, const std::vector<int64_t>& out) {
    std::vector<int64_t> step(out.size(), 0);
    int64_t size = 1;
    for (size_t i = shape.size(); i-- > 0; size *= shape[i]) step[out.size() - shape.size() + i] = shape[i] == 1 ? 0 : size;
    return step;
}

// y[shape] = activation(a + b).
inline void add(const float* a, const std::vector<int64_t>& a_shape, const float* b, const std::vector<int64_t>& b_shape, Activation activation,
                float* y, const std::vector<int64_t>& shape) {
    const std::vector<int64_t> a_step = steps(a_shape, shape), b_step = steps(b_shape, shape);
    const size_t last = shape.size() - 1;  // both have rows: what a node makes has an axis of outputs
    const int64_t width = shape[last], a_next = a_step[last], b_next = b_step[last];
    std::vector<int64_t> at(last, 0);
    int64_t rows = 1;
    for (size_t axis = 0; axis < last; axis++) rows *= shape[axis];
    for (int64_t row = 0; row < rows; row++, y += width) {
        for (int64_t i = 0; i < width; i++) {
            const float sum = a[i * a_next] + b[i * b_next];
            y[i] = activation == Activation::relu && sum < 0.0f ? 0.0f : sum;
        }
        for (size_t axis = last; axis-- > 0;) {
            a += a_step[axis], b += b_step[axis];
            if (++at[axis] < shape[axis]) break;
            a -= a_step[axis] * shape[axis], b -= b_step[axis] * shape[axis], at[axis] = 0;
        }
    }
}

}  // namespace emp
