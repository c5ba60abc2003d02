// A convolution and the pool behind it: what is pooled never leaves the second-level cache.
#include <atomic>
#include <cmath>
#include <limits>

#include "slider.hpp"

namespace emp {
namespace {

constexpr float kLeast = -std::numeric_limits<float>::infinity();
constexpr int64_t kBytes = 512 << 10;  // of a band's rows, pooled down: half of a second-level cache

// Rows of pixels between padding.
struct Padded {
    int64_t lead, room;  // floats before the first pixel, of which the last ones are padding; of a row
    Padded(const PoolShape& p, int64_t width)
        : lead((p.pad_begin[1] + kLanes - 1) / kLanes * kLanes), room((lead + width + p.pad_end[1] + kLanes - 1) / kLanes * kLanes) {}
    // Registers that begin in the last row end behind it.
    static int64_t behind(const PoolShape& p) { return 2 * kLanes * (p.stride[1] + 1); }
    void pad(const PoolShape& p, int64_t width, float* row) const {
        std::fill(row + lead - p.pad_begin[1], row + lead, kLeast);
        std::fill(row + lead + width, row + lead + width + p.pad_end[1], kLeast);
    }
};

// The rows that are pooled to one.
struct Window {
    int64_t first, end;
    Window(const PoolShape& p, int64_t row, int64_t height)
        : first(std::max<int64_t>(0, row * p.stride[0] - p.pad_begin[0])), end(std::min(height, row * p.stride[0] - p.pad_begin[0] + p.kernel[0])) {}
};

// A channel.
void pool_channel(const Kernels& kernels, const PoolShape& p, const float* in, int64_t height, int64_t width, float* row, float* y) {
    const Padded padded(p, width);
    const int64_t out = p.out(1, width);
    padded.pad(p, width, row);
    for (int64_t r = 0; r < p.out(0, height); r++, y += out) {
        const Window rows(p, r, height);
        kernels.pool_down(in + rows.first * width, rows.end - rows.first, width, row + padded.lead);
        kernels.pool_across(row + padded.lead - p.pad_begin[1], p.kernel[1], p.stride[1], out, y);
    }
}

// What a tile finishes of the pooled rows from `from` up to `to`; at[0] is where the first one's pixels begin.
PooledLines pooled_lines(const PoolShape& p, const SlideTile& t, int64_t height, int64_t width, int64_t from, int64_t to, const Padded& padded) {
    PooledLines all = {};
    all.keep = int(p.kernel[0] - 1), all.lanes = (1u << width) - 1;
    for (int64_t row = from; row < to; row++) {
        const Window rows(p, row, height);
        if (rows.end > t.line && rows.end <= t.line + t.lines)
            all.line[all.count++] = {int(rows.first - t.line) + all.keep, int(rows.end - rows.first), (row - from) * padded.room + padded.lead + t.x};
    }
    return all;
}

// Where something may be NaN: slow and plain.
void pool_plainly(const PoolShape& p, const float* in, int64_t height, int64_t width, float* y) {
    for (int64_t r = 0; r < p.out(0, height); r++)
        for (int64_t c = 0; c < p.out(1, width); c++) {
            float greatest = kLeast;
            for (int64_t i = 0; i < p.kernel[0]; i++)
                for (int64_t j = 0; j < p.kernel[1]; j++) {
                    const int64_t down = r * p.stride[0] - p.pad_begin[0] + i, right = c * p.stride[1] - p.pad_begin[1] + j;
                    if (down < 0 || right < 0 || down >= height || right >= width) continue;
                    const float value = in[down * width + right];
                    if (std::isnan(value) || value > greatest) greatest = value;
                    if (std::isnan(greatest)) i = p.kernel[0], j = p.kernel[1];
                }
            *y++ = greatest;
        }
}

}  // namespace

void Conv::run_pooled(const Kernels& kernels, const float* x, int64_t images, int64_t height, int64_t width, const float* bias,
                      const Ending& ending, const PoolShape& pool, float* y, const Threads& threads) const {
    const Layout at(shape, height, width);
    if (images == 0 || at.out_h <= 0 || at.out_w <= 0 || shape.outputs == 0) return;
    const int64_t made = pool.out(0, at.out_h) * pool.out(1, at.out_w), area = at.out_h * at.out_w, read = shape.channels * shape.group * height * width;
    const Given given = {kernels, at, x, images, bias, nullptr, ending, y, threads};
    Buffer<float> whole;
    for (int64_t image = 0; image < images; image++) {
        const float* in = x + image * read;
        float* out = y + image * shape.outputs * made;
        if (can_slide(at) && run_bands(given, pool, in, out)) continue;
        float* alone = whole.grow(size_t(shape.outputs * area));
        run(kernels, in, 1, height, width, bias, nullptr, ending, alone, threads);
        const bool finite = kernels.finite(alone, shape.outputs * area, 1, 0);
        threads.ranges(shape.outputs, std::max<int64_t>(1, 16384 / area), 16, [&](int64_t from, int64_t to) {
            float* row = scratch(Scratch::sums, size_t(Padded(pool, at.out_w).room + Padded::behind(pool)));
            for (int64_t r = from; r < to; r++) {
                if (finite)
                    pool_channel(kernels, pool, alone + r * area, at.out_h, at.out_w, row, out + r * made);
                else
                    pool_plainly(pool, alone + r * area, at.out_h, at.out_w, out + r * made);
            }
        });
    }
}

// Sums are pooled down while they are in registers, and across when the rows of a band are done.
bool Conv::run_bands(const Given& given, const PoolShape& pool, const float* in, float* y) const {
    const Layout& at = given.at;
    const Sliding sliding = arranged(given.kernels, at);
    const int64_t keep = pool.kernel[0] - 1;
    if (sliding.band != kLanes || keep > PooledLines::kMostKept) return false;  // two parts of the image in one line; more lines than there are registers
    const Padded padded(pool, at.out_w);
    const int64_t row_bytes = shape.outputs * padded.room * int64_t(sizeof(float)), height = pool.out(0, at.out_h), width = pool.out(1, at.out_w);
    const int64_t most = std::max<int64_t>(1, kBytes / row_bytes);  // pooled rows of a band
    const int64_t bands = 2 * ((height + 2 * most - 1) / (2 * most)), deep = (height + bands - 1) / bands;  // even, for two threads
    if (deep * row_bytes > 4 * kBytes) return false;
    const Slider slider(given.kernels, shape, at, sliding, sweeps_);
    const int64_t size = deep * padded.room, kept = shape.outputs * keep * kLanes;  // of a channel; of a segment
    std::atomic<bool> finite{true};
    given.threads.each(bands, [&](int64_t band) {
        const int64_t from = std::min(height, band * deep), to = std::min(height, from + deep);
        if (from == to) return;
        const int64_t first = Window(pool, from, at.out_h).first, end = Window(pool, to - 1, at.out_h).end;
        float* rows = scratch(Scratch::input, size_t(shape.outputs * size + Padded::behind(pool) + sliding.segments * kept));
        float* keeping = rows + shape.outputs * size + Padded::behind(pool);
        if (band == 0) touch(rows, size * shape.outputs);
        for (int64_t r = 0; r < shape.outputs * deep; r++) padded.pad(pool, at.out_w, rows + r * padded.room);
        std::fill(keeping, keeping + sliding.segments * kept, 0.0f);
        Landing landing = {rows, nullptr, given.bias, size, given.ending, 1, {}};
        const Cut cut((end - first) * kLanes, slider.all.highest());
        for (int64_t tile = 0; tile < cut.tiles; tile++)
            for (int64_t i = 0; i < sliding.segments * shape.group; i++) {
                const int64_t segment = i / shape.group;
                const SlideTile t = {i % shape.group, segment * sliding.valid, first + cut.begin(tile), cut.width(tile)};
                const PooledLines lines = pooled_lines(pool, t, at.out_h, std::min(sliding.valid, at.out_w - t.x), from, to, padded);
                landing.pooled = &lines, landing.kept = keeping + segment * kept;
                if (!slider.tile(t, in, landing, first)) finite = false;
            }
        for (int64_t r = 0; r < shape.outputs; r++) touch(y + (r * height + from) * width, (to - from) * width);
        for (int64_t r = 0; r < shape.outputs; r++)
            for (int64_t row = from; row < to; row++)
                given.kernels.pool_across(rows + r * size + (row - from) * padded.room + padded.lead - pool.pad_begin[1], pool.kernel[1], pool.stride[1], width,
                                          y + (r * height + row) * width);
    });
    return finite;
}

}  // namespace emp
