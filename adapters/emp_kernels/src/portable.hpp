// 8 floats in plain C++, for processors without a file of their own; compilers turn the loops into vectors where they can.
struct F8 {
    using Self = F8;
    static constexpr int kStep = 8, kOwn = 8;
    float v[8];
    static F8 zero() { return {}; }
    static F8 load(const float* p) {
        F8 r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static F8 load_once(const float* p) { return load(p); }
    static F8 broadcast(float x) { return {{x, x, x, x, x, x, x, x}}; }
    static F8 broadcast_once(const float* p) { return broadcast(*p); }
    void store(float* p) const { std::memcpy(p, v, sizeof v); }
#include "parts_impl.hpp"
    static F8 decode(unsigned bits, const float* packed) {
        F8 r = zero();
        for (unsigned m = bits & 255; m; m &= m - 1) r.v[first_bit(m)] = *packed++;
        return r;
    }
    float sum() const { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
};
inline F8 fma(F8 a, F8 b, F8 c) {
    for (int i = 0; i < 8; i++) c.v[i] += a.v[i] * b.v[i];
    return c;
}
inline F8 add(F8 a, F8 b) {
    for (int i = 0; i < 8; i++) a.v[i] += b.v[i];
    return a;
}
inline F8 subtract(F8 a, F8 b) {
    for (int i = 0; i < 8; i++) a.v[i] -= b.v[i];
    return a;
}
inline F8 multiply(F8 a, F8 b) {
    for (int i = 0; i < 8; i++) a.v[i] *= b.v[i];
    return a;
}
inline F8 divide(F8 a, F8 b) {
    for (int i = 0; i < 8; i++) a.v[i] /= b.v[i];
    return a;
}
inline F8 maximum(F8 a, F8 b) {  // the second operand when one is NaN
    for (int i = 0; i < 8; i++) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
inline F8 minimum(F8 a, F8 b) {
    for (int i = 0; i < 8; i++) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
inline F8 relu(F8 a) {
    for (float& x : a.v) x = x < 0.0f ? 0.0f : x;
    return a;
}
using F = F8;
using D = F8;

struct Q {
    float v[4];
    static Q zero() { return {}; }
    static Q load(const float* p) {
        Q r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static Q gather(const float* x, uint64_t at) { return {{x[at & 65535], x[at >> 16 & 65535], x[at >> 32 & 65535], x[at >> 48]}}; }
    float sum() const { return (v[0] + v[2]) + (v[1] + v[3]); }
};
inline Q fma(Q a, Q b, Q c) {
    for (int i = 0; i < 4; i++) c.v[i] += a.v[i] * b.v[i];
    return c;
}
inline Q add(Q a, Q b) {
    for (int i = 0; i < 4; i++) a.v[i] += b.v[i];
    return a;
}
constexpr int kWidth = 8, kMaxGroups = 2;

template <int kBand>
void move_down(F* line) {
    const float first = line[0].v[0], middle = line[1].v[0];
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 7; i++) line[half].v[i] = line[half].v[i + 1];
    line[0].v[7] = kBand == 8 ? first : middle;
    line[1].v[7] = kBand == 8 ? middle : first;
}

struct Four {
    const float* p;
    static Four load(const float* p) { return {p}; }
    template <int i>
    F lane() const {
        return F::broadcast(p[i]);
    }
};

inline void transpose8(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) out[j * out_stride + i] = in[i * in_stride + j];
}

inline void transpose16(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 16; j += 8) transpose8(in + i * in_stride + j, in_stride, out + j * out_stride + i, out_stride);
}
