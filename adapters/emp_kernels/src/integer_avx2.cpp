// AVX2 without VNNI: `vpmaddubsw` would saturate, so bytes are widened first.
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include "bits.hpp"
#include "integer_kernels.hpp"

namespace emp {
namespace integer_avx2 {

inline __m256i dot_product(__m256i sums, __m256i bytes, __m256i weights) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(bytes, 8), _mm256_srai_epi16(weights, 8));
    return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}

#include "integer_x86.hpp"

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"); }

}  // namespace integer_avx2

extern const IntegerKernels kIntegerAvx2;
const IntegerKernels kIntegerAvx2 = {"avx2", integer_avx2::kItems, 2, integer_avx2::supported, integer_avx2::few, integer_avx2::tile,
                                     integer_avx2::scaled, integer_avx2::range, integer_avx2::quantise};

}  // namespace emp
#endif
