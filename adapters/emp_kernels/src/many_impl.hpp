// Many items: `tile` and `strip`. Part of kernels_impl.hpp.

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

// Two rows of sums, and what both multiply. Inlined whatever happens, as what follows: sums in memory would cost more than all else. A weight comes
// spread out of memory: a pair leaves loads to spare, where a row alone does not, and to spread it in registers takes a multiplier's turn on Intel.
template <int kVectors>
[[gnu::always_inline]] inline void add_products(Sums<kVectors>& one, const float* left, Sums<kVectors>& two, const float* right, const float* x) {
    const F first = F::broadcast_once(left), second = F::broadcast_once(right);
    EMP_UNROLL for (int j = 0; j < kVectors; j++) {
        const F both = F::load_once(x + kWidth * j);
        one.v[j] = fma(first, both, one.v[j]), two.v[j] = fma(second, both, two.v[j]);
    }
}

// Where four columns of a tile begin.
template <int64_t kStride>
struct FourColumns {
    const float* x;
    uint32_t at;
    FourColumns(const float* x, const uint8_t* column) : x(x) { std::memcpy(&at, column, 4); }
    template <int i>
    const float* line() const {
        return x + (at >> (8 * i) & 255) * kStride;
    }
};

// As many sets of the sums of a pair, for the same reason.
constexpr int sets(int vectors) { return vectors >= 6 ? 1 : vectors >= 3 ? 2 : 4; }

template <int kVectors, int kSets, int64_t kStride>
[[gnu::always_inline]] inline void add_four(Sums<kVectors> (&set)[kSets], const float* value, const FourColumns<kStride>& at) {
    const Four four = Four::load(value);
    set[0].add_product(four.lane<0>(), at.template line<0>());
    set[1 % kSets].add_product(four.lane<1>(), at.template line<1>());
    set[2 % kSets].add_product(four.lane<2>(), at.template line<2>());
    set[3 % kSets].add_product(four.lane<3>(), at.template line<3>());
}

template <int kVectors, int kSets>
[[gnu::always_inline]] inline void begin(Sums<kVectors> (&set)[kSets], const float* y) {
    set[0].load(y);
    EMP_UNROLL for (int s = 1; s < kSets; s++) set[s].clear();
}

template <int kVectors, int kSets>
[[gnu::always_inline]] inline void end(Sums<kVectors> (&set)[kSets], float* y) {
    EMP_UNROLL for (int s = 1; s < kSets; s++) set[0].add_sums(set[s]);
    set[0].store(y);
}

template <int kGroups>
void tile_pairs(const Segment& segment, const float* x_tile, float* sums, const float* next) {
    constexpr int64_t kStride = kGroups * kLanes;
    constexpr int kVectors = kGroups * kLanes / kWidth, kSets = sets(kVectors);
    const uint8_t* column = segment.column;
    const float *value = segment.value, *x = x_tile + segment.base * kStride;
    const int64_t step = next ? 64 : 0;
    if (!next) next = x;
    for (const uint16_t* head = segment.head; head < segment.end; head += 4) {
        float* y = sums + *head * kStride;
        prefetch(next), prefetch(next + 16), prefetch(next + 32), prefetch(next + 48), next += step;
        Sums<kVectors> one[kSets], two[kSets];
        begin(one, y), begin(two, y + kStride);
        prefetch(value + 256), prefetch(value + 272), prefetch(value + 288), prefetch(value + 304), prefetch(column + 256);
        for (int i = head[1]; i > 0; i--, column += 4, value += 8) {
            const FourColumns<kStride> at(x, column);
            add_products(one[0], value + 0, two[0], value + 4, at.template line<0>());
            add_products(one[1 % kSets], value + 1, two[1 % kSets], value + 5, at.template line<1>());
            add_products(one[2 % kSets], value + 2, two[2 % kSets], value + 6, at.template line<2>());
            add_products(one[3 % kSets], value + 3, two[3 % kSets], value + 7, at.template line<3>());
        }
        for (int i = head[2]; i > 0; i--, column += 4, value += 4) add_four(one, value, FourColumns<kStride>(x, column));
        for (int i = head[3]; i > 0; i--, column += 4, value += 4) add_four(two, value, FourColumns<kStride>(x, column));
        end(one, y), end(two, y + kStride);
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

// A little of what is computed later, into the second-level cache.
inline void fetch(Ahead& ahead) {
    for (int i = ahead.each; i > 0; i--, ahead.line += 16) {
        __builtin_prefetch(ahead.line, 0, 2);
        if (--ahead.left == 0) ahead.left = ahead.run, ahead.line += ahead.step - 16 * ahead.run;
    }
}

template <int kGroups>
void strip_groups(const Strip& strip, const int32_t* at, const float* x, float* sums, Ahead& ahead) {
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
            fetch(ahead);
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

void strip(const Strip& strip, const int32_t* at, const float* x, float* sums, int groups, Ahead& ahead) {
    for_count<kMaxGroups>(groups, [&](auto count) { strip_groups<count.value>(strip, at, x, sums, ahead); });
}

template <int kGroups>
void tile_groups(const Segment& segment, const float* x, float* sums, const float* next) {
    if (segment.rest)
        tile_rest<kGroups>(segment, x, sums);
    else if (segment.pairs)
        tile_pairs<kGroups>(segment, x, sums, next);
    else
        tile_units<kGroups>(segment, x, sums, next);
}

void tile(const Segment& segment, const float* x, float* sums, int groups, const float* next) {
    for_count<kMaxGroups>(groups, [&](auto count) { tile_groups<count.value>(segment, x, sums, next); });
}
