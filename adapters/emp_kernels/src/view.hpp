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

// Some rows and nearby columns, arranged for the product with a tile.
//
// Each row is done in units of 8 nonzeros, whichever columns they are in: what is left over waits for the next block of columns. So rows with
// equally many units follow each other in long runs, the processor foresees where each loop ends, and a row's sums are read and written once
// for 8 nonzeros at least. What still waits at the end of a span of columns comes in a segment of its own, not in units.
//
// Or rows go in pairs, and three lists of each are done in units of 4: of columns where both rows have a value (four of one, then four of the other),
// where the first has, and where the second has. An odd last row has a second one without values behind it.
//
// Rows count from the first row of the segment.
struct Segment {
    const uint16_t *head, *end;  // a count (of units, or of what is left over), how many rows have it, these rows; and so on. Of pairs: the first row,
                                 // then how many units each list has
    const uint8_t* column;       // counted from `base`; or null
    const uint16_t* rest;        // columns of what is left over, counted from the begin of the span; or null
    const float* value;
    int64_t base;                // column of the span
    bool pairs;
};

constexpr int kUnit = 8, kPairUnit = 4;  // nonzeros

// The same for input that is read where it lies: all nonzeros of some rows in some columns, row by row.
struct Strip {
    const uint16_t *head, *end;  // a count, how many rows have it, these rows; and so on
    const float* value;
    size_t first;                // of these values among all of the matrix, and so of what tells where their columns lie
};

// What is fetched into the second-level cache while something else is computed: runs of cache lines, `step` floats from one to the next.
struct Ahead {
    const float* line;  // the next one
    int64_t run, left, step;  // lines of a run, what is left of this one
    int each;                 // lines for each row that is computed; 0: nothing is fetched
};

// Some rows of a convolution whose sums slide, and the channels of a block: for each row, from the furthest slide to none, a list of places with a
// value each. In pairs of rows there are three such lists: of places where both rows have a value (four of one, then four of the other), where the
// first has, and where the second has. Each list is filled up to a multiple of 4.
struct Sweep {
    const uint16_t* fours;       // of each row, or pair: its first row, then of each of its lists: its places / 4
    const uint16_t* place;       // where what is multiplied begins in the tile, in units of 8 bytes
    const float* value;
    int64_t rows;
    int slides;
    bool pairs;                  // an odd last row has a second one without values
};

}  // namespace emp
