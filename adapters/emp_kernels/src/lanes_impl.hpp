// Between items in rows and items in lanes, and whether numbers are finite. Part of kernels_impl.hpp.

// 0 * x, added to what was seen before: not 0 from the first x on that is not finite.
struct Seen {
    F sum = F::zero();
    void add(F x) { sum = fma(x, F::zero(), sum); }
    bool finite() const {
        alignas(64) float lane[kWidth];
        sum.store(lane);
        float total = 0.0f;
        for (float value : lane) total += value;
        return total == 0.0f;
    }
};

bool finite(const float* x, int64_t count, int64_t rows, int64_t stride) {
    Seen one, two, three, four;
    for (int64_t r = 0; r < rows; r++, x += stride) {
        int64_t i = 0;
        for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
            one.add(F::load(x + i)), two.add(F::load(x + i + kWidth));
            three.add(F::load(x + i + 2 * kWidth)), four.add(F::load(x + i + 3 * kWidth));
        }
        for (; i < count; i += kWidth) one.add(F::load_part(x + i, int(count - i < kWidth ? count - i : kWidth)));
    }
    return one.finite() && two.finite() && three.finite() && four.finite();
}

bool to_lanes(const float* in, int64_t stride, int items, int lanes, int64_t from, int64_t to, float* out) {
    constexpr int64_t kPart = 32;  // columns whose lanes stay in the first-level cache until they are full
    bool all_finite = true;
    for (int64_t part = from; part < to; part += kPart) {
        const int64_t end = part + kPart < to ? part + kPart : to;
        int i = 0;
        for (; i + 16 <= items; i += 16) {
            int64_t c = part;
            for (; c + 16 <= end; c += 16) transpose16(in + i * stride + c, stride, out + (c - from) * lanes + i, lanes);
            for (; c < end; c++)
                for (int j = 0; j < 16; j++) out[(c - from) * lanes + i + j] = in[(i + j) * stride + c];
        }
        for (; i < lanes; i++)
            for (int64_t c = part; c < end; c++) out[(c - from) * lanes + i] = i < items ? in[i * stride + c] : 0.0f;
        if (!finite(out + (part - from) * lanes, (end - part) * lanes, 1, 0)) all_finite = false;
    }
    return all_finite;
}

// One element of a row, for what no register holds.
inline float ended(float sum, const Output& out, int64_t item, int64_t row) {
    if (out.bias) sum += out.bias[row];
    if (out.added) sum += out.added[item * out.item_stride + row];
    return activate(sum, out.activation);
}

template <Activation kActivation>
void from_lanes_active(const float* tile, int lanes, int items, int64_t row, int64_t end, const Output& out) {
    int i = 0;
    for (; i + 16 <= items; i += 16) {
        int64_t r = row;
        for (; r + 16 <= end; r += 16) {
            alignas(64) float block[256];
            transpose16(tile + (r - row) * lanes + i, lanes, block, 16);
            for (int j = 0; j < 16; j++)
                for (int k = 0; k < 16; k += kWidth) {
                    const int64_t at = (i + j) * out.item_stride + r + k;
                    F value = F::load(block + 16 * j + k);
                    if (out.bias) value = add(value, F::load(out.bias + r + k));
                    if (out.added) value = add(value, F::load(out.added + at));
                    if (kActivation == Activation::relu) value = relu(value);
                    if (kActivation == Activation::gelu) value = gated(value, kByErf);
                    if (kActivation == Activation::gelu_tanh) value = gated(value, kByTanh);
                    value.store(out.y + at);
                }
        }
        for (int j = 0; j < 16; j++)
            for (int64_t k = r; k < end; k++) out.y[(i + j) * out.item_stride + k] = ended(tile[(k - row) * lanes + i + j], out, i + j, k);
        if (kActivation > Activation::relu && r < end)
            for (int j = 0; j < 16; j++) (kActivation == Activation::gelu ? gelu : gelu_tanh)(out.y + (i + j) * out.item_stride + r, end - r);
    }
    for (; i < items; i++) {
        float* y = out.y + i * out.item_stride;
        for (int64_t r = row; r < end; r++) y[r] = ended(tile[(r - row) * lanes + i], out, i, r);
        if (kActivation > Activation::relu) (kActivation == Activation::gelu ? gelu : gelu_tanh)(y + row, end - row);
    }
}

void from_lanes(const float* tile, int lanes, int items, int64_t row, int64_t end, const Output& out) {
    switch (out.activation) {
        case Activation::relu: return from_lanes_active<Activation::relu>(tile, lanes, items, row, end, out);
        case Activation::gelu: return from_lanes_active<Activation::gelu>(tile, lanes, items, row, end, out);
        case Activation::gelu_tanh: return from_lanes_active<Activation::gelu_tanh>(tile, lanes, items, row, end, out);
        default: return from_lanes_active<Activation::none>(tile, lanes, items, row, end, out);
    }
}

template <bool kAdded>
void finish_rows(const float* tile, int lanes, int64_t rows, int64_t count, const float* bias, const float* added, int64_t y_stride,
                 const Ending& ending, float* y) {
    for (int64_t r = 0; r < rows; r++, tile += lanes, y += y_stride) {
        const float b = bias ? bias[r] : 0.0f;
        const F offset = F::broadcast(b);
        int64_t i = 0;
        for (; i < count; i += kWidth) {
            const int part = int(count - i < kWidth ? count - i : kWidth);
            F value = add(part == kWidth ? F::load(tile + i) : F::load_part(tile + i, part), offset);
            if (kAdded) value = add(value, part == kWidth ? F::load(added + i) : F::load_part(added + i, part));
            value = activate(value, ending.activation);
            part == kWidth ? value.store(y + i) : value.store_part(y + i, part);
        }
        if (ending.activation > Activation::relu) bend(y, count, ending, r);
        if (kAdded) added += y_stride;
    }
}

void finish(const float* tile, int lanes, int64_t rows, int64_t count, const float* bias, const float* added, int64_t y_stride,
            const Ending& ending, float* y) {
    added ? finish_rows<true>(tile, lanes, rows, count, bias, added, y_stride, ending, y)
          : finish_rows<false>(tile, lanes, rows, count, bias, added, y_stride, ending, y);
}
