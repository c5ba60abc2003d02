// Bits, counted and read without leaving the array that holds them. Static, for the reason that view.hpp gives.
#pragma once
#include <cstdint>
#include <cstring>

namespace emp {

static inline int count_bits(uint64_t word) { return __builtin_popcountll(word); }
static inline int first_bit(uint64_t word) { return __builtin_ctzll(word); }

// `count` ≤ 64 bits that begin at bit `at` of an array of `bytes` bytes; bits behind them are zero.
static inline uint64_t read_bits(const uint8_t* bits, size_t bytes, uint64_t at, int count) {
    size_t first = size_t(at / 8);
    int shift = int(at % 8);
    size_t left = bytes - first, wanted = size_t(shift + count + 7) / 8;
    uint64_t word = 0;
    if (left >= 8)
        std::memcpy(&word, bits + first, 8);
    else
        std::memcpy(&word, bits + first, wanted < left ? wanted : left);
    word >>= shift;
    if (wanted > 8 && left > 8) word |= uint64_t(bits[first + 8]) << (64 - shift);
    return count == 64 ? word : word & ((uint64_t(1) << count) - 1);
}

// 64 words of 64 bits, transposed: bit j of word i changes places with bit i of word j. Halves change places in ever smaller squares.
static inline void transpose_bits(uint64_t* word) {
    uint64_t low = ~uint64_t(0) >> 32;  // of each square the bits that stay
    for (int half = 32; half; half /= 2, low ^= low << half)
        for (int i = 0; i < 64; i = (i + half + 1) & ~half) {
            const uint64_t changed = (word[i] >> half ^ word[i + half]) & low;
            word[i] ^= changed << half, word[i + half] ^= changed;
        }
}

}  // namespace emp
