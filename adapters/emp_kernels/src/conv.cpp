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

struct NonFinite {
    int64_t column;
    int lane;
};

// Some output positions of one group: where their input lies, and how it is multiplied.
struct Tile {
    int64_t group, position, count, lanes;
    int groups;
    const float* from;
    std::vector<Piece> pieces;
};

// One image.
class Pass {
  public:
    Pass(const Kernels& kernels, const ConvShape& shape, const Matrix& weight, const Tiles& tiles, const Layout& at, const float* source, bool finite)
        : kernels(kernels), shape(shape), weight(weight), tiles(tiles), at(at), source(source), finite(finite), area(at.out_h * at.out_w),
          cut(area, std::min(kernels.max_groups, tiles.max_groups)), offset(size_t(weight.view().columns)) {
        std::vector<int64_t> tap;  // where its stretch begins, relative to that of the output position
        for (int64_t ky = 0; ky < shape.kernel[0]; ky++)
            for (int64_t kx = 0; kx < shape.kernel[1]; kx++) {
                const int64_t y = ky * shape.dilation[0], x = kx * shape.dilation[1];
                tap.push_back((y % shape.stride[0] * shape.stride[1] + x % shape.stride[1]) * at.phase + y / shape.stride[0] * at.row +
                              x / shape.stride[1]);
            }
        int64_t* next = offset.data();
        for (int64_t c = 0; c < shape.channels; c++)
            for (const int64_t one : tap) *next++ = c * at.plane + one;
    }

    int64_t count() const { return cut.tiles * shape.group; }

    Tile tile(int64_t index) const {
        Tile t = {};
        t.group = index % shape.group, t.groups = cut.width(index / shape.group), t.lanes = t.groups * kLanes;
        t.position = cut.begin(index / shape.group) * kLanes, t.count = std::min(t.lanes, area - t.position);
        t.from = source + t.group * shape.channels * at.plane;
        for (int64_t p = t.position, end = p + t.count, run; p < end; p += run) {
            const int64_t out_y = p / at.out_w, out_x = p % at.out_w;
            run = at.out_w == at.row ? end - p : std::min(at.out_w - out_x, end - p);
            t.pieces.push_back({out_y * at.row + out_x, run});
        }
        return t;
    }

    // Columns [from, to) of the tile's input, and which of it is not finite.
    void fill(const Tile& t, int64_t from, int64_t to, float* out, std::vector<NonFinite>& found) const {
        kernels.fill(t.from, offset.data() + from, to - from, t.pieces.data(), int(t.pieces.size()), t.lanes, out);
        for (int64_t c = from; c < to && !finite; c++)
            for (int l = 0; l < t.count; l++)
                if (!std::isfinite(out[(c - from) * t.lanes + l])) found.push_back({c, l});
    }

    // What a block of columns adds to a chunk of rows; `input` begins with the block's span.
    void multiply(const Tile& t, size_t chunk, int64_t block, const float* input, float* sums) const {
        for (const Segment* one = tiles.begin(chunk, block); one < tiles.end(chunk, block); one++) kernels.tile(*one, input, sums, t.groups);
    }

    void finish(const Tile& t, int64_t row, int64_t end, float* sums, const std::vector<NonFinite>& found, const float* bias, const float* added,
                Activation activation, float* y) const {
        for (int64_t r = row; r < end && !found.empty(); r++)
            for (const NonFinite& one : found)  // 0 * inf is NaN, as in the dense convolution
                if (!weight.bit(r, one.column)) sums[(r - row) * t.lanes + one.lane] = std::numeric_limits<float>::quiet_NaN();
        const int64_t first = row * area + t.position;
        kernels.finish(sums, int(t.lanes), end - row, t.count, bias ? bias + row : nullptr, added ? added + first : nullptr, area, activation,
                       y + first);
    }

  private:
    const Kernels& kernels;
    const ConvShape& shape;
    const Matrix& weight;
    const Tiles& tiles;
    const Layout& at;
    const float* source;
    bool finite;
    int64_t area;
    Cut cut;
    std::vector<int64_t> offset;
};

float* zeros(Scratch purpose, int64_t size) {
    float* made = scratch(purpose, size_t(size));
    std::fill(made, made + size, 0.0f);
    return made;
}

}  // namespace

void Conv::run(const Kernels& kernels, const float* x, int64_t images, int64_t height, int64_t width, const float* bias, const float* added,
               Activation activation, float* y, const Threads& threads) const {
    const Layout at(shape, height, width);
    const int64_t area = at.out_h * at.out_w, rows = shape.outputs / shape.group, columns = weight.view().columns;
    if (images == 0 || area <= 0 || shape.outputs == 0) return;
    std::call_once(once_, [&] { tiles_.arrange(weight, rows); });
    const Tiles& w = tiles_;
    const int64_t channels = shape.channels * shape.group, chunks = int64_t(w.chunks.size()) / shape.group;
    float* phases = at.direct ? nullptr : scratch(Scratch::input, size_t(channels * at.plane));
    for (int64_t image = 0; image < images; image++) {
        const float* in = x + image * channels * height * width;
        std::atomic<bool> finite{true};
        threads.ranges(channels, std::max<int64_t>(1, 8192 / std::max<int64_t>(at.plane, 1)), 16, [&](int64_t from, int64_t to) {
            bool all = true;
            if (at.direct)
                all = kernels.finite(in + from * at.plane, (to - from) * at.plane);
            else
                for (int64_t c = from; c < to; c++) all = split_channel(kernels, shape, at, in + c * height * width, phases + c * at.plane) && all;
            if (!all) finite = false;
        });
        const Pass pass(kernels, shape, weight, w, at, at.direct ? in : phases, finite);
        const float* others = added ? added + image * shape.outputs * area : nullptr;
        float* out = y + image * shape.outputs * area;
        // With many tiles each thread does whole ones; with few, all threads fill one together, and then each does some rows.
        if (pass.count() >= 8) {
            threads.each(pass.count(), [&](int64_t index) {
                const Tile t = pass.tile(index);
                float *sums = zeros(Scratch::sums, rows * t.lanes), *input = scratch(Scratch::block, size_t(std::min(w.span, w.blocks() * w.block) * t.lanes));
                std::vector<NonFinite> found;
                const size_t first = size_t(t.group * chunks);
                for (int64_t b = 0; b < w.blocks(); b++) {
                    const int64_t from = b * w.block;
                    pass.fill(t, from, std::min(columns, from + w.block), input + from % w.span * t.lanes, found);
                    for (size_t c = first; c < first + size_t(chunks); c++)
                        pass.multiply(t, c, b, input, sums + (w.chunks[c].row - t.group * rows) * t.lanes);
                }
                pass.finish(t, t.group * rows, (t.group + 1) * rows, sums, found, bias, others, activation, out);
            });
            continue;
        }
        for (int64_t index = 0; index < pass.count(); index++) {
            const Tile t = pass.tile(index);
            float* input = scratch(Scratch::block, size_t(columns * t.lanes));
            std::vector<NonFinite> found;
            std::mutex adding;
            threads.ranges(columns, 256, 16, [&](int64_t from, int64_t to) {
                std::vector<NonFinite> here;
                pass.fill(t, from, to, input + from * t.lanes, here);
                const std::lock_guard<std::mutex> lock(adding);
                found.insert(found.end(), here.begin(), here.end());
            });
            threads.each(chunks, [&](int64_t c) {
                const size_t chunk = size_t(t.group * chunks + c);
                const auto [row, end] = w.chunks[chunk];
                float* sums = zeros(Scratch::sums, (end - row) * t.lanes);
                for (int64_t b = 0; b < w.blocks(); b++) pass.multiply(t, chunk, b, input + b * w.block / w.span * w.span * t.lanes, sums);
                pass.finish(t, row, end, sums, found, bias, others, activation, out);
            });
        }
    }
}

}  // namespace emp
