// AVX-512 (F, VL, DQ, BW): 16 floats.
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include "bits.hpp"
#include "kernels.hpp"

namespace emp {

extern const Pick kPickAvx512;

namespace avx512 {

constexpr int kWidth = 16, kMaxGroups = 8;

struct F {
    static constexpr int kStep = 16;
    __m512 v;
    static F zero() { return {_mm512_setzero_ps()}; }
    static F load(const float* p) { return {_mm512_loadu_ps(p)}; }
    // Compilers see two uses of what was loaded and load it twice, each time as part of a multiplication: loads are what limits here.
    static F load_once(const float* p) {
        F once = load(p);
        asm("" : "+v"(once.v));
        return once;
    }
    static F broadcast(float x) { return {_mm512_set1_ps(x)}; }
    static F broadcast_once(const float* p) {
        F once = broadcast(*p);
        asm("" : "+v"(once.v));
        return once;
    }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    // The first `count` of them; the others are 0, or stay as they were.
    static F load_part(const float* p, int count) { return {_mm512_maskz_loadu_ps(first(count), p)}; }
    void store_part(float* p, int count) const { _mm512_mask_storeu_ps(p, first(count), v); }
    static __mmask16 first(int count) { return __mmask16((1u << count) - 1); }
    // vexpandps waits for what its destination held, also where it sets all of it to zero, and compilers use one register again and again:
    // 26 clocks for 64 weights. With a fresh zero each time, which no compiler sees through, 9. From memory it is slower than from a register.
    static F decode(unsigned mask, const float* packed) {
        __m512 blank = _mm512_setzero_ps(), found = _mm512_loadu_ps(packed);
        asm volatile("" : "+v"(blank), "+v"(found));
        return {_mm512_mask_expand_ps(blank, __mmask16(mask), found)};
    }
    float sum() const {
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
        __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
        return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
    }
    // p[lane] in the lanes whose bits are set, `other` elsewhere; nothing else is read.
    static F load_over(const float* p, unsigned lanes, F other) { return {_mm512_mask_loadu_ps(other.v, __mmask16(lanes), p)}; }
    // The same back: only the chosen lanes are written.
    void store_over(float* p, unsigned lanes) const { _mm512_mask_storeu_ps(p, __mmask16(lanes), v); }
    // p[2 * lane] and p[2 * lane + 1] where the bit of that number is set, 0 elsewhere; nothing else is read.
    static void load_apart(const float* p, uint32_t chosen, F& even, F& odd) {
        const __m512 low = _mm512_maskz_loadu_ps(__mmask16(chosen), p), high = _mm512_maskz_loadu_ps(__mmask16(chosen >> 16), p + 16);
        const __m512i places = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        even.v = _mm512_permutex2var_ps(low, places, high);
        odd.v = _mm512_permutex2var_ps(low, _mm512_add_epi32(places, _mm512_set1_epi32(1)), high);
    }
    // p[0], p[2], ..., `count` of them.
    static F load_even(const float* p, int count) {
        const uint32_t mask = uint32_t((uint64_t(1) << (2 * count - 1)) - 1);
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        return {_mm512_permutex2var_ps(_mm512_maskz_loadu_ps(__mmask16(mask), p), even, _mm512_maskz_loadu_ps(__mmask16(mask >> 16), p + 16))};
    }
};
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F subtract(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F multiply(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
// By a reciprocal to 14 bits and one step of Newton's, in half the time; within 3 units of the last place.
inline F divide(F a, F b) {
    const __m512 r = _mm512_rcp14_ps(b.v);
    return {_mm512_mul_ps(a.v, _mm512_mul_ps(r, _mm512_fnmadd_ps(b.v, r, _mm512_set1_ps(2.0f))))};
}
inline F maximum(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F minimum(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F relu(F a) { return {_mm512_max_ps(_mm512_setzero_ps(), a.v)}; }

using D = F;

template <int kBand>
void move_down(F* line) {
    const __m512i halves = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12, 13, 14, 15, 8);
    const __m512i whole = _mm512_castps_si512(line->v);
    line->v = kBand == 8 ? _mm512_permutexvar_ps(halves, line->v) : _mm512_castsi512_ps(_mm512_alignr_epi32(whole, whole, 1));
}

#include "quad_x86.hpp"

struct Four {
    __m512 v;  // the four, four times
    static Four load(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }
    template <int i>
    F lane() const {
        return {_mm512_permute_ps(v, i * 0x55)};
    }
};

// 16 x 16 floats transposed in registers.
inline void transpose16(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
    __m512 r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(in + i * in_stride);
    for (int i = 0; i < 16; i += 2) t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44), r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44), r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88), t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_ps(out + i * out_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
        _mm512_storeu_ps(out + (i + 4) * out_stride, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88));
        _mm512_storeu_ps(out + (i + 8) * out_stride, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
        _mm512_storeu_ps(out + (i + 12) * out_stride, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd));
    }
}

#include "kernels_impl.hpp"

#include "cells_impl.hpp"

Pick pick() { return __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2") ? kPickAvx512 : nullptr; }

bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace avx512

extern const Kernels kAvx512;
const Kernels kAvx512 = {"avx512", avx512::kMaxGroups,       avx512::supported, 0.18, avx512::pick, avx512::dot,        avx512::gather, avx512::tile, avx512::strip,
                         avx512::to_lanes, avx512::from_lanes, avx512::finish, avx512::lay, avx512::fill, avx512::pool_down, avx512::pool_across, avx512::lines, avx512::slide,
                         avx512::kMostTiles, avx512::winograd_weights, avx512::winograd_pixels, avx512::winograd_tiles, avx512::finite,
                         {avx512::lstm, avx512::gru, avx512::gru_reset, avx512::gru_finish, avx512::gelu, avx512::gelu_tanh, avx512::rnn}};

}  // namespace emp
#endif
