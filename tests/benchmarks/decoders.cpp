// Ways to multiply packed weights with one item, alone: clocks for each 64 weights, or for each nonzero, out of the second-level cache.
// `c++ -std=c++17 -O3 -march=native decoders.cpp && ./a.out 0.8`: one line each, "way value". Needs AVX-512.
#include <immintrin.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

constexpr int64_t kRows = 128, kColumns = 2048, kWords = kColumns / 64;
alignas(64) float x[kColumns + 16];
std::vector<uint64_t> mask(kRows* kWords);
std::vector<float> values;
std::vector<uint16_t> column;
std::vector<size_t> offset{0};

double seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

double clock_seconds() {  // of dependent multiplications, which take three; recent Intel processors do additions of constants in none
    constexpr int kCount = 20000000;
    double best = 1;
    for (int i = 0; i < 5; i++) {
        const double start = seconds();
        uint64_t n = 1;
        for (int j = 0; j < kCount; j++) asm volatile("imul %0, %0\n imul %0, %0\n imul %0, %0\n imul %0, %0" : "+r"(n));
        best = std::min(best, (seconds() - start) / kCount / 12);
    }
    return best;
}

struct Table {
    alignas(64) uint64_t entry[256] = {};
    Table() {
        for (unsigned m = 0; m < 256; m++)
            for (uint64_t j = 0, next = 8; j < 8; j++)
                if (m >> j & 1) entry[m] |= next++ << (8 * j);
    }
} const table;

enum class Way { table, expand, expand_fresh, expand_memory };

template <Way way>
__m512 decode(unsigned bits, const float* packed) {
    const auto k = __mmask16(bits);
    __m512 blank = _mm512_setzero_ps();
    if (way == Way::expand_memory) {
        asm volatile("" : "+v"(blank));
        return _mm512_mask_expandloadu_ps(blank, k, packed);
    }
    __m512 found = _mm512_loadu_ps(packed);
    asm volatile("" : "+v"(found));
    if (way == Way::expand) return _mm512_maskz_expand_ps(k, found);
    asm volatile("" : "+v"(blank));
    return _mm512_mask_expand_ps(blank, k, found);
}

template <Way way, int kShift>
float words() {
    float total = 0;
    for (int64_t r = 0; r < kRows; r++) {
        const float *v = values.data() + offset[size_t(r)], *xs = x + kShift;
        __m512 sum[4] = {};
        __m256 half[8] = {};
        for (int64_t i = 0; i < kWords; i++, xs += 64) {
            const uint64_t word = mask[size_t(r * kWords + i)];
            if (way == Way::table) {
#pragma GCC unroll 8
                for (int j = 0; j < 8; j++) {
                    const float* from = v + (j ? __builtin_popcountll(word << (64 - 8 * j)) : 0);
                    const __m256i index = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(table.entry[word >> (8 * j) & 255])));
                    const __m256 weight = _mm256_permutex2var_ps(_mm256_setzero_ps(), index, _mm256_loadu_ps(from));
                    half[j] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(xs + 8 * j), half[j]);
                }
            } else {
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    const float* from = v + (j ? __builtin_popcountll(word << (64 - 16 * j)) : 0);
                    sum[j] = _mm512_fmadd_ps(decode<way>(unsigned(word >> (16 * j)), from), _mm512_loadu_ps(xs + 16 * j), sum[j]);
                }
            }
            v += __builtin_popcountll(word);
        }
        for (const __m512& one : sum) total += _mm512_reduce_add_ps(one);
        for (const __m256& one : half) total += _mm512_reduce_add_ps(_mm512_zextps256_ps512(one));
    }
    return total;
}

// Row by row, as kernels must; what is left over of a row is left out.
float gather_scalars() {
    float total = 0;
    for (int64_t r = 0; r < kRows; r++) {
        float sum[8] = {};
        for (size_t i = offset[size_t(r)]; i + 8 <= offset[size_t(r) + 1]; i += 8)
            for (size_t j = 0; j < 8; j++) sum[j] += values[i + j] * x[column[i + j]];
        for (float one : sum) total += one;
    }
    return total;
}

float gather_inserts() {
    __m128 total = {};
    for (int64_t r = 0; r < kRows; r++) {
        __m128 sum[2] = {};
        for (size_t i = offset[size_t(r)]; i + 8 <= offset[size_t(r) + 1]; i += 8)
            for (size_t j = 0; j < 2; j++) {
                uint64_t at;
                std::memcpy(&at, &column[i + 4 * j], 8);
                __m128 four = _mm_load_ss(x + (at & 65535));
                four = _mm_insert_ps(four, _mm_load_ss(x + (at >> 16 & 65535)), 0x10);
                four = _mm_insert_ps(four, _mm_load_ss(x + (at >> 32 & 65535)), 0x20);
                four = _mm_insert_ps(four, _mm_load_ss(x + (at >> 48)), 0x30);
                sum[j] = _mm_fmadd_ps(four, _mm_loadu_ps(&values[i + 4 * j]), sum[j]);
            }
        total = _mm_add_ps(total, _mm_add_ps(sum[0], sum[1]));
    }
    return _mm_cvtss_f32(_mm_hadd_ps(total, total));
}

float gather_vectors() {
    __m512 total = {};
    for (int64_t r = 0; r < kRows; r++)
        for (size_t i = offset[size_t(r)]; i + 16 <= offset[size_t(r) + 1]; i += 16) {
            const __m512i at = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(&column[i])));
            total = _mm512_fmadd_ps(_mm512_i32gather_ps(at, x, 4), _mm512_loadu_ps(&values[i]), total);
        }
    return _mm512_reduce_add_ps(total);
}

void report(const char* way, float (*run)(), double parts) {
    static const double clock = clock_seconds();
    volatile float kept = run();
    double best = 1;
    for (int i = 0; i < 15; i++) {
        const double start = seconds();
        for (int j = 0; j < 20; j++) kept = run();
        best = std::min(best, (seconds() - start) / 20);
    }
    (void)kept;
    std::printf("%s\t%.2f\n", way, best / parts / clock);
}

}  // namespace

int main(int count, char** given) {
    const double sparsity = count > 1 ? std::atof(given[1]) : 0.8;
    std::mt19937 random(1);
    std::fill(x, x + kColumns + 16, 1.0f);
    for (int64_t i = 0; i < kRows * kColumns; i++) {
        if (random() >= sparsity * 4294967296.0) {
            mask[size_t(i / 64)] |= uint64_t(1) << (i % 64);
            values.push_back(1.0f), column.push_back(uint16_t(i % kColumns));
        }
        if ((i + 1) % kColumns == 0) offset.push_back(values.size());
    }
    const double nonzeros = double(values.size());
    values.resize(values.size() + 32);  // read behind the last one
    report("64 weights: table of permutations, 8 at a time", words<Way::table, 0>, double(kRows * kWords));
    report("64 weights: `vexpandps` from a register, as compilers write it", words<Way::expand, 0>, double(kRows * kWords));
    report("64 weights: the same, each time into a fresh zero", words<Way::expand_fresh, 0>, double(kRows * kWords));
    report("64 weights: the same, activations not on cache lines", words<Way::expand_fresh, 1>, double(kRows * kWords));
    report("64 weights: `vexpandps` from memory, into a fresh zero", words<Way::expand_memory, 0>, double(kRows * kWords));
    report("a nonzero: scalars", gather_scalars, nonzeros);
    report("a nonzero: four inserted, then multiplied", gather_inserts, nonzeros);
    report("a nonzero: `vgatherdps`", gather_vectors, nonzeros);
}
