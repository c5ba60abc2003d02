// The kernels for integers, written once over a vector type that each instruction set brings:
//   I: kLanes32 sums of 32 bits; zero, load, store, add, dot(sums, 4 unsigned bytes for each, 4 signed bytes for each), broadcast(4 bytes), sum4
//   decode(mask word, packed bytes, I[64 / (4 kLanes32)]): 64 bytes in place
// and kRows, kItems, kUnrolled: how many sums fit the registers. Included once per instruction set, inside a namespace of its own.

constexpr int kParts = 16 / kLanes32;  // vectors that hold 64 bytes

static inline float activate(float value, Activation activation) {
    return activation == Activation::relu ? (value < 0.0f ? 0.0f : value) : value;
}

static inline float scaled_sum(int32_t sum, int64_t row, const Scales& s) {
    const int32_t exact = int32_t(uint32_t(sum) - uint32_t(s.x_zero) * uint32_t(s.row_sum[row]));
    return float(exact) * (s.x_scale * s.scale[row * s.scale_step]);
}

template <int kRowsNow, int kItemsNow>
void few_rows(const RowsView<int8_t>& w, int64_t row, const uint8_t* x, int64_t stride, const Scales& scales, const Output& out) {
    I sum[kItemsNow][kRowsNow];
    const int8_t* v[kRowsNow];
    const uint8_t* mask[kRowsNow];
    const int64_t ahead = int64_t(w.offset[row + kRowsNow] - w.offset[row]) * 2;  // the rows that come later
#pragma GCC unroll 32
    for (int r = 0; r < kRowsNow; r++) {
        v[r] = w.values(row + r), mask[r] = w.bits(row + r);
#pragma GCC unroll 32
        for (int i = 0; i < kItemsNow; i++) sum[i][r] = I::zero();
    }
    for (int64_t c = 0; c < w.words; c++) {
        I weight[kRowsNow][kParts];
#pragma GCC unroll 32
        for (int r = 0; r < kRowsNow; r++) {
            uint64_t word;
            std::memcpy(&word, mask[r] + 8 * c, 8);
            __builtin_prefetch(v[r] + ahead, 0, 3);
            if (c % 8 == 0) __builtin_prefetch(mask[r] + 8 * (c + 2 * kRowsNow * w.words), 0, 3);
            decode(word, v[r], weight[r]);
            v[r] += count_bits(word);
        }
#pragma GCC unroll 32
        for (int i = 0; i < kItemsNow; i++)
#pragma GCC unroll 32
            for (int p = 0; p < kParts; p++) {
                const I some = I::load(x + i * stride + 64 * c + p * 4 * kLanes32);
#pragma GCC unroll 32
                for (int r = 0; r < kRowsNow; r++) sum[i][r] = I::dot(sum[i][r], some, weight[r][p]);
            }
    }
#pragma GCC unroll 32
    for (int i = 0; i < kItemsNow; i++) {
        int32_t total[4];
        I::sum4(sum[i][0], kRowsNow > 1 ? sum[i][kRowsNow > 1] : I::zero(), kRowsNow > 2 ? sum[i][kRowsNow > 2 ? 2 : 0] : I::zero(),
                kRowsNow > 3 ? sum[i][kRowsNow > 3 ? 3 : 0] : I::zero(), total);
        for (int r = 0; r < kRowsNow; r++) {
            const float value = scaled_sum(total[r], row + r, scales) + (out.bias ? out.bias[row + r] : 0.0f);
            out.y[i * out.item_stride + row + r] = activate(value, out.activation);
        }
    }
}

template <int kItemsNow>
void few_items(const RowsView<int8_t>& w, int64_t row, int64_t end, const uint8_t* x, int64_t stride, const Scales& scales, const Output& out) {
    for (; row + kRows <= end; row += kRows) few_rows<kRows, kItemsNow>(w, row, x, stride, scales, out);
    for (; row < end; row++) few_rows<1, kItemsNow>(w, row, x, stride, scales, out);
}

void few(const RowsView<int8_t>& w, int64_t row, int64_t end, const uint8_t* x, int64_t stride, int items, const Scales& scales, const Output& out) {
    switch (items) {
        case 1: return few_items<1>(w, row, end, x, stride, scales, out);
        case 2: return few_items<2>(w, row, end, x, stride, scales, out);
        case 3: return few_items<3>(w, row, end, x, stride, scales, out);
        case 4: return few_items<4>(w, row, end, x, stride, scales, out);
        case 5: return few_items<kItems < 5 ? kItems : 5>(w, row, end, x, stride, scales, out);
        default: return few_items<kItems>(w, row, end, x, stride, scales, out);
    }
}

template <int kVectors>
struct Line {
    I v[kVectors];
    void set(const int32_t* from, bool read) {
#pragma GCC unroll 32
        for (int j = 0; j < kVectors; j++) v[j] = read ? I::load(from + j * kLanes32) : I::zero();
    }
    void store(int32_t* to) const {
#pragma GCC unroll 32
        for (int j = 0; j < kVectors; j++) v[j].store(to + j * kLanes32);
    }
    void add_product(const int8_t* weight, const uint8_t* x) {
        const I w = I::broadcast(weight);
#pragma GCC unroll 32
        for (int j = 0; j < kVectors; j++) v[j] = I::dot(v[j], I::load(x + j * 4 * kLanes32), w);
    }
    void add_line(const Line& other) {
#pragma GCC unroll 32
        for (int j = 0; j < kVectors; j++) v[j] = I::add(v[j], other.v[j]);
    }
};

template <int kVectors>
[[gnu::always_inline]] inline void add_both(Line<kVectors>& a, Line<kVectors>& b, const int8_t* weights, const uint8_t* x) {
    const I w = I::broadcast(weights), u = I::broadcast(weights + 4);
#pragma GCC unroll 32
    for (int j = 0; j < kVectors; j++) {
        const I both = I::load(x + j * 4 * kLanes32);
        a.v[j] = I::dot(a.v[j], both, w);
        b.v[j] = I::dot(b.v[j], both, u);
    }
}

// Enough independent sums to keep the multipliers busy, and no more than there are registers.
template <int kGroups, int kUnroll>
void tile_groups(const QuadsView& quads, int64_t pairs, const uint8_t* x_tile, int32_t* sums, bool add_to) {
    constexpr int kVectors = kGroups * 16 / kLanes32;
    constexpr int64_t kStride = kGroups * 64;
    const uint16_t *head = quads.head, *column = quads.column;
    const int8_t* value = quads.value;
    for (; pairs > 0; pairs--, head += 3, sums += 2 * kGroups * 16) {
        Line<kVectors> a[kUnroll], b[kUnroll];
#pragma GCC unroll 32
        for (int u = 0; u < kUnroll; u++) a[u].set(sums, add_to && u == 0), b[u].set(sums + kGroups * 16, add_to && u == 0);
        for (int i = 0; i < 256; i += 64) __builtin_prefetch(value + 512 + i, 0, 3);
        __builtin_prefetch(column + 256, 0, 3);
        const uint16_t* end = column + head[0];
        for (; column + kUnroll <= end; column += kUnroll, value += 8 * kUnroll)
#pragma GCC unroll 32
            for (int u = 0; u < kUnroll; u++) add_both(a[u], b[u], value + 8 * u, x_tile + column[u] * kStride);
        for (; column < end; column++, value += 8) add_both(a[0], b[0], value, x_tile + *column * kStride);
        end = column + head[1];
        for (; column + kUnroll <= end; column += kUnroll, value += 4 * kUnroll)
#pragma GCC unroll 32
            for (int u = 0; u < kUnroll; u++) a[u].add_product(value + 4 * u, x_tile + column[u] * kStride);
        for (; column < end; column++, value += 4) a[0].add_product(value, x_tile + *column * kStride);
        end = column + head[2];
        for (; column + kUnroll <= end; column += kUnroll, value += 4 * kUnroll)
#pragma GCC unroll 32
            for (int u = 0; u < kUnroll; u++) b[u].add_product(value + 4 * u, x_tile + column[u] * kStride);
        for (; column < end; column++, value += 4) b[0].add_product(value, x_tile + *column * kStride);
#pragma GCC unroll 32
        for (int u = 1; u < kUnroll; u++) a[0].add_line(a[u]), b[0].add_line(b[u]);
        a[0].store(sums), b[0].store(sums + kGroups * 16);
    }
}

constexpr int unrolled(int groups) { return groups == 1 ? kUnrolled : groups == 2 && kUnrolled > 1 ? kUnrolled / 2 : 1; }

void tile(const QuadsView& quads, int64_t pairs, const uint8_t* x_tile, int32_t* sums, int groups, bool add_to) {
    switch (groups) {
        case 1: return tile_groups<1, unrolled(1)>(quads, pairs, x_tile, sums, add_to);
        case 2: return tile_groups<2, unrolled(2)>(quads, pairs, x_tile, sums, add_to);
        case 3: return tile_groups<3, unrolled(3)>(quads, pairs, x_tile, sums, add_to);
        case 4: return tile_groups<4, unrolled(4)>(quads, pairs, x_tile, sums, add_to);
        case 5: return tile_groups<5, unrolled(5)>(quads, pairs, x_tile, sums, add_to);
        case 6: return tile_groups<6, unrolled(6)>(quads, pairs, x_tile, sums, add_to);
        case 7: return tile_groups<7, unrolled(7)>(quads, pairs, x_tile, sums, add_to);
        default: return tile_groups<8, 1>(quads, pairs, x_tile, sums, add_to);
    }
}

void scaled(void* sums, int lanes, int64_t row, int64_t end, const Scales& s) {
    for (char* at = static_cast<char*>(sums); row < end; row++) {
        const uint32_t less = uint32_t(s.x_zero) * uint32_t(s.row_sum[row]);
        const float scale = s.x_scale * s.scale[row * s.scale_step];
        for (int i = 0; i < lanes; i += 16, at += 64) {
            uint32_t sum[16];
            float made[16];
            std::memcpy(sum, at, sizeof sum);
            for (int j = 0; j < 16; j++) made[j] = float(int32_t(sum[j] - less)) * scale;
            std::memcpy(at, made, sizeof made);
        }
    }
}

void range(const float* x, int64_t count, float* least, float* most) {
    float low[32] = {}, high[32] = {};
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
        for (int j = 0; j < 32; j++) {
            low[j] = x[i + j] < low[j] ? x[i + j] : low[j];
            high[j] = x[i + j] > high[j] ? x[i + j] : high[j];
        }
    for (; i < count; i++) low[0] = x[i] < low[0] ? x[i] : low[0], high[0] = x[i] > high[0] ? x[i] : high[0];
    for (int j = 1; j < 32; j++) low[0] = low[j] < low[0] ? low[j] : low[0], high[0] = high[j] > high[0] ? high[j] : high[0];
    *least = low[0], *most = high[0];
}

void quantise(const float* x, int64_t count, float scale, int32_t zero, uint8_t* out) {
    const float low = float(-zero), high = float(255 - zero);
    int64_t i = 0;
    auto one = [&](float value) {
        value /= scale;
        value = value > low ? value : low;  // NaN becomes the least
        value = value < high ? value : high;
        return uint8_t(int32_t(__builtin_rintf(value)) + zero);
    };
    for (; i + 64 <= count; i += 64)
        for (int j = 0; j < 64; j++) out[i + j] = one(x[i + j]);
    for (; i < count; i++) out[i] = one(x[i]);
}
