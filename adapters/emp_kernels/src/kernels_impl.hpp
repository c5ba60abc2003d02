// The kernels, written once over two vector types that each instruction set brings:
//   F8: 8 floats; zero, load, broadcast, fma, sum, decode(mask byte, packed values)
//   F:  as many floats as a register holds (kWidth, which divides 16); zero, load, load_once, store, broadcast, fma, add, relu
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

template <int kVectors>
struct Sums {
    F v[kVectors];
    void set(const float* from, bool read) {
        for (int j = 0; j < kVectors; j++) v[j] = read ? F::load(from + kWidth * j) : F::zero();
    }
    void store(float* to) const {
        for (int j = 0; j < kVectors; j++) v[j].store(to + kWidth * j);
    }
    void add_product(float weight, const float* x) {
        const F w = F::broadcast(weight);
        for (int j = 0; j < kVectors; j++) v[j] = fma(w, F::load(x + kWidth * j), v[j]);
    }
};

// Enough independent sums to keep the multipliers busy (8), and no more than there are registers.
template <int kGroups, int kUnroll>
void tile_singles(const Segment& segment, int64_t rows, const float* x_tile, float* sums, bool add_to) {
    constexpr int64_t kStride = kGroups * kLanes;
    constexpr int kVectors = kGroups * kLanes / kWidth;
    const uint16_t *head = segment.head, *column = segment.column;
    const float* value = segment.value;
    while (rows > 0) {
        const int count = *head++, members = *head++;
        rows -= members;
        for (int m = 0; m < members; m++) {
            float* y = sums + *head++ * kStride;
            Sums<kVectors> sum[kUnroll];
            for (int u = 0; u < kUnroll; u++) sum[u].set(y, add_to && u == 0);
            prefetch(value + 256), prefetch(value + 272), prefetch(column + 128);
            int i = 0;
            for (; i + kUnroll <= count; i += kUnroll)
                for (int u = 0; u < kUnroll; u++) sum[u].add_product(value[i + u], x_tile + column[i + u] * kStride);
            for (; i < count; i++) sum[0].add_product(value[i], x_tile + column[i] * kStride);
            for (int u = 1; u < kUnroll; u++)
                for (int j = 0; j < kVectors; j++) sum[0].v[j] = add(sum[0].v[j], sum[u].v[j]);
            sum[0].store(y);
            column += count, value += count;
        }
    }
}

template <int kGroups>
void tile_pairs(const Segment& segment, int64_t rows, const float* x_tile, float* sums, bool add_to) {
    constexpr int64_t kStride = kGroups * kLanes;
    constexpr int kVectors = kGroups * kLanes / kWidth;
    const uint16_t *head = segment.head, *column = segment.column;
    const float* value = segment.value;
    for (; rows > 0; rows -= 2, head += 5) {
        float *y = sums + head[3] * kStride, *z = sums + head[4] * kStride;
        Sums<kVectors> a, b;
        a.set(y, add_to), b.set(z, add_to);
        for (int i = 0; i < 96; i += 16) prefetch(value + 512 + i);
        prefetch(column + 256);
        for (const uint16_t* end = column + head[0]; column < end; column++, value += 2) {
            const float* x = x_tile + *column * kStride;
            const F w = F::broadcast(value[0]), u = F::broadcast(value[1]);
            for (int j = 0; j < kVectors; j++) {
                const F both = F::load_once(x + kWidth * j);
                a.v[j] = fma(w, both, a.v[j]);
                b.v[j] = fma(u, both, b.v[j]);
            }
        }
        for (const uint16_t* end = column + head[1]; column < end; column++) a.add_product(*value++, x_tile + *column * kStride);
        for (const uint16_t* end = column + head[2]; column < end; column++) b.add_product(*value++, x_tile + *column * kStride);
        a.store(y), b.store(z);
    }
}

template <int kGroups>
void tile_groups(const Segment& segment, int64_t rows, bool pairs, const float* x_tile, float* sums, bool add_to) {
    constexpr int vectors = kGroups * kLanes / kWidth;
    if (pairs)
        tile_pairs<kGroups>(segment, rows, x_tile, sums, add_to);
    else
        tile_singles<kGroups, vectors >= 8 ? 1 : vectors >= 4 ? 2 : vectors >= 2 ? 4 : 8>(segment, rows, x_tile, sums, add_to);
}

void tile(const Segment& segment, int64_t rows, bool pairs, const float* x_tile, float* sums, int groups, bool add_to) {
    switch (groups) {
        case 1: return tile_groups<1>(segment, rows, pairs, x_tile, sums, add_to);
        case 2: return tile_groups<2>(segment, rows, pairs, x_tile, sums, add_to);
        case 3: return tile_groups<3>(segment, rows, pairs, x_tile, sums, add_to);
        case 4: return tile_groups<4>(segment, rows, pairs, x_tile, sums, add_to);
        case 5: return tile_groups<5>(segment, rows, pairs, x_tile, sums, add_to);
        case 6: return tile_groups<6>(segment, rows, pairs, x_tile, sums, add_to);
        case 7: return tile_groups<7>(segment, rows, pairs, x_tile, sums, add_to);
        default: return tile_groups<8>(segment, rows, pairs, x_tile, sums, add_to);
    }
}

// ---- between items in rows and items in lanes

void to_lanes(const float* in, int64_t stride, int items, int lanes, int64_t from, int64_t to, float* out) {
    constexpr int64_t kPart = 32;  // columns whose lanes stay in the first-level cache until they are full
    for (int64_t part = from; part < to; part += kPart) {
        const int64_t end = part + kPart < to ? part + kPart : to;
        int i = 0;
        for (; i + 8 <= items; i += 8) {
            int64_t c = part;
            for (; c + 8 <= end; c += 8) transpose8(in + i * stride + c, stride, out + (c - from) * lanes + i, lanes);
            for (; c < end; c++)
                for (int j = 0; j < 8; j++) out[(c - from) * lanes + i + j] = in[(i + j) * stride + c];
        }
        for (; i < lanes; i++)
            for (int64_t c = part; c < end; c++) out[(c - from) * lanes + i] = i < items ? in[i * stride + c] : 0.0f;
    }
}

void from_lanes(const float* tile, int lanes, int items, int64_t row, int64_t end, const Output& out) {
    int i = 0;
    for (; i + 8 <= items; i += 8) {
        int64_t r = row;
        for (; r + 8 <= end; r += 8) {
            alignas(64) float block[64];
            transpose8(tile + (r - row) * lanes + i, lanes, block, 8);
            for (int j = 0; j < 8; j++) {
                F8 value = F8::load(block + 8 * j);
                if (out.bias) value = add(value, F8::load(out.bias + r));
                if (out.activation == Activation::relu) value = relu(value);
                value.store(out.y + (i + j) * out.item_stride + r);
            }
        }
        for (; r < end; r++)
            for (int j = 0; j < 8; j++)
                out.y[(i + j) * out.item_stride + r] =
                    activate(tile[(r - row) * lanes + i + j] + (out.bias ? out.bias[r] : 0.0f), out.activation);
    }
    for (; i < items; i++)
        for (int64_t r = row; r < end; r++)
            out.y[i * out.item_stride + r] = activate(tile[(r - row) * lanes + i] + (out.bias ? out.bias[r] : 0.0f), out.activation);
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
