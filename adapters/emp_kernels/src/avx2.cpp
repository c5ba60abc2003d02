// AVX2 with FMA: 8 floats.
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include "bits.hpp"
#include "kernels.hpp"

namespace emp {
namespace avx2 {

constexpr int kWidth = 8, kMaxGroups = 6;

// For each mask byte 8 bytes: for a lane that is set, 0x80 + the index of its value among the packed ones; for one that is not, 0.
struct Table {
    alignas(64) uint64_t entry[256];
    constexpr Table() : entry() {
        for (int m = 0; m < 256; m++) {
            uint64_t packed = 0, next = 0x80;
            for (int j = 0; j < 8; j++)
                if (m >> j & 1) packed |= next++ << (8 * j);
            entry[m] = packed;
        }
    }
};
constexpr Table kTable;

struct F8 {
    static constexpr int kStep = 8;
    __m256 v;
    static F8 zero() { return {_mm256_setzero_ps()}; }
    static F8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static F8 load_once(const float* p) { return load(p); }
    static F8 broadcast(float x) { return {_mm256_set1_ps(x)}; }
    static F8 broadcast_once(const float* p) { return broadcast(*p); }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    // The first `count` of them; the others are 0, or stay as they were.
    static F8 load_part(const float* p, int count) { return {_mm256_maskload_ps(p, first(count))}; }
    void store_part(float* p, int count) const { _mm256_maskstore_ps(p, first(count), v); }
    static __m256i first(int count) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
    // p[0], p[2], ..., `count` of them.
    static F8 load_even(const float* p, int count) {
        const __m256 a = load_part(p, 2 * count - 1).v, b = load_part(p + (count > 4 ? 8 : 0), count > 4 ? 2 * count - 9 : 0).v;
        return in_order(_mm256_shuffle_ps(a, b, 0x88));
    }
    // Of a0 a2 b0 b2 a4 a6 b4 b6, the quarters of a before those of b.
    static F8 in_order(__m256 mixed) { return {_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8))}; }
    // p[lane] in the lanes whose bits are set, `other` elsewhere; nothing else is read.
    static F8 load_over(const float* p, unsigned lanes, F8 other) {
        const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        const __m256i chosen = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(lanes)), bit), bit);
        return {_mm256_blendv_ps(other.v, _mm256_maskload_ps(p, chosen), _mm256_castsi256_ps(chosen))};
    }
    // The same back: only the chosen lanes are written.
    void store_over(float* p, unsigned lanes) const {
        const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        _mm256_maskstore_ps(p, _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(lanes)), bit), bit), v);
    }
    // p[2 * lane] and p[2 * lane + 1] where the bit of that number is set, 0 elsewhere; nothing else is read.
    static void load_apart(const float* p, uint32_t chosen, F8& even, F8& odd) {
        const __m256 low = load_over(p, chosen & 255, zero()).v, high = load_over(p + 8, chosen >> 8, zero()).v;
        even = in_order(_mm256_shuffle_ps(low, high, 0x88)), odd = in_order(_mm256_shuffle_ps(low, high, 0xdd));
    }
    static F8 decode(unsigned bits, const float* packed) {
        // the sign bit of an index says whether the lane is set; the permutation looks at its three lowest bits only
        const __m256i index = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kTable.entry[bits & 255])));
        const __m256 spread = _mm256_permutevar8x32_ps(_mm256_loadu_ps(packed), index);
        return {_mm256_and_ps(spread, _mm256_castsi256_ps(_mm256_srai_epi32(index, 31)))};
    }
    float sum() const {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
};
inline F8 fma(F8 a, F8 b, F8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F8 add(F8 a, F8 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F8 subtract(F8 a, F8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F8 multiply(F8 a, F8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F8 divide(F8 a, F8 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F8 maximum(F8 a, F8 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F8 minimum(F8 a, F8 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F8 relu(F8 a) { return {_mm256_max_ps(_mm256_setzero_ps(), a.v)}; }  // the second operand when one is NaN
using F = F8;
using D = F8;

template <int kBand>
void move_down(F8* line) {
    const __m256i next = _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0);
    const __m256 low = _mm256_permutevar8x32_ps(line[0].v, next), high = _mm256_permutevar8x32_ps(line[1].v, next);
    line[0].v = kBand == 8 ? low : _mm256_blend_ps(low, high, 0x80);
    line[1].v = kBand == 8 ? high : _mm256_blend_ps(high, low, 0x80);
}

#include "quad_x86.hpp"

struct Four {
    const float* p;
    static Four load(const float* p) { return {p}; }
    template <int i>
    F lane() const {
        return F::broadcast(p[i]);
    }
};

#include "transpose_x86.hpp"

inline void transpose16(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 16; j += 8) transpose8(in + i * in_stride + j, in_stride, out + j * out_stride + i, out_stride);
}

#include "kernels_impl.hpp"

#include "cells_impl.hpp"

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt"); }

}  // namespace avx2

extern const Kernels kAvx2;
const Kernels kAvx2 = {"avx2", avx2::kMaxGroups,        avx2::supported, 0.33, avx2::no_pick, avx2::dot,    avx2::gather, avx2::tile, avx2::strip,
                       avx2::to_lanes, avx2::from_lanes, avx2::finish, avx2::lay, avx2::fill, avx2::pool_down, avx2::pool_across, avx2::lines, avx2::slide,
                         avx2::kMostTiles, avx2::winograd_weights, avx2::winograd_pixels, avx2::winograd_tiles, avx2::finite,
                       {avx2::lstm, avx2::gru, avx2::gru_reset, avx2::gru_finish, avx2::gelu, avx2::gelu_tanh, avx2::rnn}};

}  // namespace emp
#endif
