// A sparse matrix as the kernels see it: plain pointers, and nothing that a compiler would emit code for.
//
// The files of the instruction sets include this, bits.hpp and kernels.hpp only. Anything inline from the standard library would be
// compiled there with instructions that not every processor has, and the linker could choose that copy for all.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emp {

// Rows are outputs: y[r] = sum over c of weight[r, c] * x[c].
struct View {
    int64_t rows, columns, nonzeros;
    const uint8_t* mask;       // bits of a row begin on a byte; bit i of byte j is column 8 j + i
    int64_t mask_stride;       // bytes from one row of the mask to the next
    const float* values;       // of the bits set, row by row
    const uint64_t* offset;    // rows + 1: where the values of each row begin
    int64_t tail_row;          // from this row on, values are read from `tail`, which has room for 16 floats behind it
    const float* tail;

    const uint16_t* column;    // of each value, for kernels that jump from one to the next; null until made
};

// Some rows and a block of columns, arranged for the product with a tile: rows with equally many nonzeros follow each other, so that the
// processor foresees where each loop ends; and in dense weights rows come in pairs, so that a column that both have is loaded once.
//
// Rows count from the first row of the segment, columns from its first column.
struct Segment {
    // Singles: a count, how many rows have it, these rows; until all rows are told. Pairs: for each the number of columns that both have, that only the
    // first has, that only the second has; the two rows. The second of the last pair may be one behind the last row.
    const uint16_t* head;
    const uint16_t* column;  // in the order of the rows in `head`; of a pair, first what both have
    const float* value;      // likewise; what both have comes in twos
};

}  // namespace emp
