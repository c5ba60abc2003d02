// NEON (every aarch64 processor): 4 floats.
#if defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>

#include "bits.hpp"
#include "kernels.hpp"

namespace emp {
namespace neon {

constexpr int kWidth = 4, kMaxGroups = 6;

// For each half of a mask byte 16 bytes: for a lane that is set, the 4 bytes of its value among the packed ones; for one that is not, 0xff,
// for which the table look-up gives zero.
struct Table {
    alignas(64) uint8_t entry[16][16];
    constexpr Table() : entry() {
        for (int m = 0; m < 16; m++) {
            int next = 0;
            for (int j = 0; j < 4; j++) {
                const bool set = m >> j & 1;
                for (int b = 0; b < 4; b++) entry[m][4 * j + b] = set ? uint8_t(4 * next + b) : uint8_t(0xff);
                next += set;
            }
        }
    }
};
constexpr Table kTable;

inline float32x4_t decode4(unsigned mask, const float* packed) {
    const uint8x16_t bytes = vreinterpretq_u8_f32(vld1q_f32(packed));
    return vreinterpretq_f32_u8(vqtbl1q_u8(bytes, vld1q_u8(kTable.entry[mask])));
}

struct F8 {
    static constexpr int kStep = 8;
    float32x4_t lo, hi;
    static F8 zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
    static F8 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
    void store(float* p) const { vst1q_f32(p, lo), vst1q_f32(p + 4, hi); }
    static F8 decode(unsigned mask, const float* packed) {
        return {decode4(mask & 15, packed), decode4(mask >> 4 & 15, packed + count_bits(mask & 15))};
    }
    float sum() const { return vaddvq_f32(vaddq_f32(lo, hi)); }
};
inline F8 fma(F8 a, F8 b, F8 c) { return {vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)}; }
inline F8 add(F8 a, F8 b) { return {vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)}; }
inline F8 relu(F8 a) { return {vmaxq_f32(a.lo, vdupq_n_f32(0)), vmaxq_f32(a.hi, vdupq_n_f32(0))}; }  // NaN stays NaN

using D = F8;

struct Q {
    float32x4_t v;
    static Q zero() { return {vdupq_n_f32(0)}; }
    static Q load(const float* p) { return {vld1q_f32(p)}; }
    static Q gather(const float* x, uint64_t at) {
        float32x4_t r = vld1q_dup_f32(x + (at & 65535));
        r = vld1q_lane_f32(x + (at >> 16 & 65535), r, 1);
        r = vld1q_lane_f32(x + (at >> 32 & 65535), r, 2);
        return {vld1q_lane_f32(x + (at >> 48), r, 3)};
    }
    float sum() const { return vaddvq_f32(v); }
};
inline Q fma(Q a, Q b, Q c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline Q add(Q a, Q b) { return {vaddq_f32(a.v, b.v)}; }

struct F {
    using Self = F;
    static constexpr int kOwn = 4;
    float32x4_t v;
    static F zero() { return {vdupq_n_f32(0)}; }
    static F load(const float* p) { return {vld1q_f32(p)}; }
    static F load_once(const float* p) { return load(p); }
    static F decode(unsigned mask, const float* packed) { return {decode4(mask, packed)}; }
    static F broadcast(float x) { return {vdupq_n_f32(x)}; }
    static F broadcast_once(const float* p) { return broadcast(*p); }
    void store(float* p) const { vst1q_f32(p, v); }
#include "parts_impl.hpp"
};
inline F fma(F a, F b, F c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline F add(F a, F b) { return {vaddq_f32(a.v, b.v)}; }
inline F subtract(F a, F b) { return {vsubq_f32(a.v, b.v)}; }
inline F multiply(F a, F b) { return {vmulq_f32(a.v, b.v)}; }
inline F divide(F a, F b) { return {vdivq_f32(a.v, b.v)}; }
inline F maximum(F a, F b) { return {vmaxq_f32(a.v, b.v)}; }
inline F minimum(F a, F b) { return {vminq_f32(a.v, b.v)}; }
inline F relu(F a) { return {vmaxq_f32(a.v, vdupq_n_f32(0))}; }

template <int kBand>
void move_down(F* line) {
    const float32x4_t a = line[0].v, b = line[1].v, c = line[2].v, d = line[3].v;
    line[0].v = vextq_f32(a, b, 1), line[1].v = vextq_f32(b, kBand == 8 ? a : c, 1);
    line[2].v = vextq_f32(c, d, 1), line[3].v = vextq_f32(d, kBand == 8 ? c : a, 1);
}

struct Four {
    float32x4_t v;
    static Four load(const float* p) { return {vld1q_f32(p)}; }
    template <int i>
    F lane() const {
        return {vdupq_laneq_f32(v, i)};
    }
};

inline void transpose8(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 8; j += 4) {
            const float32x4x2_t a = vtrnq_f32(vld1q_f32(in + i * in_stride + j), vld1q_f32(in + (i + 1) * in_stride + j));
            const float32x4x2_t b = vtrnq_f32(vld1q_f32(in + (i + 2) * in_stride + j), vld1q_f32(in + (i + 3) * in_stride + j));
            vst1q_f32(out + j * out_stride + i, vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0])));
            vst1q_f32(out + (j + 1) * out_stride + i, vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1])));
            vst1q_f32(out + (j + 2) * out_stride + i, vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0])));
            vst1q_f32(out + (j + 3) * out_stride + i, vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1])));
        }
}

inline void transpose16(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 16; j += 8) transpose8(in + i * in_stride + j, in_stride, out + j * out_stride + i, out_stride);
}

#include "kernels_impl.hpp"

#include "cells_impl.hpp"

bool supported() { return true; }

}  // namespace neon

extern const Kernels kNeon;
const Kernels kNeon = {"neon", neon::kMaxGroups,        neon::supported, 0.33, neon::no_pick, neon::dot,    neon::gather, neon::tile, neon::strip,
                       neon::to_lanes, neon::from_lanes, neon::finish, neon::lay, neon::fill, neon::pool_down, neon::pool_across, neon::lines, neon::slide,
                         neon::kMostTiles, neon::winograd_weights, neon::winograd_pixels, neon::winograd_tiles, neon::finite,
                       {neon::lstm, neon::gru, neon::gru_reset, neon::gru_finish, neon::gelu, neon::gelu_tanh, neon::rnn}};

}  // namespace emp
#endif
