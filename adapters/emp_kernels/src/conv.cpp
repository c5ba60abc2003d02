// The image is copied once, padded and split into phases: pixels that a stride of s takes together lie side by side. After that every tap of the
// kernel is the same stretch of memory, shifted; and a tile, 16 * groups output positions counted along the phase's rows (a few of them lie
// behind the end of a row and are thrown away), is filled by plain copies.
#include "conv.hpp"

#include <cmath>
#include <cstring>
#include <limits>

namespace emp {
namespace {

struct Layout {
    int64_t height, width, out_h, out_w;
    int64_t row, phase, plane;  // floats of a row of a phase, of a phase, of a channel
    int64_t positions;          // along the phase's rows, from the first output to the last
    bool direct;                // the image itself is its only phase
    std::vector<bool> used[2];  // phases that some tap reads, by axis

    Layout(const ConvShape& s, int64_t height, int64_t width)
        : height(height), width(width), out_h(s.out(0, height)), out_w(s.out(1, width)) {
        direct = true;
        for (int axis = 0; axis < 2; axis++)
            direct = direct && s.stride[axis] == 1 && s.pad_begin[axis] == 0 && s.pad_end[axis] == 0;
        const int64_t padded_h = height + s.pad_begin[0] + s.pad_end[0], padded_w = width + s.pad_begin[1] + s.pad_end[1];
        row = (padded_w + s.stride[1] - 1) / s.stride[1];
        phase = row * ((padded_h + s.stride[0] - 1) / s.stride[0]);
        plane = phase * s.stride[0] * s.stride[1];
        positions = (out_h - 1) * row + out_w;
        for (int axis = 0; axis < 2; axis++) {
            used[axis].assign(size_t(s.stride[axis]), false);
            for (int64_t k = 0; k < s.kernel[axis]; k++) used[axis][size_t(k * s.dilation[axis] % s.stride[axis])] = true;
        }
    }
};

void split_channel(const ConvShape& s, const Layout& at, const float* in, float* out) {
    std::memset(out, 0, size_t(at.plane) * sizeof(float));
    const int64_t step = s.stride[1];
    for (int64_t y = 0; y < at.height; y++) {
        const int64_t py = y + s.pad_begin[0];
        if (!at.used[0][size_t(py % s.stride[0])]) continue;
        float* row = out + py % s.stride[0] * step * at.phase + py / s.stride[0] * at.row;
        const float* from = in + y * at.width;
        if (step == 1) {
            std::memcpy(row + s.pad_begin[1], from, size_t(at.width) * sizeof(float));
            continue;
        }
        for (int64_t phase = 0; phase < step; phase++) {
            if (!at.used[1][size_t(phase)]) continue;
            // the first pixel of this phase that lies in the image, not in its padding
            const int64_t first = (s.pad_begin[1] - phase + step - 1) / step > 0 ? (s.pad_begin[1] - phase + step - 1) / step : 0;
            float* to = row + phase * at.phase;
            int64_t x = first * step + phase - s.pad_begin[1];
            if (step == 2)
                for (int64_t i = first; x < at.width; i++, x += 2) to[i] = from[x];
            else
                for (int64_t i = first; x < at.width; i++, x += step) to[i] = from[x];
        }
    }
}

// Where the stretch of each tap begins, relative to that of the output position.
std::vector<int64_t> tap_offsets(const ConvShape& s, const Layout& at) {
    std::vector<int64_t> offset;
    for (int64_t c = 0; c < s.channels; c++)
        for (int64_t ky = 0; ky < s.kernel[0]; ky++)
            for (int64_t kx = 0; kx < s.kernel[1]; kx++) {
                const int64_t y = ky * s.dilation[0], x = kx * s.dilation[1];
                offset.push_back(c * at.plane + (y % s.stride[0] * s.stride[1] + x % s.stride[1]) * at.phase +
                                 y / s.stride[0] * at.row + x / s.stride[1]);
            }
    return offset;
}

struct NonFinite {
    int64_t column;
    int lane;
};

}  // namespace

void Conv::run(const Kernels& kernels, const float* x, int64_t images, int64_t height, int64_t width, const float* bias,
               Activation activation, float* y, const Threads& threads) const {
    const Layout at(shape, height, width);
    const int64_t area = at.out_h * at.out_w;
    if (images == 0 || area <= 0 || shape.outputs == 0) return;
    const int64_t columns = weight.view().columns, rows = shape.outputs / shape.group;
    std::call_once(once_, [&] { tiles_.arrange(weight, rows, false); });
    const Tiles& w = tiles_;
    const std::vector<int64_t> offset = tap_offsets(shape, at);
    const Cut cut(at.positions, std::min(kernels.max_groups, w.max_groups));
    const int64_t widest = cut.widest() * kLanes, tiles = cut.tiles, all_channels = shape.channels * shape.group;
    // few tiles: rows are divided as well, so that all threads have work; otherwise a tile is filled once for all rows
    const int64_t chunks = int64_t(w.chunks.size()) / shape.group, parts = tiles * shape.group >= 8 ? 1 : chunks;

    float* phases = nullptr;
    const int64_t room = widest + at.phase;  // the last tile, and taps of its wasted positions, read behind the last channel
    if (!at.direct) phases = scratch(Scratch::input, size_t(all_channels * at.plane + room));
    for (int64_t image = 0; image < images; image++) {
        const float* in = x + image * all_channels * height * width;
        if (!at.direct) {
            std::fill(phases + all_channels * at.plane, phases + all_channels * at.plane + room, 0.0f);
            threads.ranges(all_channels, std::max<int64_t>(1, 8192 / at.plane), 16, [&](int64_t from, int64_t to) {
                for (int64_t c = from; c < to; c++) split_channel(shape, at, in + c * height * width, phases + c * at.plane);
            });
        }
        const bool all_finite = kernels.finite(in, all_channels * height * width);
        const float* source = at.direct ? in : phases;
        const float* source_end = at.direct ? in + all_channels * at.plane : phases + all_channels * at.plane + room;
        threads.each(tiles * shape.group * parts, [&](int64_t task) {
            const int64_t tile = task / (shape.group * parts), group = task / parts % shape.group, part = task % parts;
            const size_t first_chunk = size_t(group * chunks + part * chunks / parts), last_chunk = size_t(group * chunks + (part + 1) * chunks / parts);
            const int64_t row = w.chunks[first_chunk].row, end = w.chunks[last_chunk - 1].end;
            const int groups = cut.width(tile), lanes = groups * kLanes;
            const int64_t position = cut.begin(tile) * kLanes;
            const float* from = source + group * shape.channels * at.plane + position;
            // pairs may need a row behind the last one of a chunk, so that each chunk has one to spare
            float* sums = scratch(Scratch::sums, size_t((end - row + int64_t(last_chunk - first_chunk)) * lanes));
            float* input = scratch(Scratch::block, size_t(w.block * lanes));
            auto sums_of = [&](size_t chunk) { return sums + (w.chunks[chunk].row - row + int64_t(chunk - first_chunk)) * lanes; };
            std::vector<NonFinite> found;
            for (int64_t b = 0; b < w.blocks(); b++) {
                const int64_t first = b * w.block, stop = std::min(columns, first + w.block);
                for (int64_t c = first; c < stop; c++) {
                    float* to = input + (c - first) * lanes;
                    const float* stretch = from + offset[size_t(c)];
                    if (source_end - stretch >= lanes) {
                        for (int g = 0; g < groups; g++) std::memcpy(to + g * kLanes, stretch + g * kLanes, kLanes * sizeof(float));
                    } else {
                        const int64_t there = std::max<int64_t>(0, source_end - stretch);
                        std::memcpy(to, stretch, size_t(there) * sizeof(float));
                        std::fill(to + there, to + lanes, 0.0f);
                    }
                }
                if (!all_finite && !kernels.finite(input, (stop - first) * lanes))
                    for (int64_t c = first; c < stop; c++)
                        for (int l = 0; l < lanes; l++)
                            if (!std::isfinite(input[(c - first) * lanes + l])) found.push_back({c, l});
                for (size_t chunk = first_chunk; chunk < last_chunk; chunk++)
                    kernels.tile(w.segment(chunk, b), w.chunks[chunk].end - w.chunks[chunk].row, w.pairs, input, sums_of(chunk), groups, b > 0);
            }
            if (w.blocks() == 0) std::fill(sums, sums + (end - row + int64_t(last_chunk - first_chunk)) * lanes, 0.0f);
            const int64_t last = std::min(position + lanes, at.positions);
            for (size_t chunk = first_chunk; chunk < last_chunk; chunk++)
            for (int64_t r = w.chunks[chunk].row; r < w.chunks[chunk].end; r++) {
                float* in_row = sums_of(chunk) + (r - w.chunks[chunk].row) * lanes;
                for (const NonFinite& one : found)  // 0 * inf is NaN, as in the dense convolution
                    if (!weight.bit(r, one.column)) in_row[one.lane] = std::numeric_limits<float>::quiet_NaN();
                float* out = y + (image * shape.outputs + r) * area;
                const float b = bias ? bias[r] : 0.0f;
                for (int64_t p = position; p < last;) {
                    const int64_t out_y = p / at.row, out_x = p % at.row, next = std::min((out_y + 1) * at.row, last);
                    const int64_t count = std::min(at.out_w - out_x, next - p);
                    if (count > 0)
                        kernels.finish(in_row + (p - position), count, b, activation, out + out_y * at.out_w + out_x);
                    p = next;
                }
            }
        });
    }
}

}  // namespace emp
