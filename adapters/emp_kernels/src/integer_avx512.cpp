// AVX-512 with VNNI and VBMI2: `vpexpandb` puts 64 packed bytes into place, and runs as fast as they come from memory (unlike `vexpandps`).
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include "bits.hpp"
#include "integer_kernels.hpp"

namespace emp {
namespace integer_avx512 {

constexpr int kLanes32 = 16, kRows = 4, kItems = 4, kUnrolled = 4;

struct I {
    __m512i v;
    static I zero() { return {_mm512_setzero_si512()}; }
    static I load(const void* p) { return {_mm512_loadu_si512(p)}; }
    void store(void* p) const { _mm512_storeu_si512(p, v); }
    static I broadcast(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        return {_mm512_set1_epi32(four)};
    }
    static I dot(I sums, I bytes, I weights) { return {_mm512_dpbusd_epi32(sums.v, bytes.v, weights.v)}; }
    static I add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
    static void sum4(I a, I b, I c, I d, int32_t* out) {
        const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a.v, b.v), _mm512_unpackhi_epi32(a.v, b.v));
        const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c.v, d.v), _mm512_unpackhi_epi32(c.v, d.v));
        const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
    }
};

// The load stays one of its own: `vpexpandb` from memory is microcode on AMD processors.
inline void decode(uint64_t mask, const int8_t* packed, I* out) {
    __m512i some = _mm512_loadu_si512(packed);
    asm("" : "+v"(some));
    out[0].v = _mm512_maskz_expand_epi8(mask, some);
}

#include "integer_impl.hpp"

bool supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace integer_avx512

extern const IntegerKernels kIntegerAvx512;
const IntegerKernels kIntegerAvx512 = {"avx512", integer_avx512::kItems, 8, integer_avx512::supported, integer_avx512::few, integer_avx512::tile,
                                       integer_avx512::scaled, integer_avx512::range, integer_avx512::quantise};

}  // namespace emp
#endif
