// One item, some 10 to 30 % of weights kept, AVX-512 with VBMI2: instead of putting weights into place 16 at a time, the activations that the nonzeros
// of 64 places need are picked at once. `vpcompressb` turns 64 bits of the mask into the places of its ones; two permutations fetch what lies there.
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>

#include "bits.hpp"
#include "kernels.hpp"

namespace emp {
namespace {

// sum + values[from + i] * x[places[i]] for i < count - from, at most 16.
inline __m512 add_picked(__m512 sum, const __m512* x, __m128i places, const float* values, int from, int count) {
    const __m512i index = _mm512_cvtepu8_epi32(places);
    const __mmask16 second = _mm_test_epi8_mask(places, _mm_set1_epi8(32)), there = __mmask16(_bzhi_u32(0xffff, unsigned(count - from)));
    const __m512 picked = _mm512_mask_blend_ps(second, _mm512_permutex2var_ps(x[0], index, x[1]), _mm512_permutex2var_ps(x[2], index, x[3]));
    return _mm512_mask3_fmadd_ps(picked, _mm512_loadu_ps(values + from), sum, there);
}

float total(__m512 v) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

void pick_rows(const View& w, int64_t row, int64_t end, const float* x, const Output& out) {
    constexpr int kAhead = 2048;  // floats; as `dot` does it
    alignas(64) uint8_t counting[64];
    for (int i = 0; i < 64; i++) counting[i] = uint8_t(i);
    const __m512i all = _mm512_load_si512(counting);
    const int64_t words = w.columns / 64, rest = w.columns % 64;
    for (; row < end; row++) {
        const uint8_t* mask = w.mask + row * w.mask_stride;
        const float* v = row < w.tail_row ? w.values + w.offset[row] : w.tail + (w.offset[row] - w.offset[w.tail_row]);
        const float* xs = x;
        __m512 sum = _mm512_setzero_ps(), more = _mm512_setzero_ps();
        const auto step = [&](uint64_t word) {
            const int count = count_bits(word);
            __builtin_prefetch(v + kAhead);
            __m512i blank = _mm512_setzero_si512();
            asm volatile("" : "+v"(blank));  // as vexpandps, this waits for what its destination held
            const __m512i places = _mm512_mask_compress_epi8(blank, word, all);
            const __m512 some[4] = {_mm512_load_ps(xs), _mm512_load_ps(xs + 16), _mm512_load_ps(xs + 32), _mm512_load_ps(xs + 48)};
            sum = add_picked(sum, some, _mm512_castsi512_si128(places), v, 0, count);
            if (__builtin_expect(count > 16, 0)) {
                more = add_picked(more, some, _mm512_extracti32x4_epi32(places, 1), v, 16, count);
                if (count > 32) more = add_picked(more, some, _mm512_extracti32x4_epi32(places, 2), v, 32, count);
                if (count > 48) more = add_picked(more, some, _mm512_extracti32x4_epi32(places, 3), v, 48, count);
            }
            v += count, xs += 64;
        };
        for (int64_t i = 0; i < words; i++) {
            uint64_t word;
            std::memcpy(&word, mask + 8 * i, 8);
            step(word);
        }
        if (rest) {
            uint64_t word = 0;
            std::memcpy(&word, mask + 8 * words, size_t(w.mask_stride - 8 * words));
            step(word);
        }
        const float made = total(_mm512_add_ps(sum, more)) + (out.bias ? out.bias[row] : 0.0f);
        out.y[row] = out.activation == Activation::relu && made < 0.0f ? 0.0f : made;  // NaN stays NaN
    }
}

}  // namespace

extern const Pick kPickAvx512;
const Pick kPickAvx512 = pick_rows;

}  // namespace emp
#endif
