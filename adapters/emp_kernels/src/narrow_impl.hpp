// The kernels for narrow weights, written once over F8 (8 floats; zero, load, fma, add, sum) and decode(mask byte, packed values) for each type.
// Included once per instruction set, inside a namespace of its own.

static inline float activate(float value, Activation activation) {
    return activation == Activation::relu ? (value < 0.0f ? 0.0f : value) : value;
}

template <int kItems, int kChains, typename T>
void dot_rows(const RowsView<T>& w, int64_t row, int64_t end, const float* x, int64_t stride, RowScale scale, const Output& out) {
    for (; row < end; row++) {
        const T* v = w.values(row);
        const uint8_t* mask = w.bits(row);
        F8 sum[kItems][kChains];
        for (auto& item : sum)
            for (F8& chain : item) chain = F8::zero();
        for (int64_t c = 0; c < w.words; c++) {
            uint64_t word;
            std::memcpy(&word, mask + 8 * c, 8);
            __builtin_prefetch(v + 1024, 0, 3), __builtin_prefetch(v + 1056, 0, 3);
            const float* xs = x + 64 * c;
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++) {
                const int before = j ? count_bits(word << (64 - 8 * j)) : 0;
                const F8 weight = decode(uint8_t(word >> (8 * j)), v + before);
#pragma GCC unroll 8
                for (int i = 0; i < kItems; i++)
                    sum[i][j % kChains] = fma(weight, F8::load(xs + i * stride + 8 * j), sum[i][j % kChains]);
            }
            v += count_bits(word);
        }
        for (int i = 0; i < kItems; i++) {
            for (int step = 1; step < kChains; step *= 2)
                for (int j = 0; j + step < kChains; j += 2 * step) sum[i][j] = add(sum[i][j], sum[i][j + step]);
            const float total = sum[i][0].sum() * scale.scale[row * scale.step] + (out.bias ? out.bias[row] : 0.0f);
            out.y[i * out.item_stride + row] = activate(total, out.activation);
        }
    }
}

template <typename T>
void dot(const RowsView<T>& w, int64_t row, int64_t end, const float* x, int64_t stride, int items, RowScale scale, const Output& out) {
    switch (items) {
        case 1: return dot_rows<1, 8>(w, row, end, x, stride, scale, out);
        case 2: return dot_rows<2, 4>(w, row, end, x, stride, scale, out);
        case 3: return dot_rows<3, 2>(w, row, end, x, stride, scale, out);
        default: return dot_rows<kNarrowItems, 2>(w, row, end, x, stride, scale, out);
    }
}
