// A packed matrix of values of any type, as the kernels see it. Plain, for the reason that view.hpp gives.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emp {

constexpr size_t kRoom = 64;  // values that may be read behind the last one of a row

template <typename T>
struct RowsView {
    int64_t rows, columns, words;  // words: of 64 columns, in a row
    int64_t nonzeros;
    const uint8_t* mask;           // `words` words of 8 bytes for each row; bit i of byte j is column 8 j + i; zero behind the last column
    const T* packed;               // of the bits set, row by row
    const uint64_t* offset;        // rows + 1: where the values of each row begin
    int64_t tail_row;              // from this row on, values are read from `tail`, which has room behind it
    const T* tail;

    // inlined whatever happens: no copy that needs an instruction set may be left for the linker to choose
    [[gnu::always_inline]] const uint8_t* bits(int64_t row) const { return mask + row * words * 8; }
    [[gnu::always_inline]] const T* values(int64_t row) const { return row < tail_row ? packed + offset[row] : tail + (offset[row] - offset[tail_row]); }
};

}  // namespace emp
