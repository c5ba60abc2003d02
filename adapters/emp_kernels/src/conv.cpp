// The image is copied once, padded and split into phases: pixels that a stride of s takes together lie side by side. After that every tap of the
// kernel is the same stretches of memory, shifted; and a tile, 16 * groups output positions, is filled by plain copies of them.
#include "conv.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

namespace emp {
namespace {

struct Layout {
    int64_t height, width, out_h, out_w;
    int64_t row, phase, plane;  // floats of a row of a phase, of a phase, of a channel
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
        for (int axis = 0; axis < 2; axis++) {
            used[axis].assign(size_t(s.stride[axis]), false);
            for (int64_t k = 0; k < s.kernel[axis]; k++) used[axis][size_t(k * s.dilation[axis] % s.stride[axis])] = true;
        }
    }
};

// Whether all that was read is finite; what no tap reads is left out.
bool split_channel(const Kernels& kernels, const ConvShape& s, const Layout& at, const float* in, float* out) {
    bool finite = true;
    const int64_t step_y = s.stride[0], step_x = s.stride[1], rows = at.phase / at.row;
    for (int64_t py = 0; py < step_y; py++)
        for (int64_t px = 0; px < step_x; px++) {
            if (!at.used[0][size_t(py)] || !at.used[1][size_t(px)]) continue;
            // the first row and pixel of this phase that lie in the image, not in its padding
            const int64_t top = std::min(rows, std::max<int64_t>(0, (s.pad_begin[0] - py + step_y - 1) / step_y));
            const int64_t left = std::min(at.row, std::max<int64_t>(0, (s.pad_begin[1] - px + step_x - 1) / step_x));
            const int64_t y = top * step_y + py - s.pad_begin[0], x = left * step_x + px - s.pad_begin[1];
            const int64_t height = std::clamp<int64_t>((at.height - y + step_y - 1) / step_y, 0, rows - top);
            const int64_t width = std::clamp<int64_t>((at.width - x + step_x - 1) / step_x, 0, at.row - left);
            float* phase = out + (py * step_x + px) * at.phase;
            std::fill(phase, phase + top * at.row, 0.0f);
            if (!kernels.lay(in + y * at.width + x, height, width, step_y * at.width, step_x, left, at.row, phase + top * at.row)) finite = false;
            std::fill(phase + (top + height) * at.row, phase + at.phase, 0.0f);
        }
    return finite;
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

void Conv::run(const Kernels& kernels, const float* x, int64_t images, int64_t height, int64_t width, const float* bias, const float* added,
               Activation activation, float* y, const Threads& threads) const {
    const Layout at(shape, height, width);
    const int64_t area = at.out_h * at.out_w;
    if (images == 0 || area <= 0 || shape.outputs == 0) return;
    const int64_t columns = weight.view().columns, rows = shape.outputs / shape.group;
    std::call_once(once_, [&] { tiles_.arrange(weight, rows); });
    const Tiles& w = tiles_;
    const std::vector<int64_t> offset = tap_offsets(shape, at);
    const Cut cut(area, std::min(kernels.max_groups, w.max_groups));
    const int64_t all_channels = shape.channels * shape.group, plane = at.direct ? height * width : at.plane;
    // few tiles: rows are divided as well, so that all threads have work; otherwise a tile is filled once for all rows
    const int64_t chunks = int64_t(w.chunks.size()) / shape.group, parts = cut.tiles * shape.group >= 8 ? 1 : chunks;
    float* phases = at.direct ? nullptr : scratch(Scratch::input, size_t(all_channels * plane + kLanes));
    for (int64_t image = 0; image < images; image++) {
        const float* in = x + image * all_channels * height * width;
        std::atomic<bool> finite{true};
        threads.ranges(all_channels, std::max<int64_t>(1, 8192 / std::max<int64_t>(plane, 1)), 16, [&](int64_t from, int64_t to) {
            bool all = true;
            if (at.direct)
                all = kernels.finite(in + from * plane, (to - from) * plane);
            else
                for (int64_t c = from; c < to; c++) all = split_channel(kernels, shape, at, in + c * height * width, phases + c * plane) && all;
            if (!all) finite = false;
        });
        threads.each(cut.tiles * shape.group * parts, [&](int64_t task) {
            const int64_t tile = task / (shape.group * parts), group = task / parts % shape.group, part = task % parts;
            const size_t first_chunk = size_t(group * chunks + part * chunks / parts), last_chunk = size_t(group * chunks + (part + 1) * chunks / parts);
            const int64_t row = w.chunks[first_chunk].row, end = w.chunks[last_chunk - 1].end;
            const int groups = cut.width(tile), lanes = groups * kLanes;
            const int64_t position = cut.begin(tile) * kLanes, count = std::min<int64_t>(lanes, area - position);
            const float* from = (at.direct ? in : phases) + group * shape.channels * plane;
            std::vector<Piece> pieces;
            for (int64_t p = position; p < position + count;) {
                const int64_t out_y = p / at.out_w, out_x = p % at.out_w, run = at.direct && at.out_w == at.row ? position + count - p
                                                                              : std::min(at.out_w - out_x, position + count - p);
                pieces.push_back({out_y * at.row + out_x, run});
                p += run;
            }
            float* sums = scratch(Scratch::sums, size_t((end - row) * lanes));
            std::fill(sums, sums + (end - row) * lanes, 0.0f);
            float* input = scratch(Scratch::block, size_t(std::min(w.span, w.blocks() * w.block) * lanes + kLanes));
            std::vector<NonFinite> found;
            for (int64_t b = 0; b < w.blocks(); b++) {
                const int64_t first = b * w.block, stop = std::min(columns, first + w.block);
                float* to = input + first % w.span * lanes;
                kernels.fill(from, offset.data() + first, stop - first, pieces.data(), int(pieces.size()), lanes, !at.direct, to);
                if (!finite)
                    for (int64_t c = first; c < stop; c++)
                        for (int l = 0; l < count; l++)
                            if (!std::isfinite(to[(c - first) * lanes + l])) found.push_back({c, l});
                for (size_t chunk = first_chunk; chunk < last_chunk; chunk++)
                    for (const Segment* one = w.begin(chunk, b); one < w.end(chunk, b); one++)
                        kernels.tile(*one, input, sums + (w.chunks[chunk].row - row) * lanes, groups);
            }
            for (int64_t r = row; r < end && !found.empty(); r++)
                for (const NonFinite& one : found)  // 0 * inf is NaN, as in the dense convolution
                    if (!weight.bit(r, one.column)) sums[(r - row) * lanes + one.lane] = std::numeric_limits<float>::quiet_NaN();
            const int64_t at_y = (image * shape.outputs + row) * area + position;
            kernels.finish(sums, lanes, end - row, count, bias ? bias + row : nullptr, added ? added + at_y : nullptr, area, activation, y + at_y);
        });
    }
}

}  // namespace emp
