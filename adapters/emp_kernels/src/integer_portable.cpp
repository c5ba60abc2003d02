// Integers in plain C++.
#include "bits.hpp"
#include "integer_kernels.hpp"

namespace emp {
namespace integer_portable {

constexpr int kLanes32 = 16, kRows = 1, kItems = 4, kUnrolled = 1;

struct I {
    uint32_t v[16];  // unsigned, because sums may wrap
    static I zero() { return {}; }
    static I load(const void* p) {
        I r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    void store(void* p) const { std::memcpy(p, v, sizeof v); }
    static I broadcast(const int8_t* p) {
        I r;
        for (uint32_t& lane : r.v) std::memcpy(&lane, p, 4);
        return r;
    }
    static I dot(I sums, const I& bytes, const I& weights) {
        uint8_t x[64];
        int8_t w[64];
        std::memcpy(x, bytes.v, sizeof x), std::memcpy(w, weights.v, sizeof w);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 4; j++) sums.v[i] += uint32_t(int32_t(x[4 * i + j]) * int32_t(w[4 * i + j]));
        return sums;
    }
    static I add(I a, const I& b) {
        for (int i = 0; i < 16; i++) a.v[i] += b.v[i];
        return a;
    }
    static void sum4(const I& a, const I& b, const I& c, const I& d, int32_t* out) {
        const I* all[] = {&a, &b, &c, &d};
        for (int i = 0; i < 4; i++) {
            uint32_t total = 0;
            for (uint32_t lane : all[i]->v) total += lane;
            out[i] = int32_t(total);
        }
    }
};

inline void decode(uint64_t mask, const int8_t* packed, I* out) {
    int8_t bytes[64] = {};
    for (; mask; mask &= mask - 1) bytes[first_bit(mask)] = *packed++;
    std::memcpy(out[0].v, bytes, sizeof bytes);
}

#include "integer_impl.hpp"

bool supported() { return true; }

}  // namespace integer_portable

extern const IntegerKernels kIntegerPortable;
const IntegerKernels kIntegerPortable = {"portable", integer_portable::kItems, 2, integer_portable::supported, integer_portable::few,
                                         integer_portable::tile, integer_portable::scaled, integer_portable::range, integer_portable::quantise};

}  // namespace emp
