// The kernels, written once over two vector types that each instruction set brings:
//   F8: 8 floats; zero, load, broadcast, fma, sum, decode(mask byte, packed values)
//   F:  as many floats as a register holds (kWidth, which divides 16); zero, load, store, broadcast, fma, add, max
// Included by one file per instruction set, inside a namespace of its own, so that no code of one leaks into another.

static inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

inline float activate(float value, Activation activation) {
    return activation == Activation::relu ? (value < 0.0f ? 0.0f : value) : value;  // NaN stays NaN
}

inline F activate(F value, Activation activation) { return activation == Activation::relu ? relu(value) : value; }

// ---- few items

template <int kItems, int kChains>
void dot_rows(const View& w, int64_t row, int64_t end, const float* x, int64_t stride, const Output& out) {
    const int64_t words = w.columns / 64, rest = w.columns % 64;
    for (; row < end; row++) {
        const uint8_t* mask = w.mask + row * w.mask_stride;
        const float* v = row < w.tail_row ? w.values + w.offset[row] : w.tail + (w.offset[row] - w.offset[w.tail_row]);
        F8 sum[kItems][kChains];
        for (auto& item : sum)
            for (F8& chain : item) chain = F8::zero();
        const float* xs = x;
        auto step = [&](uint64_t word) {
            prefetch(v + 512), prefetch(v + 528);
            for (int j = 0; j < 8; j++) {
                const int before = j ? count_bits(word << (64 - 8 * j)) : 0;
                const F8 weight = F8::decode(uint8_t(word >> (8 * j)), v + before);
                for (int i = 0; i < kItems; i++)
                    sum[i][j % kChains] = fma(weight, F8::load(xs + i * stride + 8 * j), sum[i][j % kChains]);
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
        for (int i = 0; i < kItems; i++) {
            for (int step = 1; step < kChains; step *= 2)
                for (int j = 0; j + step < kChains; j += 2 * step) sum[i][j] = add(sum[i][j], sum[i][j + step]);
            const float total = sum[i][0].sum() + (out.bias ? out.bias[row] : 0.0f);
            out.y[i * out.item_stride + row] = activate(total, out.activation);
        }
    }
}

void dot(const View& w, int64_t row, int64_t end, const float* x, int64_t stride, int items, const Output& out) {
    switch (items) {
        case 1: return dot_rows<1, 8>(w, row, end, x, stride, out);
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
        float sum[8] = {};
        for (; i + 8 <= stop; i += 8) {
            prefetch(w.values + i + 512), prefetch(column + i + 512);
            for (int j = 0; j < 8; j++) sum[j] += w.values[i + j] * x[column[i + j]];
        }
        for (; i < stop; i++) sum[0] += w.values[i] * x[column[i]];
        float total = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
        if (out.bias) total += out.bias[row];
        out.y[row] = activate(total, out.activation);
    }
}

// ---- many items

template <int kGroups, int kUnroll>
void tile_rows(const View& w, const uint32_t* start, const uint32_t* stop, const uint16_t* column, int64_t row, int64_t end,
               const float* x_tile, float* tile, bool add_to) {
    constexpr int kVectors = kGroups * kLanes / kWidth;
    constexpr int64_t kStride = kGroups * kLanes;
    const int64_t first = row;
    for (; row < end; row++) {
        F sum[kUnroll][kVectors];
        float* y = tile + (row - first) * kStride;
        for (int j = 0; j < kVectors; j++) sum[0][j] = add_to ? F::load(y + kWidth * j) : F::zero();
        for (int u = 1; u < kUnroll; u++)
            for (F& lane : sum[u]) lane = F::zero();
        uint32_t i = start[row];
        const uint32_t last = stop[row];
        if (row + 2 < end) {
            uint32_t ahead = start[row + 2];
            const uint32_t ahead_end = stop[row + 2];
            prefetch(column + ahead), prefetch(column + ahead_end);
            for (; ahead < ahead_end; ahead += 16) prefetch(w.values + ahead);
        }
        for (; i + kUnroll <= last; i += kUnroll)
            for (int u = 0; u < kUnroll; u++) {
                const float* x = x_tile + column[i + u] * kStride;
                const F weight = F::broadcast(w.values[i + u]);
                for (int j = 0; j < kVectors; j++) sum[u][j] = fma(weight, F::load(x + kWidth * j), sum[u][j]);
            }
        for (; i < last; i++) {
            const float* x = x_tile + column[i] * kStride;
            const F weight = F::broadcast(w.values[i]);
            for (int j = 0; j < kVectors; j++) sum[0][j] = fma(weight, F::load(x + kWidth * j), sum[0][j]);
        }
        for (int u = 1; u < kUnroll; u++)
            for (int j = 0; j < kVectors; j++) sum[0][j] = add(sum[0][j], sum[u][j]);
        for (int j = 0; j < kVectors; j++) sum[0][j].store(y + kWidth * j);
    }
}

// Enough chains to keep the multipliers busy (8), and no more registers than there are.
template <int kGroups>
constexpr int unroll() {
    constexpr int vectors = kGroups * kLanes / kWidth;
    return vectors >= 8 ? 1 : vectors >= 4 ? 2 : vectors >= 2 ? 4 : 8;
}

void tile(const View& w, int64_t row, int64_t end, int64_t from, int64_t to, const float* x_tile, float* tile,
          int groups, bool add_to) {
    const uint32_t* start = w.start + (from / kGranule) * w.rows;
    const uint32_t* stop = w.start + ((to + kGranule - 1) / kGranule) * w.rows;
    const uint16_t* column = w.column;
    const float* x = x_tile - from * groups * kLanes;
    switch (groups) {
        case 1: return tile_rows<1, unroll<1>()>(w, start, stop, column, row, end, x, tile, add_to);
        case 2: return tile_rows<2, unroll<2>()>(w, start, stop, column, row, end, x, tile, add_to);
        case 3: return tile_rows<3, unroll<3>()>(w, start, stop, column, row, end, x, tile, add_to);
        case 4: return tile_rows<4, unroll<4>()>(w, start, stop, column, row, end, x, tile, add_to);
        case 5: return tile_rows<5, unroll<5>()>(w, start, stop, column, row, end, x, tile, add_to);
        case 6: return tile_rows<6, unroll<6>()>(w, start, stop, column, row, end, x, tile, add_to);
        case 7: return tile_rows<7, unroll<7>()>(w, start, stop, column, row, end, x, tile, add_to);
        default: return tile_rows<8, unroll<8>()>(w, start, stop, column, row, end, x, tile, add_to);
    }
}

// ---- between items in rows and items in lanes

void to_lanes(const float* in, int64_t stride, int items, int lanes, int64_t from, int64_t to, float* out) {
    int i = 0;
    for (; i + 8 <= items; i += 8) {
        int64_t c = from;
        for (; c + 8 <= to; c += 8) transpose8(in + i * stride + c, stride, out + (c - from) * lanes + i, lanes);
        for (; c < to; c++)
            for (int j = 0; j < 8; j++) out[(c - from) * lanes + i + j] = in[(i + j) * stride + c];
    }
    for (; i < lanes; i++)
        for (int64_t c = from; c < to; c++) out[(c - from) * lanes + i] = i < items ? in[i * stride + c] : 0.0f;
}

void from_lanes(const float* tile, int lanes, int items, int64_t row, int64_t end, const Output& out) {
    const int64_t first = row;
    for (; row < end; row += 8) {
        const int count = int(end - row < 8 ? end - row : 8);
        const float* from = tile + (row - first) * lanes;
        int i = 0;
        if (count == 8)
            for (; i + 8 <= items; i += 8) {
                alignas(64) float block[64];
                transpose8(from + i, lanes, block, 8);
                for (int j = 0; j < 8; j++) {
                    F8 value = F8::load(block + 8 * j);
                    if (out.bias) value = add(value, F8::load(out.bias + row));
                    if (out.activation == Activation::relu) value = relu(value);
                    value.store(out.y + (i + j) * out.item_stride + row);
                }
            }
        for (; i < items; i++)
            for (int r = 0; r < count; r++)
                out.y[i * out.item_stride + row + r] =
                    activate(from[r * lanes + i] + (out.bias ? out.bias[row + r] : 0.0f), out.activation);
    }
}

void finish(const float* in, int64_t count, float bias, Activation activation, float* out) {
    const F added = F::broadcast(bias);
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) activate(add(F::load(in + i), added), activation).store(out + i);
    for (; i < count; i++) out[i] = activate(in[i] + bias, activation);
}

bool finite(const float* x, int64_t count) {
    F seen = F::zero();
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) seen = fma(F::load(x + i), F::zero(), seen);
    alignas(64) float lane[kWidth];
    seen.store(lane);
    float sum = 0.0f;
    for (; i < count; i++) sum += x[i] * 0.0f;
    for (float value : lane) sum += value;
    return sum == 0.0f;
}
