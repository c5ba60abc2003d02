// A convolution whose sums slide, tile by tile: what run_slides and run_pooled do it with.
#pragma once
#include "conv.hpp"

namespace emp {

// Reads a number of each cache line, in order, and forgets it: what is not in the caches comes four times as fast so as it does in the order in which
// tiles need it, since processors see the pattern. (They do not from instructions that only fetch ahead.) What another thread writes meanwhile does not
// matter.
__attribute__((noinline, no_sanitize("thread"))) inline void touch(const float* from, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) static_cast<void>(*static_cast<const volatile float*>(from + i));
}

// Lines of sums below each other, in a segment of the output's columns.
struct SlideTile {
    int64_t group, x, line;
    int lines;
};

class Lines {
  public:
    Lines(const ConvShape& shape, const Layout& at, const Sliding& sliding, const Kernels& kernels)
        : shape(shape), at(at), sliding(sliding), most(std::min(kernels.max_groups, kMostLines)), cut(sliding.lines * kLanes, most) {
        for (int64_t segment = 0; segment < sliding.segments; segment++)
            for (size_t i = 0; i < sliding.phases.size(); i++) across_.push_back(across(segment * sliding.valid, i));
    }

    int64_t count() const { return cut.tiles * sliding.segments * shape.group; }
    int widest() const { return cut.widest(); }
    int highest() const { return most; }  // lines that a tile can have

    SlideTile tile(int64_t index) const {
        const int64_t segment = index / shape.group % sliding.segments, part = index / shape.group / sliding.segments;
        return {index % shape.group, segment * sliding.valid, cut.begin(part), cut.width(part)};
    }

    int bands() const { return kLanes / sliding.band; }
    // The row of the output in which a line's band lies.
    int64_t row(int64_t line, int band) const { return line + band * sliding.lines; }

    // What a channel's lines take of its image: two phases of a row at once where both are needed.
    void pixels(const SlideTile& t, std::vector<Pixels>& all) const {
        all.clear();
        const int64_t step = shape.stride[1], segment = t.x / sliding.valid;
        for (size_t i = 0; i < sliding.phases.size(); i++) {
            const Sliding::Phase& phase = sliding.phases[i];
            const Across& across = across_[size_t(segment) * sliding.phases.size() + i];
            const int64_t first = phase.first * kLanes, odd = across.two ? sliding.phases[i + 1].first * kLanes : -1, rows = t.lines + phase.more;
            // those of the tile's rows that lie in the image; with two bands each row by itself, since they are not the same ones
            const auto rows_of = [&](int64_t from, int64_t to, bool inside) {
                if (from >= to) return;
                for (int b = 0; b < bands(); b++) {
                    const int64_t y = row(t.line + from, b) * shape.stride[0] + phase.y - shape.pad_begin[0], down = from * kLanes;
                    const bool there = bands() == 1 ? inside : y >= 0 && y < at.height;
                    all.push_back({y * at.width + across.x - b * sliding.band * step, shape.stride[0] * at.width, first + down, odd < 0 ? -1 : odd + down,
                                   to - from, there ? across.chosen << (b * across.width) : 0});
                }
            };
            if (bands() > 1) {
                for (int64_t l = 0; l < rows; l++) rows_of(l, l + 1, true);
            } else {
                const int64_t down = shape.stride[0], y = t.line * down + phase.y - shape.pad_begin[0];
                const int64_t above = y < 0 ? std::min(rows, (down - 1 - y) / down) : 0;
                const int64_t until = y + (rows - 1) * down < at.height ? rows : std::max(above, y < at.height ? (at.height - y - 1) / down + 1 : 0);
                rows_of(0, above, false), rows_of(above, until, true), rows_of(until, rows, false);
            }
            i += across.two;
        }
    }

    // Where the sums of a tile go, relative to the row `first` of the output.
    void land(const SlideTile& t, int64_t first, Landing& to) const {
        const int64_t valid = std::min(sliding.valid, at.out_w - t.x);
        to.bands = bands();
        for (int b = 0; b < to.bands; b++)
            for (int l = 0; l < t.lines; l++) {
                const int64_t y = row(t.line + l, b);
                to.line[b][l] = {(y - first) * at.out_w + t.x - b * sliding.band, y < at.out_h ? ((1u << valid) - 1) << (b * sliding.band) : 0u};
            }
    }

  private:
    // What a phase's lines take of a row, in a segment.
    struct Across {
        int64_t x, width;  // the first pixel, which may lie before the image; pixels of a band
        uint32_t chosen;   // those that lie in it
        bool two;          // the next phase's pixels lie between
    };
    Across across(int64_t begin, size_t i) const {
        const Sliding::Phase& phase = sliding.phases[i];
        const Sliding::Phase* next = i + 1 < sliding.phases.size() ? &sliding.phases[i + 1] : nullptr;
        const int64_t step = shape.stride[1], apart = step == 2 ? 1 : step, width = sliding.band * (step == 2 ? 2 : 1);
        const int64_t x = begin * step + phase.x - shape.pad_begin[1];
        const auto until = [=](int64_t pixel) { return std::clamp<int64_t>((pixel - x + apart - 1) / apart, 0, width); };
        const uint64_t chosen = at.width > x ? (uint64_t(1) << until(at.width)) - (uint64_t(1) << (x < 0 ? until(0) : 0)) : 0;
        return {x, width, uint32_t(chosen), step == 2 && next && next->y == phase.y && next->x == phase.x + 1};
    }

    const ConvShape& shape;
    const Layout& at;
    const Sliding& sliding;
    int most;
    Cut cut;
    std::vector<Across> across_;
};

// One image, whole or in bands of rows.
class Slider {
  public:
    Slider(const Kernels& kernels, const ConvShape& shape, const Layout& at, const Sliding& sliding, const Sweeps& sweeps)
        : all(shape, at, sliding, kernels), kernels(kernels), shape(shape), at(at), sliding(sliding), w(sweeps) {}

    const Lines all;
    int64_t room() const { return kZero + w.block * stride(); }  // floats of a block's input
    int64_t rows() const { return shape.outputs / shape.group; }

    // The input of a block of channels; whether all of it is finite.
    bool fill(const SlideTile& t, const float* image, int64_t block, float* out) const {
        const int64_t plane = at.height * at.width, from = block * w.block, channels = std::min(shape.channels - from, w.block);
        static thread_local std::vector<Pixels> pixels;
        all.pixels(t, pixels);
        std::fill(out, out + kZero, 0.0f);
        const float* in = image + (t.group * shape.channels + from) * plane;
        if (t.x == 0 && at.height * at.width >= 1024) touch_input(t, in, channels);
        return kernels.lines(in, channels, plane, pixels.data(), int(pixels.size()),
                             all.bands(), shape.stride[1], stride(), out + kZero);
    }
    // Rows of a chunk; `to` is where row 0 of all groups goes, from the row `first` of the output on.
    void multiply(const SlideTile& t, int64_t block, int64_t chunk, const float* input, float* sums, const Landing& to, int64_t first) const {
        const int64_t row = t.group * rows() + chunk * w.chunk_rows;
        const bool last = block + 1 == w.blocks;
        Landing landing;
        if (last) {
            landing = to;
            landing.y += row * to.stride, landing.added += to.added ? row * to.stride : 0, landing.bias += to.bias ? row : 0;
            landing.ending = from_row(to.ending, row);
            if (to.pooled)
                landing.kept += row * to.pooled->keep * kLanes;
            else
                all.land(t, first, landing);
        }
        kernels.slide(w.sweep(t.group, block, chunk), input, sums, block == 0, t.lines, sliding.band, last ? &landing : nullptr);
    }
    // All of a tile; whether its input is finite.
    bool tile(const SlideTile& t, const float* image, const Landing& to, int64_t first) const {
        float *input = scratch(Scratch::block, size_t(room())), *sums = scratch(Scratch::sums, size_t(rows() * t.lines * kLanes));
        bool finite = true;
        for (int64_t b = 0; b < w.blocks; b++) {
            finite = fill(t, image, b, input) && finite;
            for (int64_t c = 0; c < w.chunks; c++) multiply(t, b, c, input, sums + c * w.chunk_rows * t.lines * kLanes, to, first);
        }
        return finite;
    }

  private:
    // All of the image's rows that tiles beside each other read: where channels are few the image comes from outside, and is in no cache.
    void touch_input(const SlideTile& t, const float* in, int64_t channels) const {
        const int64_t plane = at.height * at.width, step = shape.stride[0], first = t.line * step - shape.pad_begin[0];
        const int64_t reach = (t.lines - 1) * step + (shape.kernel[0] - 1) * shape.dilation[0] + 1;
        const int64_t from = std::clamp<int64_t>(first, 0, at.height) * at.width;
        const int64_t end = all.bands() > 1 ? plane : std::clamp<int64_t>(first + reach, 0, at.height) * at.width;
        for (int64_t c = 0; c < channels; c++, in += plane) touch(in + from, end - from);
    }
    static constexpr int64_t kZero = kMostLines * kLanes;
    int64_t stride() const { return sliding.stride * kLanes; }

    const Kernels& kernels;
    const ConvShape& shape;
    const Layout& at;
    const Sliding& sliding;
    const Sweeps& w;
};

}  // namespace emp
