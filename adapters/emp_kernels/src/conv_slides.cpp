// The image is laid in lines of 16 pixels, once for all taps: what a tap reads below is another line, and for what it reads to the right the sums slide.
#include <atomic>
#include <cmath>
#include <limits>

#include "slider.hpp"

namespace emp {
namespace {

// Channels of a block: their input stays in the first-level cache while all rows are done, unless a row would have too little to do in it.
int64_t block_channels(const ConvShape& s, const Sliding& sliding, int64_t lines, double density) {
    constexpr int64_t kBytes = 40 << 10, kMostBytes = 160 << 10;
    constexpr double kLeast = 28;  // nonzeros of a row; measured: docs/kernels.md
    const int64_t bytes = sliding.used(lines) * kLanes * int64_t(sizeof(float)), places = 8000 / sliding.stride;  // that 16 bits tell apart
    const double least = kLeast / std::max(1e-3, density * double(s.kernel[0] * s.kernel[1]));
    const int64_t most = std::min(std::max(kBytes / bytes, std::min(kMostBytes / bytes, int64_t(least) + 1)), places);
    const int64_t blocks = (s.channels + std::max<int64_t>(1, most) - 1) / std::max<int64_t>(1, most);  // as equal as can be
    return (s.channels + blocks - 1) / blocks;
}

// Clocks for an image, roughly: lines of input to lay, then for each row of a tile its nonzeros and moving its sums.
double clocks(const ConvShape& s, const Sliding& sliding, double nonzeros) {
    const double lines = double(std::min<int64_t>(sliding.lines, kMostLines)), tiles = double(sliding.segments * sliding.lines) / lines;
    const double row = 0.6 * lines * nonzeros + (15 + lines) * sliding.slides;
    return tiles * (double(s.outputs / s.group) * row + 6 * double(s.channels * sliding.used(int64_t(lines))));
}

}  // namespace

Sliding Conv::arranged(const Kernels& kernels, const Layout& at) const {
    std::call_once(sweeps_once_, [&] {  // by the first image: others are done so too
        const Sliding moved(shape, at, false), laid(shape, at, true);
        const double density = weight.density(), nonzeros = density * double(weight.view().columns);
        const int64_t lines = std::min<int64_t>(laid.lines, kMostLines);
        const bool fits = laid.stride <= 1024 && block_channels(shape, laid, lines, 1.0) == shape.channels;
        shifted_ = fits && clocks(shape, laid, nonzeros) < clocks(shape, moved, nonzeros);
        const Sliding& sliding = shifted_ ? laid : moved;
        const bool pairs = kernels.max_groups >= kMostLines && density >= kPairs;
        sweeps_.arrange(weight, shape.group, sliding, block_channels(shape, sliding, Lines(shape, at, sliding, kernels).widest(), density), pairs);
    });
    return Sliding(shape, at, shifted_);
}

void Conv::run_slides(const Given& given) const {
    const Layout& at = given.at;
    const Threads& threads = given.threads;
    const Sliding sliding = arranged(given.kernels, at);
    const Sweeps& w = sweeps_;
    const Slider slider(given.kernels, shape, at, sliding, w);
    const Lines& all = slider.all;
    const int64_t area = at.out_h * at.out_w, room = slider.room();
    for (int64_t image = 0; image < given.images; image++) {
        const float* in = given.x + image * shape.channels * shape.group * at.height * at.width;
        const int64_t first = image * shape.outputs * area;
        const Landing to = {given.y + first, given.added ? given.added + first : nullptr, given.bias, area, given.ending, 0, {}};
        std::atomic<bool> finite{true};
        if (all.count() >= 8) {
            threads.each(all.count(), [&](int64_t index) {
                if (!slider.tile(all.tile(index), in, to, 0)) finite = false;
            });
        } else {  // all threads fill what all need, and then each does some rows of a tile
            float* input = scratch(Scratch::block, size_t(all.count() * w.blocks * room));
            threads.each(all.count() * w.blocks, [&](int64_t i) {
                if (!slider.fill(all.tile(i / w.blocks), in, i % w.blocks, input + i * room)) finite = false;
            });
            threads.each(all.count() * w.chunks, [&](int64_t i) {
                const SlideTile t = all.tile(i / w.chunks);
                float* sums = scratch(Scratch::sums, size_t(w.chunk_rows * t.lines * kLanes));
                for (int64_t b = 0; b < w.blocks; b++) slider.multiply(t, b, i % w.chunks, input + (i / w.chunks * w.blocks + b) * room, sums, to, 0);
            });
        }
        if (!finite) spread_non_finite(given, in, given.y + first);
    }
}

// One channel after the other, so that what is listed stays small where all of an image is NaN.
void Conv::spread_non_finite(const Given& given, const float* in, float* y) const {
    const Layout& at = given.at;
    const int64_t rows = shape.outputs / shape.group, taps = shape.kernel[0] * shape.kernel[1], plane = at.height * at.width;
    std::vector<std::vector<int64_t>> positions(static_cast<size_t>(taps));  // of outputs that read such a pixel by this tap
    for (int64_t c = 0; c < shape.channels * shape.group; c++, in += plane) {
        if (given.kernels.finite(in, plane, 1, 0)) continue;
        for (auto& one : positions) one.clear();
        for (int64_t pixel = 0; pixel < plane; pixel++) {
            if (std::isfinite(in[pixel])) continue;
            for (int64_t t = 0; t < taps; t++) {
                const int64_t down = pixel / at.width + shape.pad_begin[0] - t / shape.kernel[1] * shape.dilation[0];
                const int64_t right = pixel % at.width + shape.pad_begin[1] - t % shape.kernel[1] * shape.dilation[1];
                if (down < 0 || right < 0 || down % shape.stride[0] || right % shape.stride[1]) continue;
                const int64_t out_y = down / shape.stride[0], out_x = right / shape.stride[1];
                if (out_y < at.out_h && out_x < at.out_w) positions[size_t(t)].push_back(out_y * at.out_w + out_x);
            }
        }
        const int64_t first = c / shape.channels * rows, column = c % shape.channels * taps;
        given.threads.ranges(rows, 16, 16, [&](int64_t from, int64_t to) {
            for (int64_t r = first + from; r < first + to; r++)
                for (int64_t t = 0; t < taps; t++)
                    if (!weight.bit(r, column + t))
                        for (const int64_t position : positions[size_t(t)]) y[r * at.out_h * at.out_w + position] = std::numeric_limits<float>::quiet_NaN();
        });
    }
}

}  // namespace emp
