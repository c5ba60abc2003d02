#include "form.hpp"

#include <cstring>

namespace emp {

std::string mask_of(const Codes& codes, int64_t elements, size_t values, Buffer<uint8_t>& mask) {
    if (codes.count < 0 || elements < 0 || codes.count > int64_t(1) << 40)
        return "must have a count of codes ≥ 0, got " + std::to_string(codes.count);
    if (elements > int64_t(1) << 34)  // a mask of 2 GiB, made from perhaps no codes at all
        return "must have at most 2^34 elements, got " + std::to_string(elements);
    const uint64_t count = uint64_t(codes.count);
    const size_t low = codes.bits == 8 ? count : (count + 1) / 2, high = codes.bits == 6 ? (count + 3) / 4 : 0;
    if (codes.low_bytes != low || codes.high_bytes != high)
        return "must have " + std::to_string(low + high) + " bytes of codes, got " + std::to_string(codes.low_bytes + codes.high_bytes);
    const size_t bytes = size_t(elements + 7) / 8;
    uint8_t* out = mask.grow(bytes);
    if (bytes) std::memset(out, 0, bytes);
    const unsigned escape = (1u << codes.bits) - 1;
    int64_t place = -1;
    size_t stored = 0;
    for (uint64_t i = 0; i < count; i++) {
        unsigned code = codes.bits == 8 ? codes.low[i] : codes.low[i / 2] >> (i % 2 * 4) & 15;
        if (codes.bits == 6) code |= unsigned(codes.high[i / 4] >> (i % 4 * 2) & 3) << 4;
        place += code;
        if (code != escape) {
            if (++place >= elements) return "must have codes that stay within its " + std::to_string(elements) + " elements";
            out[place / 8] |= uint8_t(1 << (place % 8));
            stored++;
        } else if (place >= elements) {
            return "must have codes that stay within its " + std::to_string(elements) + " elements";
        }
    }
    if (stored != values)
        return "must have as many values as codes that store one (" + std::to_string(stored) + "), got " + std::to_string(values);
    return "";
}

}  // namespace emp
