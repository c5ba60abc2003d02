// Convolutions of 3 × 3 taps by Winograd's F(2 × 2, 3 × 3): of each channel 16 products where 36 would be. Part of kernels_impl.hpp.
//
// y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A for a tile of 2 × 2 outputs, of 4 × 4 pixels d and 3 × 3 taps g, with
//   Bᵀ = 1  0 -1  0     G = 1  0  0      Aᵀ = 1 1/2  1/2 0
//        0  1  1  0         1  1  1           0 1/2 -1/2 1
//        0 -1  1  0         1 -1  1
//        0 -1  0  1         0  0  1
// Each output is made of the nine pixels that it reads, and of no others: what is not finite goes no further than it should.

constexpr int kMostTiles = kWidth == 16 ? 14 : 6, kTileRoom = kWidth == 16 ? 16 : 8;
constexpr int kAtOnce = kWidth == 16 ? kWinogradRows : kWinogradRows / 2;  // outputs whose sums fit the registers

// G of three, in steps of `kStep`.
template <int kStep>
[[gnu::always_inline]] inline void spread_taps(const F* g, F* out) {
    const F outer = add(g[0], g[2 * kStep]);
    out[0] = g[0], out[kStep] = add(outer, g[kStep]), out[2 * kStep] = subtract(outer, g[kStep]), out[3 * kStep] = g[2 * kStep];
}

void winograd_weights(const uint32_t* mask, const float* value, int64_t channels, float* out) {
    const int64_t place = winograd_place(channels * kWinogradRows);
    for (int64_t c = 0; c < channels; c++, mask += 9, out += kWinogradRows) {
        const float* at[9];
        EMP_UNROLL for (int t = 0; t < 9; t++) {
            at[t] = value, value += count_bits(mask[t]);
            prefetch(at[t] + kAhead), prefetch(at[t] + kAhead + 16);
        }
        for (int i = 0; i < kWinogradRows; i += kWidth) {
            F g[9], down[12], made[16];
            EMP_UNROLL for (int t = 0; t < 9; t++) {
                const uint32_t part = mask[t] >> i & ((1u << kWidth) - 1);
                g[t] = F::decode(part, at[t]);
                at[t] += count_bits(part);
            }
            EMP_UNROLL for (int x = 0; x < 3; x++) spread_taps<3>(g + x, down + x);
            EMP_UNROLL for (int y = 0; y < 4; y++) spread_taps<1>(down + 3 * y, made + 4 * y);
            EMP_UNROLL for (int p = 0; p < 16; p++) made[p].store(out + p * place + i);
        }
    }
}

// Up to kWidth columns of tiles.
void tile_columns(const float* in, int64_t height, int64_t width, const TileColumns& t, int64_t left, int count, int64_t place, float* out) {
    const auto below = [](int64_t bits) { return bits < 1 ? 0 : bits > 63 ? ~uint64_t(0) : (uint64_t(1) << bits) - 1; };
    const uint64_t inside = below(width - left) & ~below(-left);  // of the pixels from `left` on: those of the image
    const uint64_t all = (uint64_t(1) << 2 * kWidth) - 1;
    F row[16];  // four rows of pixels, times B
    const auto read = [&](int64_t y, F* into) {
        if (y < 0 || y >= height) {
            EMP_UNROLL for (int i = 0; i < 4; i++) into[i] = F::zero();
            return;
        }
        F a, b, c, d;
        F::load_apart(in + y * width + left, uint32_t(inside & all), a, b);
        F::load_apart(in + y * width + left + 2, uint32_t(inside >> 2 & all), c, d);
        into[0] = subtract(a, c), into[1] = add(b, c), into[2] = subtract(c, b), into[3] = subtract(d, b);
    };
    read(t.top, row + 8), read(t.top + 1, row + 12);
    int64_t line = t.begun;
    for (int64_t r = 0; r < t.rows; r++, line++) {
        EMP_UNROLL for (int i = 0; i < 8; i++) row[i] = row[8 + i];
        read(t.top + 2 * r + 2, row + 8), read(t.top + 2 * r + 3, row + 12);
        if (line == t.high) line = 0, out += t.bundle;
        float* tile = out + line * t.count;
        EMP_UNROLL for (int i = 0; i < 4; i++) {
            subtract(row[i], row[8 + i]).store_part(tile + i * place, count);
            add(row[4 + i], row[8 + i]).store_part(tile + (4 + i) * place, count);
            subtract(row[8 + i], row[4 + i]).store_part(tile + (8 + i) * place, count);
            subtract(row[12 + i], row[4 + i]).store_part(tile + (12 + i) * place, count);
        }
    }
}

void winograd_pixels(const float* in, int64_t height, int64_t width, const TileColumns& t, int64_t channels, float* out) {
    const int64_t place = winograd_place(channels * kTileRoom);
    for (int i = 0; i < t.count; i += kWidth)
        tile_columns(in, height, width, t, t.left + 2 * i, t.count - i < kWidth ? t.count - i : kWidth, place, out + i);
}

// Sums over channels: out[(place * kTiles + tile) * kWinogradRows + row].
template <int kTiles>
void multiply_places(const float* u, const float* v, int64_t channels, float* out) {
    constexpr int kVectors = kAtOnce / kWidth;
    const int64_t place_u = winograd_place(channels * kWinogradRows), place_v = winograd_place(channels * kTileRoom);
    for (int p = 0; p < 16; p++, u += place_u, v += place_v, out += kTiles * kWinogradRows)
        for (int row = 0; row < kWinogradRows; row += kAtOnce) {
            const float *weight = u + row, *pixel = v;
            Sums<kTiles> sums[kVectors];
            EMP_UNROLL for (auto& one : sums) one.clear();
            for (int64_t c = 0; c < channels; c++, weight += kWinogradRows, pixel += kTileRoom) {
                prefetch(weight + 16 * kWinogradRows), prefetch(weight + 16 * kWinogradRows + 16), prefetch(pixel + 16 * kTileRoom);
                F some[kVectors];
                EMP_UNROLL for (int i = 0; i < kVectors; i++) some[i] = F::load_once(weight + i * kWidth);
                EMP_UNROLL for (int j = 0; j < kTiles; j++) {
                    const F one = F::broadcast_once(pixel + j);
                    EMP_UNROLL for (int i = 0; i < kVectors; i++) sums[i].v[j] = fma(some[i], one, sums[i].v[j]);
                }
            }
            EMP_UNROLL for (int j = 0; j < kTiles; j++)
                EMP_UNROLL for (int i = 0; i < kVectors; i++) sums[i].v[j].store(out + j * kWinogradRows + row + i * kWidth);
        }
}

bool winograd_tiles(const float* u, const float* v, int64_t channels, int tiles, float* room, float* out) {
    for_count<kMostTiles>(tiles, [&](auto count) { multiply_places<count.value>(u, v, channels, room); });
    float* pixels = room + 16 * tiles * kWinogradRows;  // [2 rows, 2 * kLanes pixels, kWinogradRows outputs]
    constexpr int kRow = 2 * kLanes * kWinogradRows;
    const F half = F::broadcast(0.5f);
    const auto joined = [&](F zero, F one, F two, F three, F& left, F& right) {
        left = fma(half, add(one, two), zero), right = fma(half, subtract(one, two), three);
    };
    Seen seen;
    for (int j = 0; j < tiles; j++)
        for (int i = 0; i < kWinogradRows; i += kWidth) {
            F top[4], bottom[4], pixel[4];
            EMP_UNROLL for (int x = 0; x < 4; x++) {
                const auto at = [&](int y) { return F::load(room + ((4 * y + x) * tiles + j) * kWinogradRows + i); };
                joined(at(0), at(1), at(2), at(3), top[x], bottom[x]);
            }
            joined(top[0], top[1], top[2], top[3], pixel[0], pixel[1]), joined(bottom[0], bottom[1], bottom[2], bottom[3], pixel[2], pixel[3]);
            float* to = pixels + 2 * j * kWinogradRows + i;
            EMP_UNROLL for (int k = 0; k < 4; k++) seen.add(pixel[k]), pixel[k].store(to + k / 2 * kRow + k % 2 * kWinogradRows);
        }
    for (int y = 0; y < 2; y++)
        for (int x = 0; x < 2 * tiles; x += 16)
            for (int i = 0; i < kWinogradRows; i += 16)
                transpose16(pixels + y * kRow + x * kWinogradRows + i, kWinogradRows, out + y * kRow + i * 2 * kLanes + x, 2 * kLanes);
    return seen.finite();
}
