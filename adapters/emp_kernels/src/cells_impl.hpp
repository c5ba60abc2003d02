// Recurrent cells, in plain loops that compilers turn into vectors. Included by one file per instruction set, as kernels_impl.hpp is.

static inline float power_of_two(int32_t exponent) {
    const int32_t bits = int32_t(uint32_t(exponent + 127) << 23);
    float made;
    std::memcpy(&made, &bits, 4);
    return made;
}

// exp(x) for |x| ≤ 87, within 2e-7 of it: 2^k times the first terms of the series on |r| ≤ ln 2 / 2.
static inline float exponential(float x) {
    constexpr float round = 12582912.0f;  // 1.5 * 2^23: a sum with it has no places for fractions
    const float shifted = x * 1.44269504f + round, k = shifted - round;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // ln 2 in two parts, of which the first times k is exact
    float sum = 1.0f / 5040.0f;
    sum = sum * r + 1.0f / 720.0f;
    sum = sum * r + 1.0f / 120.0f;
    sum = sum * r + 1.0f / 24.0f;
    sum = sum * r + 1.0f / 6.0f;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    return sum * power_of_two(bits - 0x4b400000);
}

static inline float within(float x, float most) {
    x = x < -most ? -most : x;  // NaN is neither
    return x > most ? most : x;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-within(x, 80.0f))); }
static inline float hyperbolic(float x) { return 1.0f - 2.0f / (1.0f + exponential(2.0f * within(x, 20.0f))); }

// A loop whose passes do not depend on each other, though what they write is read too.
#if defined(__clang__)
#define EMP_APART _Pragma("clang loop vectorize(enable)")
#else
#define EMP_APART _Pragma("GCC ivdep")
#endif

void lstm(const float* x, const float* h, int64_t n, float* c, float* state) {
    EMP_APART for (int64_t i = 0; i < n; i++) {
        const float in = sigmoid(x[i] + h[i]), out = sigmoid(x[n + i] + h[n + i]), forget = sigmoid(x[2 * n + i] + h[2 * n + i]);
        const float next = forget * c[i] + in * hyperbolic(x[3 * n + i] + h[3 * n + i]);
        c[i] = next;
        state[i] = out * hyperbolic(next);
    }
}

void gru(const float* x, const float* h, int64_t n, float* state) {
    EMP_APART for (int64_t i = 0; i < n; i++) {
        const float update = sigmoid(x[i] + h[i]), reset = sigmoid(x[n + i] + h[n + i]);
        const float fresh = hyperbolic(x[2 * n + i] + reset * h[2 * n + i]);
        state[i] = (1.0f - update) * fresh + update * state[i];
    }
}

void gru_reset(const float* x, const float* h, int64_t n, const float* state, float* update, float* reset) {
    EMP_APART for (int64_t i = 0; i < n; i++) {
        update[i] = sigmoid(x[i] + h[i]);
        reset[i] = sigmoid(x[n + i] + h[n + i]) * state[i];
    }
}

void gru_finish(const float* x, const float* h, int64_t n, const float* update, float* state) {
    EMP_APART for (int64_t i = 0; i < n; i++) {
        const float fresh = hyperbolic(x[2 * n + i] + h[i]);
        state[i] = (1.0f - update[i]) * fresh + update[i] * state[i];
    }
}

void rnn(const float* x, const float* h, int64_t n, float* state) {
    EMP_APART for (int64_t i = 0; i < n; i++) state[i] = hyperbolic(x[i] + h[i]);
}

#undef EMP_APART
