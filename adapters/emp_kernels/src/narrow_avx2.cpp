// AVX2, FMA and F16C: one shuffle puts 8 packed values into place, with their bits where a float32, or its conversion, wants them.
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include "bits.hpp"
#include "narrow_kernels.hpp"

namespace emp {
namespace narrow_avx2 {

// For each mask byte where the bytes of 8 packed values go: values of `kFrom` bytes to the upper end of places of `kTo` bytes.
template <int kFrom, int kTo>
struct Table {
    alignas(64) uint8_t entry[256][8 * kTo];
    constexpr Table() : entry() {
        for (int m = 0; m < 256; m++)
            for (int j = 0, next = 0; j < 8; j++) {
                const bool set = m >> j & 1;
                for (int b = 0; b < kTo; b++) {
                    const int byte = b - (kTo - kFrom);
                    entry[m][kTo * j + b] = uint8_t(set && byte >= 0 ? kFrom * next + byte : 0x80);
                }
                next += set;
            }
    }
};
constexpr Table<2, 2> kHalves;
constexpr Table<2, 4> kBfloats;
constexpr Table<1, 4> kBytes;

struct F8 {
    __m256 v;
    static F8 zero() { return {_mm256_setzero_ps()}; }
    static F8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
    float sum() const {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
};
inline F8 fma(F8 a, F8 b, F8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F8 add(F8 a, F8 b) { return {_mm256_add_ps(a.v, b.v)}; }

inline F8 decode(uint8_t mask, const Half* packed) {
    const __m128i places = _mm_load_si128(reinterpret_cast<const __m128i*>(kHalves.entry[mask]));
    return {_mm256_cvtph_ps(_mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)), places))};
}
inline F8 decode(uint8_t mask, const Bfloat* packed) {
    const __m256i places = _mm256_load_si256(reinterpret_cast<const __m256i*>(kBfloats.entry[mask]));
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
    return {_mm256_castsi256_ps(_mm256_shuffle_epi8(twice, places))};
}
inline F8 decode(uint8_t mask, const int8_t* packed) {
    const __m256i places = _mm256_load_si256(reinterpret_cast<const __m256i*>(kBytes.entry[mask]));
    long long eight;
    std::memcpy(&eight, packed, 8);
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_shuffle_epi8(_mm256_set1_epi64x(eight), places), 24))};
}

#include "narrow_impl.hpp"

bool supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("f16c");
}

}  // namespace narrow_avx2

extern const NarrowKernels kNarrowAvx2;
const NarrowKernels kNarrowAvx2 = {"avx2", narrow_avx2::supported, narrow_avx2::dot<Half>, narrow_avx2::dot<Bfloat>, narrow_avx2::dot<int8_t>};

}  // namespace emp
#endif
