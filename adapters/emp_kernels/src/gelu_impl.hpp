// Gelu by erf and by tanh. Part of kernels_impl.hpp.

// What x is multiplied with: a half, and c times a polynomial in c², where c is x within ±limit; no division, no exponential. Further out the sum is a
// little above 1 or not above 0, and 0 is taken then, so that minus infinity becomes NaN as where the operations are done one by one.
struct Gate {
    float limit, scale, term[15];  // scale * limit² = 2: the polynomial is in numbers within ±1; its terms from the last one to the first
};

// (1 + erf(x / sqrt 2)) / 2, within 2e-7 of it.
constexpr Gate kByErf = {5.51543283f, 0.065746218f,
                         {0.000564297778f, -0.00142930599f, 0.00104685593f, -0.00123018795f, 0.00433042599f, -0.00783186592f, 0.0105935698f, -0.0147733921f,
                          0.0203802194f, -0.0261620078f, 0.032070484f, -0.038719669f, 0.0476197265f, -0.063997224f, 0.128192797f}};
// (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))) / 2, within 3e-7 of it.
constexpr Gate kByTanh = {5.0f, 0.0799999982f,
                          {-0.000399275683f, 0.000175974186f, 0.00194550736f, -0.00258117612f, 0.000986228231f, -0.00242355699f, 0.00678391848f, -0.0107896104f,
                           0.0157295354f, -0.0229380373f, 0.0313921571f, -0.04054939f, 0.0516548008f, -0.0703655928f, 0.141378537f}};

[[gnu::always_inline]] inline F gated(F x, const Gate& gate) {
    const F c = minimum(maximum(x, F::broadcast(-gate.limit)), F::broadcast(gate.limit));
    const F u = fma(multiply(c, c), F::broadcast(gate.scale), F::broadcast(-1.0f));
    F sum = F::broadcast(gate.term[0]);
    EMP_UNROLL for (int i = 1; i < 15; i++) sum = fma(sum, u, F::broadcast(gate.term[i]));
    return multiply(x, maximum(fma(c, sum, F::broadcast(0.5f)), F::zero()));
}

[[gnu::always_inline]] inline void gate_all(float* x, int64_t n, const Gate& gate) {
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) gated(F::load(x + i), gate).store(x + i);
    if (i < n) gated(F::load_part(x + i, int(n - i)), gate).store_part(x + i, int(n - i));
}

void gelu(float* x, int64_t n) { gate_all(x, n, kByErf); }
void gelu_tanh(float* x, int64_t n) { gate_all(x, n, kByTanh); }
