// 32 bytes in AVX2 registers; the file that includes this brings `dot_product`.
constexpr int kLanes32 = 8, kRows = 2, kItems = 4, kUnrolled = 1;

// For each mask byte the 8 places of packed bytes, 0x80 where nothing is stored.
struct Table {
    alignas(64) uint64_t entry[256];
    constexpr Table() : entry() {
        for (int m = 0; m < 256; m++) {
            uint64_t packed = 0, next = 0;
            for (int j = 0; j < 8; j++) packed |= (m >> j & 1 ? next++ : uint64_t(0x80)) << (8 * j);
            entry[m] = packed;
        }
    }
};
constexpr Table kTable;

struct I {
    __m256i v;
    static I zero() { return {_mm256_setzero_si256()}; }
    static I load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
    void store(void* p) const { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
    static I broadcast(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        return {_mm256_set1_epi32(four)};
    }
    static I dot(I sums, I bytes, I weights) { return {dot_product(sums.v, bytes.v, weights.v)}; }
    static I add(I a, I b) { return {_mm256_add_epi32(a.v, b.v)}; }
    static void sum4(I a, I b, I c, I d, int32_t* out) {
        const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(a.v, b.v), _mm256_hadd_epi32(c.v, d.v));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
    }
};

inline void decode(uint64_t mask, const int8_t* packed, I* out) {
    __m128i part[4];
    for (int i = 0; i < 4; i++) {
        const unsigned low = mask & 255, high = mask >> 8 & 255;
        const __m128i first = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed)),
                                               _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kTable.entry[low])));
        packed += count_bits(low);
        const __m128i second = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed)),
                                                _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kTable.entry[high])));
        packed += count_bits(high), mask >>= 16;
        part[i] = _mm_unpacklo_epi64(first, second);
    }
    out[0].v = _mm256_set_m128i(part[1], part[0]), out[1].v = _mm256_set_m128i(part[3], part[2]);
}

#include "integer_impl.hpp"
