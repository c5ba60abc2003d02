// What follows convolutions and is more than a Relu, in place. Part of kernels_impl.hpp. NaN stays NaN.
template <typename Curve>
void bend_all(float* x, int64_t n, const Curve& curve) {
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) curve(F::load(x + i)).store(x + i);
    if (i < n) curve(F::load_part(x + i, int(n - i))).store_part(x + i, int(n - i));
}

// x / (1 + exp(-x)), within 3e-7 of x: x times a half and c p(c²) / q(c²), where c is x within ±17. A little less than a half, so that the gate is not above
// 0 there and minus infinity becomes NaN, as where the operations are done one by one.
[[gnu::always_inline]] inline F swished(F x) {
    constexpr float above[] = {1.37688113e-11f, 8.25061699e-8f, 5.50909318e-5f, 8.37887893e-3f, 2.49999986e-1f};
    constexpr float below[] = {3.15375988e-9f, 5.21201726e-6f, 1.62444605e-3f, 1.16848794e-1f, 1.0f};
    const F c = minimum(maximum(x, F::broadcast(-17.0f)), F::broadcast(17.0f)), square = multiply(c, c);
    F p = F::broadcast(above[0]), q = F::broadcast(below[0]);
    EMP_UNROLL for (int i = 1; i < 5; i++) p = fma(p, square, F::broadcast(above[i])), q = fma(q, square, F::broadcast(below[i]));
    return multiply(x, maximum(add(divide(multiply(c, p), q), F::broadcast(0.4999999f)), F::zero()));
}

void bend(float* x, int64_t n, const Ending& ending, int64_t row) {
    const F zero = F::zero(), low = F::broadcast(ending.slope ? ending.slope[row] : ending.low), high = F::broadcast(ending.high);
    switch (ending.activation) {
        case Activation::clip: return bend_all(x, n, [=](F v) { return minimum(high, maximum(low, v)); });
        case Activation::leaky_relu:
        case Activation::prelu: return bend_all(x, n, [=](F v) { return fma(minimum(zero, v), low, maximum(zero, v)); });
        case Activation::hard_swish: {
            const F one = F::broadcast(1.0f), half = F::broadcast(0.5f), sixth = F::broadcast(1.0f / 6.0f);
            return bend_all(x, n, [=](F v) { return multiply(v, minimum(one, maximum(zero, fma(v, sixth, half)))); });
        }
        case Activation::gelu: return gelu(x, n);
        case Activation::gelu_tanh: return gelu_tanh(x, n);
        case Activation::swish: return bend_all(x, n, [](F v) { return swished(v); });
        default: return;
    }
}
