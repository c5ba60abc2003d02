// The kernels, written once over vector types that each instruction set brings:
//   D: kStep floats; zero, load, fma, add, sum, decode(as many bits of a mask, packed values)
//   Q: 4 floats; zero, load, fma, add, sum, gather(x, four columns of 16 bits)
//   F:  as many floats as a register holds (kWidth, which divides 16); zero, load, store, broadcast, fma, add, relu
//   Four: 4 floats; load, lane<i>() that is one of them in all places of an F
// and transpose8, transpose16.
// Included by one file per instruction set, inside a namespace of its own, so that no code of one leaks into another.

#define EMP_UNROLL _Pragma("GCC unroll 16")  // arrays of registers must not be indexed at run time

constexpr int kAhead = 2048;  // floats: at 35 GB/s what is fetched now arrives 4 KiB later, and rows end

static inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

inline float activate(float value, Activation activation) {
    return activation == Activation::relu ? (value < 0.0f ? 0.0f : value) : value;  // NaN stays NaN
}

inline F activate(F value, Activation activation) { return activation == Activation::relu ? relu(value) : value; }

// ---- few items

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

// ---- many items

template <int kVectors>
struct Sums {
    F v[kVectors];
    void clear() {
        EMP_UNROLL for (int j = 0; j < kVectors; j++) v[j] = F::zero();
    }
    void load(const float* from) {
        EMP_UNROLL for (int j = 0; j < kVectors; j++) v[j] = F::load(from + kWidth * j);
    }
    void store(float* to) const {
        EMP_UNROLL for (int j = 0; j < kVectors; j++) v[j].store(to + kWidth * j);
    }
    void add_product(F weight, const float* x) {
        EMP_UNROLL for (int j = 0; j < kVectors; j++) v[j] = fma(weight, F::load(x + kWidth * j), v[j]);
    }
    void add_sums(const Sums& other) {
        EMP_UNROLL for (int j = 0; j < kVectors; j++) v[j] = add(v[j], other.v[j]);
    }
};

// Enough independent sums to keep the multipliers busy (8), and no more than there are registers.
template <int kGroups>
void tile_units(const Segment& segment, const float* x_tile, float* sums, const float* next) {
    constexpr int64_t kStride = kGroups * kLanes;
    constexpr int kVectors = kGroups * kLanes / kWidth, kSets = kVectors >= 6 ? 1 : kVectors >= 3 ? 2 : kVectors == 2 ? 4 : 8;
    const uint8_t* column = segment.column;
    const float *value = segment.value, *x = x_tile + segment.base * kStride;
    const int64_t step = next ? 32 : 0;  // two lines for each row: all of the next block for a chunk of 256
    if (!next) next = x;
    for (const uint16_t* head = segment.head; head < segment.end;) {
        const int units = *head++;
        for (const uint16_t* members = head + 1 + *head; ++head < members;) {
            float* y = sums + *head * kStride;
            prefetch(next), prefetch(next + 16), next += step;
            Sums<kVectors> set[kSets];
            set[0].load(y);
            EMP_UNROLL for (int s = 1; s < kSets; s++) set[s].clear();
            prefetch(value + 256), prefetch(value + 272), prefetch(column + 256);
            for (int i = 0; i < units; i++, column += kUnit, value += kUnit) {
                uint64_t at;
                std::memcpy(&at, column, 8);
                const Four first = Four::load(value), second = Four::load(value + 4);
                set[0].add_product(first.lane<0>(), x + (at & 255) * kStride);
                set[1 % kSets].add_product(first.lane<1>(), x + (at >> 8 & 255) * kStride);
                set[2 % kSets].add_product(first.lane<2>(), x + (at >> 16 & 255) * kStride);
                set[3 % kSets].add_product(first.lane<3>(), x + (at >> 24 & 255) * kStride);
                set[4 % kSets].add_product(second.lane<0>(), x + (at >> 32 & 255) * kStride);
                set[5 % kSets].add_product(second.lane<1>(), x + (at >> 40 & 255) * kStride);
                set[6 % kSets].add_product(second.lane<2>(), x + (at >> 48 & 255) * kStride);
                set[7 % kSets].add_product(second.lane<3>(), x + (at >> 56) * kStride);
            }
            EMP_UNROLL for (int s = 1; s < kSets; s++) set[0].add_sums(set[s]);
            set[0].store(y);
        }
    }
}

template <int kGroups>
void tile_rest(const Segment& segment, const float* x, float* sums) {
    constexpr int64_t kStride = kGroups * kLanes;
    const uint16_t* column = segment.rest;
    const float* value = segment.value;
    for (const uint16_t* head = segment.head; head < segment.end;) {
        const int count = *head++;
        for (const uint16_t* members = head + 1 + *head; ++head < members;) {
            float* y = sums + *head * kStride;
            Sums<kGroups * kLanes / kWidth> sum;
            sum.load(y);
            for (int i = 0; i < count; i++) sum.add_product(F::broadcast(*value++), x + *column++ * kStride);
            sum.store(y);
        }
    }
}

template <int kGroups>
void strip_groups(const Strip& strip, const int32_t* at, const float* x, float* sums) {
    constexpr int64_t kStride = kGroups * kLanes;
    constexpr int kVectors = kGroups * kLanes / kWidth, kSets = kVectors >= 6 ? 1 : kVectors >= 3 ? 2 : kVectors == 2 ? 4 : 8;
    const float* value = strip.value;
    for (const uint16_t* head = strip.head; head < strip.end;) {
        const int count = *head++;
        for (const uint16_t* members = head + 1 + *head; ++head < members;) {
            float* y = sums + *head * kStride;
            Sums<kVectors> set[kSets];
            set[0].load(y);
            EMP_UNROLL for (int s = 1; s < kSets; s++) set[s].clear();
            prefetch(value + 256), prefetch(at + 256);
            int i = 0;
            for (; i + kUnit <= count; i += kUnit, at += kUnit, value += kUnit) {
                const Four first = Four::load(value), second = Four::load(value + 4);
                set[0].add_product(first.lane<0>(), x + at[0]);
                set[1 % kSets].add_product(first.lane<1>(), x + at[1]);
                set[2 % kSets].add_product(first.lane<2>(), x + at[2]);
                set[3 % kSets].add_product(first.lane<3>(), x + at[3]);
                set[4 % kSets].add_product(second.lane<0>(), x + at[4]);
                set[5 % kSets].add_product(second.lane<1>(), x + at[5]);
                set[6 % kSets].add_product(second.lane<2>(), x + at[6]);
                set[7 % kSets].add_product(second.lane<3>(), x + at[7]);
            }
            for (; i < count; i++) set[0].add_product(F::broadcast(*value++), x + *at++);
            EMP_UNROLL for (int s = 1; s < kSets; s++) set[0].add_sums(set[s]);
            set[0].store(y);
        }
    }
}

void strip(const Strip& strip, const int32_t* at, const float* x, float* sums, int groups) {
    switch (groups) {
        case 1: return strip_groups<1>(strip, at, x, sums);
        case 2: return strip_groups<2>(strip, at, x, sums);
        case 3: return strip_groups<3>(strip, at, x, sums);
        case 4: return strip_groups<4>(strip, at, x, sums);
        case 5: return strip_groups<5>(strip, at, x, sums);
        case 6: return strip_groups<6>(strip, at, x, sums);
        case 7: return strip_groups<7>(strip, at, x, sums);
        default: return strip_groups<8>(strip, at, x, sums);
    }
}

template <int kGroups>
void tile_groups(const Segment& segment, const float* x, float* sums, const float* next) {
    if (segment.rest)
        tile_rest<kGroups>(segment, x, sums);
    else
        tile_units<kGroups>(segment, x, sums, next);
}

void tile(const Segment& segment, const float* x, float* sums, int groups, const float* next) {
    switch (groups) {
        case 1: return tile_groups<1>(segment, x, sums, next);
        case 2: return tile_groups<2>(segment, x, sums, next);
        case 3: return tile_groups<3>(segment, x, sums, next);
        case 4: return tile_groups<4>(segment, x, sums, next);
        case 5: return tile_groups<5>(segment, x, sums, next);
        case 6: return tile_groups<6>(segment, x, sums, next);
        case 7: return tile_groups<7>(segment, x, sums, next);
        default: return tile_groups<8>(segment, x, sums, next);
    }
}

// ---- between items in rows and items in lanes

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

void from_lanes(const float* tile, int lanes, int items, int64_t row, int64_t end, const Output& out) {
    int i = 0;
    for (; i + 16 <= items; i += 16) {
        int64_t r = row;
        for (; r + 16 <= end; r += 16) {
            alignas(64) float block[256];
            transpose16(tile + (r - row) * lanes + i, lanes, block, 16);
            for (int j = 0; j < 16; j++)
                for (int k = 0; k < 16; k += kWidth) {
                    F value = F::load(block + 16 * j + k);
                    if (out.bias) value = add(value, F::load(out.bias + r + k));
                    activate(value, out.activation).store(out.y + (i + j) * out.item_stride + r + k);
                }
        }
        for (; r < end; r++)
            for (int j = 0; j < 16; j++)
                out.y[(i + j) * out.item_stride + r] =
                    activate(tile[(r - row) * lanes + i + j] + (out.bias ? out.bias[r] : 0.0f), out.activation);
    }
    for (; i < items; i++)
        for (int64_t r = row; r < end; r++)
            out.y[i * out.item_stride + r] = activate(tile[(r - row) * lanes + i] + (out.bias ? out.bias[r] : 0.0f), out.activation);
}

void finish(const float* tile, int lanes, int64_t rows, int64_t count, const float* bias, int64_t y_stride,
            Activation activation, float* y) {
    for (int64_t r = 0; r < rows; r++, tile += lanes, y += y_stride) {
        const float b = bias ? bias[r] : 0.0f;
        const F offset = F::broadcast(b);
        int64_t i = 0;
        for (; i + kWidth <= count; i += kWidth) {
            F value = add(F::load(tile + i), offset);
            activate(value, activation).store(y + i);
        }
        for (; i < count; i++) y[i] = activate(tile[i] + b, activation);
    }
}

// ---- images

// `count` pixels of a row, every kStep-th.
template <int kStep>
F pixels(const float* in, int64_t step, int count) {
    if (kStep == 1) return count == kWidth ? F::load(in) : F::load_part(in, count);
    if (kStep == 2) return F::load_even(in, count);
    alignas(64) float apart[kWidth] = {};
    for (int j = 0; j < count; j++) apart[j] = in[j * step];
    return F::load(apart);
}

template <int kStep>
bool lay_step(const float* in, int64_t height, int64_t width, int64_t in_stride, int64_t step, int64_t left, int64_t stride, float* out) {
    Seen seen, also, last;
    for (int64_t y = 0; y < height; y++, in += in_stride, out += stride) {
        for (int64_t i = 0; i < left; i++) out[i] = 0.0f;
        float* to = out + left;
        int64_t i = 0;
        for (; i + 2 * kWidth <= width; i += 2 * kWidth) {
            const F one = pixels<kStep>(in + i * step, step, kWidth), two = pixels<kStep>(in + (i + kWidth) * step, step, kWidth);
            seen.add(one), also.add(two);
            one.store(to + i), two.store(to + i + kWidth);
        }
        if (i + kWidth <= width) {
            const F one = pixels<kStep>(in + i * step, step, kWidth);
            last.add(one), one.store(to + i);
            i += kWidth;
        }
        if (i < width) {
            const F one = pixels<kStep>(in + i * step, step, int(width - i));
            also.add(one), one.store_part(to + i, int(width - i));
        }
        for (i = left + width; i < stride; i++) out[i] = 0.0f;
    }
    return seen.finite() && also.finite() && last.finite();
}

bool lay(const float* in, int64_t height, int64_t width, int64_t in_stride, int64_t step, int64_t left, int64_t stride, float* out) {
    if (step == 1) return lay_step<1>(in, height, width, in_stride, 1, left, stride, out);
    if (step == 2) return lay_step<2>(in, height, width, in_stride, 2, left, stride, out);
    return lay_step<0>(in, height, width, in_stride, step, left, stride, out);
}

// What one register of a tile takes from one piece: p[from + lane] for the lanes chosen.
struct Move {
    int64_t from;
    unsigned chosen;
};

// The same register of each column, so that where it comes from is looked up once.
template <int kMoves>
void fill_register(const float* in, const int64_t* offset, int64_t columns, const Move* move, int moves, int64_t lanes, float* out) {
    for (int64_t c = 0; c < columns; c++, out += lanes) {
        const float* from = in + offset[c];
        F all = kMoves ? F::zero() : F::load(from + move->from);
        EMP_UNROLL for (int m = 0; m < kMoves; m++) all = F::load_over(from + move[m].from, move[m].chosen, all);
        for (int m = kMoves; kMoves == 3 && m < moves; m++) all = F::load_over(from + move[m].from, move[m].chosen, all);
        all.store(out);
    }
}

void fill(const float* in, const int64_t* offset, int64_t columns, const Piece* piece, int pieces, int64_t lanes, float* out) {
    Move move[kWidth];
    int moves = 0, to = 0;
    for (int p = 0; p < pieces; p++)
        for (int64_t i = 0; i < piece[p].count;) {
            const int lane = to % kWidth, n = int(kWidth - lane < piece[p].count - i ? kWidth - lane : piece[p].count - i);
            move[moves++] = {piece[p].from + i - lane, ((1u << n) - 1) << lane};
            i += n, to += n;
            if (to % kWidth && (p + 1 < pieces || i < piece[p].count)) continue;
            float* first = out + (to - 1) / kWidth * kWidth;
            if (n == kWidth)
                fill_register<0>(in, offset, columns, move, moves, lanes, first);
            else if (moves == 1)
                fill_register<1>(in, offset, columns, move, moves, lanes, first);
            else if (moves == 2)
                fill_register<2>(in, offset, columns, move, moves, lanes, first);
            else
                fill_register<3>(in, offset, columns, move, moves, lanes, first);
            moves = 0;
        }
}
