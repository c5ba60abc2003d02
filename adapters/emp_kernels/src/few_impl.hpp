// Few items: `dot` and `gather`. Part of kernels_impl.hpp.

// Written out, since a loop over them would put the sums into memory at the end of each row.
template <int kChains>
D joined(const D* sum) {
    if constexpr (kChains == 1)
        return sum[0];
    else
        return add(joined<kChains / 2>(sum), joined<kChains / 2>(sum + kChains / 2));
}

template <int kItems, int kChains>
void dot_rows(const View& w, int64_t row, int64_t end, const float* x, int64_t stride, const Output& out) {
    constexpr int kStep = D::kStep, kSteps = 64 / kStep;
    const int64_t words = w.columns / 64, rest = w.columns % 64;
    for (; row < end; row++) {
        const uint8_t* mask = w.mask + row * w.mask_stride;
        const float* v = row < w.tail_row ? w.values + w.offset[row] : w.tail + (w.offset[row] - w.offset[w.tail_row]);
        D sum[kItems][kChains];
        for (auto& item : sum)
            for (D& chain : item) chain = D::zero();
        const float* xs = x;
        auto step = [&](uint64_t word) {
            prefetch(v + kAhead), prefetch(v + kAhead + 16);
            EMP_UNROLL for (int j = 0; j < kSteps; j++) {
                const int before = j ? count_bits(word << (64 - kStep * j)) : 0;
                const D weight = D::decode(unsigned(word >> (kStep * j)), v + before);
                EMP_UNROLL for (int i = 0; i < kItems; i++)
                    sum[i][j % kChains] = fma(weight, D::load(xs + i * stride + kStep * j), sum[i][j % kChains]);
            }
            v += count_bits(word), xs += 64;
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
        EMP_UNROLL for (int i = 0; i < kItems; i++) {
            const float total = joined<kChains>(sum[i]).sum() + (out.bias ? out.bias[row] : 0.0f);
            out.y[i * out.item_stride + row] = activate(total, out.activation);
        }
    }
}

void dot(const View& w, int64_t row, int64_t end, const float* x, int64_t stride, int items, const Output& out) {
    switch (items) {
        case 1: return dot_rows<1, 64 / D::kStep>(w, row, end, x, stride, out);
        case 2: return dot_rows<2, 4>(w, row, end, x, stride, out);
        case 3: return dot_rows<3, 2>(w, row, end, x, stride, out);
        case 4: return dot_rows<4, 2>(w, row, end, x, stride, out);
        case 5: return dot_rows<5, 1>(w, row, end, x, stride, out);
        case 6: return dot_rows<6, 1>(w, row, end, x, stride, out);
        case 7: return dot_rows<7, 1>(w, row, end, x, stride, out);
        default: return dot_rows<8, 1>(w, row, end, x, stride, out);
    }
}

// ---- one item, very sparse rows

void gather(const View& w, int64_t row, int64_t end, const float* x, const Output& out) {
    const uint16_t* column = w.column;
    for (; row < end; row++) {
        uint64_t i = w.offset[row];
        const uint64_t stop = w.offset[row + 1];
        Q one = Q::zero(), two = Q::zero();
        for (; i + 8 <= stop; i += 8) {
            prefetch(w.values + i + kAhead / 2), prefetch(column + i + kAhead / 2);
            uint64_t at[2];
            std::memcpy(at, column + i, 16);
            one = fma(Q::gather(x, at[0]), Q::load(w.values + i), one);
            two = fma(Q::gather(x, at[1]), Q::load(w.values + i + 4), two);
        }
        float total = add(one, two).sum();
        for (; i < stop; i++) total += w.values[i] * x[column[i]];
        if (out.bias) total += out.bias[row];
        out.y[row] = activate(total, out.activation);
    }
}
