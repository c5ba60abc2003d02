// Images: laid out with padding, and gathered for a tile. Part of kernels_impl.hpp.

// `count` pixels of a row, every kStep-th.
template <int kStep>
F pixels(const float* in, int64_t step, int count) {
    if (kStep == 2) return F::load_even(in, count);
    alignas(64) float apart[kWidth] = {};
    for (int j = 0; j < count; j++) apart[j] = in[j * step];
    return F::load(apart);
}

// A few zeros; compilers make a call of a loop.
inline void zero(float* out, int64_t count) {
    for (; count > 0; count -= kWidth, out += kWidth) F::zero().store_part(out, int(count < kWidth ? count : kWidth));
}

// A register of all rows, then the one before it: what the last one writes behind its row, into padding or the next row, is written again.
template <int kStep>
bool lay_step(const float* in, int64_t height, int64_t width, int64_t in_stride, int64_t step, int64_t left, int64_t stride, float* out) {
    Seen even, odd;
    for (int64_t at = width > 0 ? (width - 1) / kWidth * kWidth : -1; at >= 0; at -= kWidth) {
        const int count = int(width - at < kWidth ? width - at : kWidth);
        auto row = [&](Seen& seen, int64_t y) {
            const F some = pixels<kStep>(in + y * in_stride + at * step, step, count);
            seen.add(some);
            float* to = out + y * stride + left + at;
            const bool room = (height - y) * stride - left - at >= kWidth;
            room ? some.store(to) : some.store_part(to, count);
        };
        int64_t y = 0;
        for (; y + 2 <= height; y += 2) row(even, y), row(odd, y + 1);
        if (y < height) row(even, y);
    }
    for (int64_t y = 0; y < height; y++, out += stride) zero(out, left), zero(out + left + width, stride - left - width);
    return even.finite() && odd.finite();
}

// Every pixel of a row. A register of all rows follows the next, the last one first: what it writes too much, the first ones write again.
bool lay_all(const float* in, int64_t height, int64_t width, int64_t in_stride, int64_t left, int64_t stride, float* out) {
    Seen even, odd;
    for (int64_t at = (stride - 1) / kWidth * kWidth; at >= 0; at -= kWidth) {
        const auto until = [at](int64_t place) { return place <= at ? 0 : place >= at + kWidth ? kWidth : int(place - at); };
        const unsigned lanes = ((1u << until(left + width)) - 1) & ~((1u << until(left)) - 1);
        const bool full = lanes == (1u << kWidth) - 1;
        const float* from = in + (at - left);
        auto row = [&](Seen& seen, int64_t y) {
            const F pixels = full ? F::load(from + y * in_stride) : F::load_over(from + y * in_stride, lanes, F::zero());
            seen.add(pixels);
            float* to = out + y * stride + at;
            const int64_t room = (height - y) * stride - at;
            room >= kWidth ? pixels.store(to) : pixels.store_part(to, int(room));
        };
        int64_t y = 0;
        for (; y + 2 <= height; y += 2) row(even, y), row(odd, y + 1);
        if (y < height) row(even, y);
    }
    return even.finite() && odd.finite();
}

bool lay(const float* in, int64_t height, int64_t width, int64_t in_stride, int64_t step, int64_t left, int64_t stride, float* out) {
    if (step == 1) return lay_all(in, height, width, in_stride, left, stride, out);
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

void pool_down(const float* in, int64_t rows, int64_t width, float* y) {
    for (int64_t c = 0; c < width; c += kWidth) {
        const int count = int(width - c < kWidth ? width - c : kWidth);
        const auto of = [&](int64_t r) { return count == kWidth ? F::load(in + r * width + c) : F::load_part(in + r * width + c, count); };
        F greatest = of(0);
        for (int64_t r = 1; r < rows; r++) greatest = maximum(greatest, of(r));
        count == kWidth ? greatest.store(y + c) : greatest.store_part(y + c, count);
    }
}

// kStep as for `pixels`; 1 for neighbours.
template <int kStep>
void pool_steps(const float* line, int64_t taps, int64_t step, int64_t out, float* y) {
    for (int64_t i = 0; i < out; i += kWidth) {
        const int count = int(out - i < kWidth ? out - i : kWidth);
        const auto of = [&](int64_t tap) {
            const float* p = line + i * step + tap;
            if constexpr (kStep == 1)
                return F::load(p);
            else
                return pixels<kStep>(p, step, kWidth);  // there is room behind the line
        };
        F greatest;
        int64_t tap = 1;
        if (kStep == 2 && taps > 1) {
            F odd;
            F::load_apart(line + i * step, unsigned((uint64_t(1) << 2 * kWidth) - 1), greatest, odd);
            greatest = maximum(greatest, odd), tap = 2;
        } else {
            greatest = of(0);
        }
        for (; tap < taps; tap++) greatest = maximum(greatest, of(tap));
        greatest.store_part(y + i, count);
    }
}

void pool_across(const float* line, int64_t taps, int64_t step, int64_t out, float* y) {
    if (step == 1) return pool_steps<1>(line, taps, step, out, y);
    if (step == 2) return pool_steps<2>(line, taps, step, out, y);
    return pool_steps<0>(line, taps, step, out, y);
}
