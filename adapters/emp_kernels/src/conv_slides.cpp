// The image is laid in lines of 16 pixels, once for all taps: what a tap reads below is another line, and for what it reads to the right the sums slide.
#include <atomic>
#include <cmath>
#include <limits>

#include "conv.hpp"

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

// Lines of sums below each other, in a segment of the output's columns.
struct SlideTile {
    int64_t group, x, line;
    int lines;
};

class Lines {
  public:
    Lines(const ConvShape& shape, const Layout& at, const Sliding& sliding, const Kernels& kernels)
        : shape(shape), at(at), sliding(sliding), cut(sliding.lines * kLanes, std::min(kernels.max_groups, kMostLines)) {}

    int64_t count() const { return cut.tiles * sliding.segments * shape.group; }
    int widest() const { return cut.widest(); }

    SlideTile tile(int64_t index) const {
        const int64_t segment = index / shape.group % sliding.segments, part = index / shape.group / sliding.segments;
        return {index % shape.group, segment * sliding.valid, cut.begin(part), cut.width(part)};
    }

    int bands() const { return kLanes / sliding.band; }
    // The row of the output in which a line's band lies.
    int64_t row(int64_t line, int band) const { return line + band * sliding.lines; }

    // What a channel's lines take of its image: two phases of a row at once where both are needed.
    std::vector<Pixels> pixels(const SlideTile& t) const {
        std::vector<Pixels> all;
        all.reserve(size_t(sliding.used(t.lines) * bands()));
        const int64_t step = shape.stride[1];
        for (size_t i = 0; i < sliding.phases.size(); i++) {
            const Sliding::Phase& phase = sliding.phases[i];
            const Sliding::Phase* next = i + 1 < sliding.phases.size() ? &sliding.phases[i + 1] : nullptr;
            const bool two = step == 2 && next && next->y == phase.y && next->x == phase.x + 1;
            const int64_t width = sliding.band * (step == 2 ? 2 : 1), apart = step == 2 ? 1 : step, x = t.x * step + phase.x - shape.pad_begin[1];
            const int64_t odd = two ? next->first * kLanes : -1, first = phase.first * kLanes;
            const auto until = [=](int64_t pixel) { return std::clamp<int64_t>((pixel - x + apart - 1) / apart, 0, width); };
            const uint64_t inside = (uint64_t(1) << (at.width > x ? until(at.width) : 0)) - (uint64_t(1) << (x < 0 ? until(0) : 0));
            for (int64_t l = 0; l < t.lines + phase.more; l++)
                for (int b = 0; b < bands(); b++) {
                    const int64_t y = row(t.line + l, b) * shape.stride[0] + phase.y - shape.pad_begin[0], down = l * kLanes;
                    const bool there = y >= 0 && y < at.height && at.width > x;
                    all.push_back({y * at.width + x - b * sliding.band * step, first + down, two ? odd + down : -1,
                                   there ? uint32_t(inside << (b * width)) : 0});
                }
            i += two;
        }
        return all;
    }

    void land(const SlideTile& t, Landing& to) const {
        const int64_t valid = std::min(sliding.valid, at.out_w - t.x);
        to.bands = bands();
        for (int b = 0; b < to.bands; b++)
            for (int l = 0; l < t.lines; l++) {
                const int64_t y = row(t.line + l, b);
                to.line[b][l] = {y * at.out_w + t.x - b * sliding.band, y < at.out_h ? ((1u << valid) - 1) << (b * sliding.band) : 0u};
            }
    }

  private:
    const ConvShape& shape;
    const Layout& at;
    const Sliding& sliding;
    Cut cut;
};

// Clocks for an image, roughly: lines of input to lay, then for each row of a tile its nonzeros and moving its sums.
double clocks(const ConvShape& s, const Sliding& sliding, double nonzeros) {
    const double lines = double(std::min<int64_t>(sliding.lines, kMostLines)), tiles = double(sliding.segments * sliding.lines) / lines;
    const double row = 0.6 * lines * nonzeros + (15 + lines) * sliding.slides;
    return tiles * (double(s.outputs / s.group) * row + 6 * double(s.channels * sliding.used(int64_t(lines))));
}

}  // namespace

void Conv::run_slides(const Given& given) const {
    const Kernels& kernels = given.kernels;
    const Layout& at = given.at;
    const Threads& threads = given.threads;
    const float *x = given.x, *bias = given.bias, *added = given.added;
    float* y = given.y;
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
    const Sliding sliding(shape, at, shifted_);
    const Lines all(shape, at, sliding, kernels);
    const Sweeps& w = sweeps_;
    const int64_t area = at.out_h * at.out_w, rows = shape.outputs / shape.group, plane = at.height * at.width;
    const int64_t zero = kMostLines * kLanes, stride = sliding.stride * kLanes, room = zero + w.block * stride;
    const auto fill = [&](const SlideTile& t, const float* in, int64_t block, float* out) {
        const std::vector<Pixels> pixels = all.pixels(t);
        const int64_t from = block * w.block, channels = std::min(shape.channels - from, w.block);
        std::fill(out, out + zero, 0.0f);
        return kernels.lines(in + (t.group * shape.channels + from) * plane, channels, plane, pixels.data(), int(pixels.size()) / all.bands(),
                             all.bands(), shape.stride[1], stride, out + zero);
    };
    for (int64_t image = 0; image < given.images; image++) {
        const float* in = x + image * shape.channels * shape.group * plane;
        const int64_t first = image * shape.outputs * area;
        std::atomic<bool> finite{true};
        // Rows of a chunk, or all of the group's if there is only one for all.
        const auto multiply = [&](const SlideTile& t, int64_t block, int64_t chunk, const float* input, float* sums) {
            const int64_t row = t.group * rows + chunk * w.chunk_rows;
            Landing landing = {y + first + row * area, added ? added + first + row * area : nullptr, bias ? bias + row : nullptr, area, given.activation, 0, {}};
            const bool last = block + 1 == w.blocks;
            if (last) all.land(t, landing);
            kernels.slide(w.sweep(t.group, block, chunk), input, sums, block == 0, t.lines, sliding.band, last ? &landing : nullptr);
        };
        if (all.count() >= 8) {
            threads.each(all.count(), [&](int64_t index) {
                const SlideTile t = all.tile(index);
                float *input = scratch(Scratch::block, size_t(room)), *sums = scratch(Scratch::sums, size_t(rows * t.lines * kLanes));
                for (int64_t b = 0; b < w.blocks; b++) {
                    if (!fill(t, in, b, input)) finite = false;
                    for (int64_t c = 0; c < w.chunks; c++) multiply(t, b, c, input, sums + c * w.chunk_rows * t.lines * kLanes);
                }
            });
        } else {  // all threads fill what all need, and then each does some rows of a tile
            float* input = scratch(Scratch::block, size_t(all.count() * w.blocks * room));
            threads.each(all.count() * w.blocks, [&](int64_t i) {
                if (!fill(all.tile(i / w.blocks), in, i % w.blocks, input + i * room)) finite = false;
            });
            threads.each(all.count() * w.chunks, [&](int64_t i) {
                const SlideTile t = all.tile(i / w.chunks);
                float* sums = scratch(Scratch::sums, size_t(w.chunk_rows * t.lines * kLanes));
                for (int64_t b = 0; b < w.blocks; b++) multiply(t, b, i % w.chunks, input + (i / w.chunks * w.blocks + b) * room, sums);
            });
        }
        if (!finite) spread_non_finite(given, in, y + first);
    }
}

void Conv::spread_non_finite(const Given& given, const float* in, float* y) const {
    const Layout& at = given.at;
    const int64_t rows = shape.outputs / shape.group, taps = shape.kernel[0] * shape.kernel[1];
    struct Read {
        int64_t group, column, position;
    };
    std::vector<Read> found;
    for (int64_t c = 0; c < shape.channels * shape.group; c++)
        for (int64_t pixel = 0; pixel < at.height * at.width; pixel++) {
            if (std::isfinite(in[c * at.height * at.width + pixel])) continue;
            for (int64_t t = 0; t < taps; t++) {
                const int64_t down = pixel / at.width + shape.pad_begin[0] - t / shape.kernel[1] * shape.dilation[0];
                const int64_t right = pixel % at.width + shape.pad_begin[1] - t % shape.kernel[1] * shape.dilation[1];
                if (down < 0 || right < 0 || down % shape.stride[0] || right % shape.stride[1]) continue;
                const int64_t out_y = down / shape.stride[0], out_x = right / shape.stride[1];
                if (out_y < at.out_h && out_x < at.out_w)
                    found.push_back({c / shape.channels, c % shape.channels * taps + t, out_y * at.out_w + out_x});
            }
        }
    given.threads.ranges(shape.outputs, 16, 16, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; r++)
            for (const Read& one : found)
                if (one.group == r / rows && !weight.bit(r, one.column))
                    y[r * at.out_h * at.out_w + one.position] = std::numeric_limits<float>::quiet_NaN();
    });
}

}  // namespace emp
