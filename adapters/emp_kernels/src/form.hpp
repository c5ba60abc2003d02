// The packed forms of `emp pack`: what the inputs of a node hold, and how its weight becomes a mask and values.
#pragma once
#include <string>

#include "matrix.hpp"

namespace emp {

// Where values are stored: one bit for each element, filled up to whole groups of 64 bytes in what opsets before 11 have (`early`), or for each stored element a code that counts the elements skipped before it.
enum class Form { mask, early, gaps4, gaps6, gaps8 };

// Codes of so many bits; the largest one skips that many elements and stores nothing.
struct Codes {
    const uint8_t *low, *high;  // `high` for 6 bits only: the upper 2 bits, four to a byte
    size_t low_bytes, high_bytes;
    int64_t count;
    int bits;
};

// The mask of `elements` bits that the codes tell. Returns "" or what is wrong.
std::string mask_of(const Codes& codes, int64_t elements, size_t values, Buffer<uint8_t>& mask);

}  // namespace emp
