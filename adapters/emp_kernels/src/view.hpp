// A sparse matrix as the kernels see it: plain pointers, and nothing that a compiler would emit code for.
//
// The files of the instruction sets include this, bits.hpp and kernels.hpp only. Anything inline from the standard library would be
// compiled there with instructions that not every processor has, and the linker could choose that copy for all.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emp {

constexpr int64_t kGranule = 64;  // columns between two starts

// Rows are outputs: y[r] = sum over c of weight[r, c] * x[c].
struct View {
    int64_t rows, columns, nonzeros;
    const uint8_t* mask;       // bits of a row begin on a byte; bit i of byte j is column 8 j + i
    int64_t mask_stride;       // bytes from one row of the mask to the next
    const float* values;       // of the bits set, row by row
    const uint64_t* offset;    // rows + 1: where the values of each row begin
    int64_t tail_row;          // from this row on, values are read from `tail`, which has room for 16 floats behind it
    const float* tail;

    // The places as lists, for kernels that jump from one nonzero to the next. start[b * rows + r] is the index of the first value of row r
    // in a column ≥ b * kGranule; there is one row of starts more than blocks. Null until made.
    const uint16_t* column;
    const uint32_t* start;
};

}  // namespace emp
