// Convolutions whose sums slide. Part of kernels_impl.hpp.

constexpr int kParts = kLanes / kWidth;  // registers of a line

// The same as below, by way of memory, where what becomes of sums is more than fits between registers.
template <int kLines>
[[gnu::noinline]] void land_bent(const F* sums, int64_t r, F offset, const float* added, float* y, const Landing& to) {
    alignas(64) float line[kLines * kLanes];
    for (int b = 0; b < to.bands; b++) {
        for (int j = 0; j < kLines * kParts; j++) {
            const Landing::Line& at = to.line[b][j / kParts];
            const unsigned lanes = at.lanes >> (j % kParts * kWidth) & unsigned((uint64_t(1) << kWidth) - 1);
            F value = add(sums[j], offset);
            if (added) value = add(value, F::load_over(added + at.at + j % kParts * kWidth, lanes, F::zero()));
            value.store(line + j * kWidth);
        }
        bend(line, kLines * kLanes, to.ending, r);
        for (int j = 0; j < kLines * kParts; j++) {
            const Landing::Line& at = to.line[b][j / kParts];
            const unsigned lanes = at.lanes >> (j % kParts * kWidth) & unsigned((uint64_t(1) << kWidth) - 1);
            F::load(line + j * kWidth).store_over(y + at.at + j % kParts * kWidth, lanes);
        }
    }
}

// The greatest of lines below each other, and what the tile below needs of them.
template <int kLines>
[[gnu::noinline]] void land_pooled(const F* sums, int64_t r, F offset, const Landing& to) {
    const PooledLines& pooled = *to.pooled;
    alignas(64) float lines[(PooledLines::kMostKept + kLines) * kLanes];
    const int kept = pooled.keep * kLanes;
    float *own = lines + kept, *keep = to.kept + r * kept, *y = to.y + r * to.stride;
    for (int i = 0; i < kept; i += kWidth) F::load(keep + i).store(lines + i);
    const bool bent = to.ending.activation > Activation::relu;
    EMP_UNROLL for (int j = 0; j < kLines * kParts; j++) {
        const F value = add(sums[j], offset);
        (bent ? value : activate(value, to.ending.activation)).store(own + j * kWidth);
    }
    if (bent) bend(own, kLines * kLanes, to.ending, r);
    for (const PooledLines::Line* one = pooled.line; one < pooled.line + pooled.count; one++)
        EMP_UNROLL for (int i = 0; i < kParts; i++) {
            const float* from = lines + one->first * kLanes + i * kWidth;
            F greatest = F::load(from);
            if (one->lines == 3)  // most pools
                greatest = maximum(maximum(greatest, F::load(from + kLanes)), F::load(from + 2 * kLanes));
            else
                for (int j = 1; j < one->lines; j++) greatest = maximum(greatest, F::load(from + j * kLanes));
            const unsigned lanes = pooled.lanes >> (i * kWidth) & unsigned((uint64_t(1) << kWidth) - 1);
            greatest.store_over(y + one->at + i * kWidth, lanes);
        }
    for (int i = 0; i < kept; i += kWidth) F::load(lines + kLines * kLanes + i).store(keep + i);
}

// Finished sums of a row to where they belong.
template <int kLines>
void land(const F* sums, int64_t r, const Landing& to) {
    const F offset = F::broadcast(to.bias ? to.bias[r] : 0.0f);
    if (to.pooled) return land_pooled<kLines>(sums, r, offset, to);
    float* y = to.y + r * to.stride;
    const float* added = to.added ? to.added + r * to.stride : nullptr;
    if (to.ending.activation > Activation::relu) return land_bent<kLines>(sums, r, offset, added, y, to);
    for (int b = 0; b < to.bands; b++)
        EMP_UNROLL for (int j = 0; j < kLines; j++) {
            const Landing::Line& line = to.line[b][j];
            EMP_UNROLL for (int i = 0; i < kParts; i++) {
                const unsigned lanes = line.lanes >> (i * kWidth) & unsigned((uint64_t(1) << kWidth) - 1);
                F value = add(sums[j * kParts + i], offset);
                if (added) value = add(value, F::load_over(added + line.at + i * kWidth, lanes, F::zero()));
                activate(value, to.ending.activation).store_over(y + line.at + i * kWidth, lanes);
            }
        }
}

// The sums of a row in a block: with those of the blocks before, and to where they belong once there are no more.
template <int kLines>
void settle(Sums<kLines * kParts>& own, int64_t r, float* sums, bool first, const Landing* landing) {
    float* row = sums + r * kLines * kLanes;
    if (!first) EMP_UNROLL for (int j = 0; j < kLines * kParts; j++) own.v[j] = add(own.v[j], F::load(row + kWidth * j));
    landing ? land<kLines>(own.v, r, *landing) : own.store(row);
}

// Where four places begin.
struct FourPlaces {
    const char* x;
    uint64_t at;
    FourPlaces(const float* input, const uint16_t* place) : x(reinterpret_cast<const char*>(input)) { std::memcpy(&at, place, 8); }
    template <int i>
    const float* line() const {
        return reinterpret_cast<const float*>(x + 8 * (at >> (16 * i) & 65535));
    }
};

// Seven sums or more at once keep the multipliers busy; more than two sets of them cost more to join than they bring.
template <int kLines, int kBand>
void slide_rows(const Sweep& sweep, const float* x, float* sums, bool first, const Landing* landing) {
    constexpr int kVectors = kLines * kParts, kSets = kVectors >= 7 ? 1 : kVectors >= 4 ? 2 : 4;
    const uint16_t *fours = sweep.fours, *place = sweep.place;
    const float* value = sweep.value;
    for (int64_t i = 0; i < sweep.rows; i++) {
        const int64_t r = *fours++;
        Sums<kVectors> set[kSets];
        EMP_UNROLL for (int s = 0; s < kSets; s++) set[s].clear();
        prefetch(value + 512), prefetch(place + 512);
        for (int slide = sweep.slides;;) {
            for (int i = *fours++; i > 0; i--, place += 4, value += 4) {
                const Four four = Four::load(value);
                const FourPlaces at(x, place);
                set[0].add_product(four.lane<0>(), at.line<0>());
                set[1 % kSets].add_product(four.lane<1>(), at.line<1>());
                set[2 % kSets].add_product(four.lane<2>(), at.line<2>());
                set[3 % kSets].add_product(four.lane<3>(), at.line<3>());
            }
            if (--slide == 0) break;
            EMP_UNROLL for (int s = 1; s < kSets; s++) set[0].add_sums(set[s]), set[s].clear();
            EMP_UNROLL for (int j = 0; j < kLines; j++) move_down<kBand>(set[0].v + j * kParts);
        }
        EMP_UNROLL for (int s = 1; s < kSets; s++) set[0].add_sums(set[s]);
        settle<kLines>(set[0], r, sums, first, landing);
    }
}

// Two rows at once, so that what both multiply is loaded once.
template <int kLines, int kBand>
void slide_pairs(const Sweep& sweep, const float* x, float* sums, bool first, const Landing* landing) {
    constexpr int kVectors = kLines * kParts;
    const uint16_t *fours = sweep.fours, *place = sweep.place;
    const float* value = sweep.value;
    for (int64_t i = 0; i < sweep.rows; i += 2) {
        const int64_t r = *fours++;
        Sums<kVectors> one, two;
        one.clear(), two.clear();
        for (int slide = sweep.slides;;) {
            prefetch(value + 512), prefetch(place + 512);
            for (int i = *fours++; i > 0; i--, place += 4, value += 8) {
                const FourPlaces at(x, place);
                add_products(one, value + 0, two, value + 4, at.line<0>());
                add_products(one, value + 1, two, value + 5, at.line<1>());
                add_products(one, value + 2, two, value + 6, at.line<2>());
                add_products(one, value + 3, two, value + 7, at.line<3>());
            }
            const auto alone = [&](Sums<kVectors>& sums) {
                for (int i = *fours++; i > 0; i--, place += 4, value += 4) {
                    const Four four = Four::load(value);
                    const FourPlaces at(x, place);
                    sums.add_product(four.lane<0>(), at.line<0>()), sums.add_product(four.lane<1>(), at.line<1>());
                    sums.add_product(four.lane<2>(), at.line<2>()), sums.add_product(four.lane<3>(), at.line<3>());
                }
            };
            alone(one), alone(two);
            if (--slide == 0) break;
            EMP_UNROLL for (int j = 0; j < kLines; j++) move_down<kBand>(one.v + j * kParts), move_down<kBand>(two.v + j * kParts);
        }
        settle<kLines>(one, r, sums, first, landing);
        if (r + 1 < sweep.rows) settle<kLines>(two, r + 1, sums, first, landing);
    }
}

template <int kLines, int kBand>
void slide_lines(const Sweep& sweep, const float* x, float* sums, bool first, const Landing* landing) {
    sweep.pairs ? slide_pairs<kLines, kBand>(sweep, x, sums, first, landing) : slide_rows<kLines, kBand>(sweep, x, sums, first, landing);
}

template <int kBand>
void slide_band(const Sweep& sweep, const float* x, float* sums, bool first, int lines, const Landing* landing) {
    for_count<kMaxGroups>(lines, [&](auto count) { slide_lines<count.value, kBand>(sweep, x, sums, first, landing); });
}

void slide(const Sweep& sweep, const float* x, float* sums, bool first, int lines, int band, const Landing* landing) {
    band == 8 ? slide_band<8>(sweep, x, sums, first, lines, landing) : slide_band<16>(sweep, x, sums, first, lines, landing);
}

// A line from pixels that lie `step` apart.
inline F spread(const float* p, unsigned chosen, int64_t step) {
    alignas(64) float apart[kWidth];
    for (int i = 0; i < kWidth; i++) apart[i] = chosen >> i & 1 ? p[i * step] : 0.0f;
    return F::load(apart);
}

template <int kPhases>
bool lines_of(const float* in, int64_t channels, int64_t plane, const Pixels* all, int count, int bands, int64_t step, int64_t stride, float* out) {
    constexpr unsigned kAll = unsigned((uint64_t(1) << kWidth * kPhases) - 1);
    Seen seen, other;
    for (int64_t c = 0; c < channels; c++, in += plane, out += stride)
        for (const Pixels* some = all; some < all + count; some += bands)
            for (int64_t r = 0; r < some->rows; r++)
                for (int i = 0; i < kParts; i++) {
                    F even = F::zero(), odd = F::zero();
                    for (int b = 0; b < bands; b++) {
                        const float* p = in + some[b].from + some[b].down * r + i * kWidth * step;
                        const unsigned chosen = some[b].chosen >> (i * kWidth * kPhases) & kAll;
                        if (kPhases == 2) {
                            F one, two;
                            F::load_apart(p, chosen, one, two);
                            even = b ? add(even, one) : one, odd = b ? add(odd, two) : two;
                        } else if (step == 1) {
                            even = F::load_over(p, chosen, even);
                        } else {
                            even = add(even, spread(p, chosen, step));
                        }
                    }
                    float* line = out + r * kLanes + i * kWidth;
                    seen.add(even), even.store(line + some->even);
                    if (kPhases == 2 && some->odd >= 0) other.add(odd), odd.store(line + some->odd);
                }
    return seen.finite() && other.finite();
}

// The same where a line is pixels of one row, side by side or, of two phases, in turn.
template <int kPhases>
bool whole_lines(const float* in, int64_t channels, int64_t plane, const Pixels* all, int count, int64_t stride, float* out) {
    constexpr unsigned kAll = unsigned((uint64_t(1) << kWidth * kPhases) - 1);
    Seen seen[4];  // sums that do not wait for each other
    for (int64_t c = 0; c < channels; c++, in += plane, out += stride)
        for (const Pixels* some = all; some < all + count; some++) {
            const float* p = in + some->from;
            float* line = out + some->even;
            const int64_t apart = some->odd - some->even;
            const bool both = kPhases == 2 && some->odd >= 0;
            const auto one = [&](Seen& own, Seen& other) {
                EMP_UNROLL for (int i = 0; i < kParts; i++) {
                    const unsigned chosen = some->chosen >> (i * kWidth * kPhases) & kAll;
                    if constexpr (kPhases == 2) {
                        F even, odd;
                        F::load_apart(p + 2 * i * kWidth, chosen, even, odd);
                        own.add(even), even.store(line + i * kWidth);
                        if (both) other.add(odd), odd.store(line + apart + i * kWidth);
                    } else {
                        const F pixels = F::load_over(p + i * kWidth, chosen, F::zero());
                        own.add(pixels), pixels.store(line + i * kWidth);
                    }
                }
                p += some->down, line += kLanes;
            };
            int64_t r = some->rows;
            for (; r >= 4; r -= 4) one(seen[0], seen[1]), one(seen[2], seen[3]), one(seen[1], seen[0]), one(seen[3], seen[2]);
            for (; r > 0; r--) one(seen[0], seen[1]);
        }
    return seen[0].finite() && seen[1].finite() && seen[2].finite() && seen[3].finite();
}

bool lines(const float* in, int64_t channels, int64_t plane, const Pixels* some, int count, int bands, int64_t step, int64_t stride, float* out) {
    if (bands == 1 && step <= 2)
        return step == 1 ? whole_lines<1>(in, channels, plane, some, count, stride, out) : whole_lines<2>(in, channels, plane, some, count, stride, out);
    return step == 2 ? lines_of<2>(in, channels, plane, some, count, bands, step, stride, out)
                     : lines_of<1>(in, channels, plane, some, count, bands, step, stride, out);
}
