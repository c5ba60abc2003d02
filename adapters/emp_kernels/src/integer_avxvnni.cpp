// AVX-VNNI: 256 bits, for processors without AVX-512.
#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#include <immintrin.h>

#include "bits.hpp"
#include "integer_kernels.hpp"

namespace emp {
namespace integer_avxvnni {

inline __m256i dot_product(__m256i sums, __m256i bytes, __m256i weights) { return _mm256_dpbusd_avx_epi32(sums, bytes, weights); }

#include "integer_x86.hpp"

bool supported() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    // leaf 7, part 1, EAX bit 4; not every compiler's __builtin_cpu_supports knows its name
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

}  // namespace integer_avxvnni

extern const IntegerKernels kIntegerAvxVnni;
const IntegerKernels kIntegerAvxVnni = {"avxvnni", integer_avxvnni::kItems, 2, integer_avxvnni::supported, integer_avxvnni::few,
                                        integer_avxvnni::tile, integer_avxvnni::scaled, integer_avxvnni::range, integer_avxvnni::quantise};

}  // namespace emp
#endif
