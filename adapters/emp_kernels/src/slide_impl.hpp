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

// Finished sums of a row to where they belong.
template <int kLines>
void land(const F* sums, int64_t r, const Landing& to) {
    const F offset = F::broadcast(to.bias ? to.bias[r] : 0.0f);
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
        for (const Pixels* some = all; some < all + count * bands; some += bands)
            for (int i = 0; i < kParts; i++) {
                F even = F::zero(), odd = F::zero();
                for (int b = 0; b < bands; b++) {
                    const float* p = in + some[b].from + i * kWidth * step;
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
                seen.add(even), even.store(out + some->even + i * kWidth);
                if (kPhases == 2 && some->odd >= 0) other.add(odd), odd.store(out + some->odd + i * kWidth);
            }
    return seen.finite() && other.finite();
}

// The same where a line is pixels side by side of one row.
bool whole_lines(const float* in, int64_t channels, int64_t plane, const Pixels* all, int count, int64_t stride, float* out) {
    Seen seen[4];  // sums that do not wait for each other
    const auto line = [&](Seen& own, const Pixels& one) {
        EMP_UNROLL for (int i = 0; i < kParts; i++) {
            const unsigned chosen = one.chosen >> (i * kWidth) & unsigned((uint64_t(1) << kWidth) - 1);
            const F pixels = F::load_over(in + one.from + i * kWidth, chosen, F::zero());
            own.add(pixels), pixels.store(out + one.even + i * kWidth);
        }
    };
    for (int64_t c = 0; c < channels; c++, in += plane, out += stride) {
        const Pixels *one = all, *end = all + count;
        for (; one + 4 <= end; one += 4) line(seen[0], one[0]), line(seen[1], one[1]), line(seen[2], one[2]), line(seen[3], one[3]);
        for (; one < end; one++) line(seen[0], *one);
    }
    return seen[0].finite() && seen[1].finite() && seen[2].finite() && seen[3].finite();
}

bool lines(const float* in, int64_t channels, int64_t plane, const Pixels* some, int count, int bands, int64_t step, int64_t stride, float* out) {
    if (step == 1 && bands == 1) return whole_lines(in, channels, plane, some, count, stride, out);
    return step == 2 ? lines_of<2>(in, channels, plane, some, count, bands, step, stride, out)
                     : lines_of<1>(in, channels, plane, some, count, bands, step, stride, out);
}
