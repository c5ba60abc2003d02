// The parts of a packed weight, read from the inputs of a node and checked against each other.
#pragma once
#include "matrix.hpp"
#include "node.hpp"

namespace emp {

// Bits, and the values that belong to them, without the fill.
struct Parts {
    const uint8_t* mask;
    size_t bytes;
    const void* values;
    size_t count;
    int type;      // of the values, as onnxruntime counts types
    int32_t zero;  // what is taken off each before it is scaled: the fill of integers
    Buffer<uint8_t> made;  // a mask that had to be made
};

// Throws a Refusal. `rows` and `columns` are what the shape says.
Parts read_parts(const Op&, const Stored&, const ort::Info&, int64_t rows, int64_t columns);

// The scale of an integer weight: one number, or one for each of `rows` outputs.
std::vector<float> read_scale(const Op&, const ort::Info&, int64_t rows);

// Integers less their zero point: the values themselves where that is 0, else a copy in `own`; null where some do not fit 8 bits.
const int8_t* centred(const Parts&, Buffer<int8_t>& own);

// The values as float32, times their scales, in the order of the file; `of_row` tells the output of the flat element.
void widened(const Parts&, const std::vector<float>& scale, int64_t elements, int64_t per_row, bool transposed, Buffer<float>& out);

}  // namespace emp
