// A convolution and the pool behind it: what is pooled never leaves the second-level cache.
#include <atomic>
#include <cmath>
#include <limits>

#include "slider.hpp"

namespace emp {
namespace {

constexpr float kLeast = -std::numeric_limits<float>::infinity();
constexpr int64_t kBytes = 512 << 10;  // of a band: half of a second-level cache

// Pooled rows [from, to) of a channel; `in` begins with the row `first` of `height`, and `line` has room for a row with its padding.
void pool_rows(const Kernels& kernels, const PoolShape& p, const float* in, int64_t first, int64_t height, int64_t width, int64_t from, int64_t to,
               float* line, float* y) {
    const int64_t out = p.out(1, width);
    for (int64_t r = from; r < to; r++, y += out) {
        const int64_t top = std::max<int64_t>(0, r * p.stride[0] - p.pad_begin[0]), end = std::min(height, r * p.stride[0] - p.pad_begin[0] + p.kernel[0]);
        kernels.pool(in + (top - first) * width, end - top, width, line + p.pad_begin[1], line, p.kernel[1], p.stride[1], out, y);
    }
}

// A row of the image between padding, with room behind it for registers that begin in it.
float* padded_line(Scratch purpose, const PoolShape& p, int64_t width, int64_t before) {
    const int64_t size = p.pad_begin[1] + width + p.pad_end[1] + 2 * kLanes * (p.stride[1] + 1);
    float* line = scratch(purpose, size_t(before + size)) + before;
    std::fill(line, line + size, kLeast);
    return line;
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
            float* line = padded_line(Scratch::sums, pool, at.out_w, 0);
            for (int64_t r = from; r < to; r++) {
                if (finite)
                    pool_rows(kernels, pool, alone + r * area, 0, at.out_h, at.out_w, 0, pool.out(0, at.out_h), line, out + r * made);
                else
                    pool_plainly(pool, alone + r * area, at.out_h, at.out_w, out + r * made);
            }
        });
    }
}

bool Conv::run_bands(const Given& given, const PoolShape& pool, const float* in, float* y) const {
    const Layout& at = given.at;
    const Sliding sliding = arranged(given.kernels, at);
    if (sliding.band != kLanes) return false;  // two parts of the image in one line
    const int64_t row_bytes = shape.outputs * at.out_w * int64_t(sizeof(float)), height = pool.out(0, at.out_h), width = pool.out(1, at.out_w);
    const int64_t most = std::max<int64_t>(1, (kBytes / row_bytes - pool.kernel[0]) / pool.stride[0] + 1);  // pooled rows of a band
    const int64_t bands = 2 * ((height + 2 * most - 1) / (2 * most)), deep = (height + bands - 1) / bands;  // even, for two threads
    const int64_t band_rows = std::min(at.out_h, (deep - 1) * pool.stride[0] + pool.kernel[0]), size = band_rows * at.out_w;
    if (size * shape.outputs * int64_t(sizeof(float)) > 4 * kBytes) return false;
    const Slider slider(given.kernels, shape, at, sliding, sweeps_);
    std::atomic<bool> finite{true};
    given.threads.each(bands, [&](int64_t band) {
        const int64_t from = std::min(height, band * deep), to = std::min(height, from + deep);
        if (from == to) return;
        const int64_t first = std::max<int64_t>(0, from * pool.stride[0] - pool.pad_begin[0]);
        const int64_t end = std::min(at.out_h, (to - 1) * pool.stride[0] - pool.pad_begin[0] + pool.kernel[0]);
        float* line = padded_line(Scratch::input, pool, at.out_w, size * shape.outputs);
        float* rows = line - size * shape.outputs;
        if (band == 0) touch(rows, size * shape.outputs);
        const Landing landing = {rows, nullptr, given.bias, size, given.ending, 0, {}};
        const Cut cut((end - first) * kLanes, slider.all.highest());
        for (int64_t tile = 0; tile < cut.tiles; tile++)
            for (int64_t i = 0; i < sliding.segments * shape.group; i++) {
                const SlideTile t = {i % shape.group, i / shape.group * sliding.valid, first + cut.begin(tile), cut.width(tile)};
                if (!slider.tile(t, in, landing, first)) finite = false;
            }
        for (int64_t r = 0; r < shape.outputs; r++) touch(y + (r * height + from) * width, (to - from) * width);
        for (int64_t r = 0; r < shape.outputs; r++)
            pool_rows(given.kernels, pool, rows + r * size, first, at.out_h, at.out_w, from, to, line, y + (r * height + from) * width);
    });
    return finite;
}

}  // namespace emp
