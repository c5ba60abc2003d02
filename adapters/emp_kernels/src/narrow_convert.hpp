// Numbers of fewer bits as floats, exactly.
#pragma once
#include <cstring>

#include "narrow_kernels.hpp"

namespace emp {

static inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
static inline float to_float(Bfloat value) { return from_bits(uint32_t(value.bits) << 16); }
static inline float to_float(int8_t value) { return float(value); }
static inline float to_float(Half value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | rest << 13);     // infinite, or NaN
    if (rest >= 0x0400) return from_bits(sign | ((rest << 13) + 0x38000000));  // normal
    const float small = float(rest) * (1.0f / 16777216.0f);                     // subnormal: a whole number of 2^-24
    return sign ? -small : small;
}

}  // namespace emp
