// A tile, 16 * groups output positions, is filled by plain copies of what each tap of the kernel reads.
#include "conv.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

namespace emp {
namespace {

// Whether all that was read is finite; what no tap reads is left out.
bool split_channel(const Kernels& kernels, const ConvShape& s, const Layout& at, const float* in, float* out) {
    bool finite = true;
    const int64_t step_y = s.stride[0], step_x = s.stride[1];
    for (int64_t py = 0; py < step_y; py++)
        for (int64_t px = 0; px < step_x; px++) {
            if (!at.used[0][size_t(py)] || !at.used[1][size_t(px)]) continue;
            const auto [top, left, height, width, y, x] = Inside(s, at, py, px);
            float* phase = out + (py * step_x + px) * at.phase;
            std::fill(phase, phase + top * at.row, 0.0f);
            if (!kernels.lay(in + y * at.width + x, height, width, step_y * at.width, step_x, left, at.row, phase + top * at.row)) finite = false;
            std::fill(phase + (top + height) * at.row, phase + at.phase, 0.0f);
        }
    return finite;
}

// The image split into `phases`; whether it is finite.
bool lay_out(const Kernels& kernels, const ConvShape& shape, const Layout& at, const float* in, float* phases, const Threads& threads) {
    std::atomic<bool> finite{true};
    threads.ranges(shape.channels * shape.group, std::max<int64_t>(1, 8192 / std::max<int64_t>(at.plane, 1)), 16, [&](int64_t from, int64_t to) {
        bool all = true;
        for (int64_t c = from; c < to; c++) all = split_channel(kernels, shape, at, in + c * at.height * at.width, phases + c * at.plane) && all;
        if (!all) finite = false;
    });
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
          cut(area, std::min(kernels.max_groups, tiles.max_groups)), offset(column_offsets(shape, at)) {}

    int64_t count() const { return cut.tiles * shape.group; }

    Tile tile(int64_t index) const {
        Tile t = {};
        t.group = index % shape.group, t.groups = cut.width(index / shape.group), t.lanes = t.groups * kLanes;
        t.position = cut.begin(index / shape.group) * kLanes, t.count = std::min(t.lanes, area - t.position);
        t.from = source + t.group * shape.channels * at.plane;
        t.pieces = pieces_of(at, t.position, t.position + t.count);
        return t;
    }

    // Columns [from, to) of the tile's input, and which of it is not finite.
    void fill(const Tile& t, int64_t from, int64_t to, float* out, std::vector<NonFinite>& found) const {
        kernels.fill(t.from, offset.data() + from, to - from, t.pieces.data(), int(t.pieces.size()), t.lanes, out);
        if (finite || (at.direct && kernels.finite(out, (to - from) * t.lanes, 1, 0))) return;
        for (int64_t c = from; c < to; c++)
            for (int l = 0; l < t.count; l++)
                if (!std::isfinite(out[(c - from) * t.lanes + l])) found.push_back({c, l});
    }

    // What a block of columns adds to a chunk of rows; `input` begins with the block's span.
    void multiply(const Tile& t, size_t chunk, int64_t block, const float* input, float* sums, const float* next) const {
        for (const Segment* one = tiles.begin(chunk, block); one < tiles.end(chunk, block); one++) kernels.tile(*one, input, sums, t.groups, next);
    }

    void finish(const Tile& t, int64_t row, int64_t end, float* sums, const std::vector<NonFinite>& found, const float* bias,
                const float* added, Activation activation, float* y) const {
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

// Copying a stretch is worth it if it is used often enough, or if it does not begin on a cache line: what is read across two lines takes twice
// as long. Measured: docs/kernels.md.
bool Conv::in_strips(const Layout& at, const float* x) const {
    const int64_t area = at.out_h * at.out_w, rows = shape.outputs / shape.group;
    const bool aligned = at.direct && shape.kernel[0] == 1 && shape.kernel[1] == 1 && at.plane % kLanes == 0 && reinterpret_cast<uintptr_t>(x) % 64 == 0;
    const double uses = weight.density() * double(rows);  // of a stretch, for a tile
    if (at.plane * shape.channels > INT32_MAX / 2 || area < 512) return false;
    return uses <= (aligned ? 10 : 4);
}

void Conv::run_strips(const Kernels& kernels, const Layout& at, const float* x, int64_t images, const float* bias,
                      const float* added, Activation activation, float* y, const Threads& threads) const {
    const int64_t area = at.out_h * at.out_w, rows = shape.outputs / shape.group, taps = shape.kernel[0] * shape.kernel[1];
    // what the taps of a channel read for one tile, so that the tiles of a block's channels stay in the first-level cache
    const int64_t floats = 4 * kLanes + (shape.kernel[0] - 1) * std::min<int64_t>(shape.dilation[0] * at.row, 5 * kLanes) + kLanes;
    std::call_once(strips_once_, [&] { strips_.arrange(weight, rows, taps * std::max<int64_t>(1, 10240 / floats)); });
    const std::vector<int64_t> offset = column_offsets(shape, at);
    std::vector<int32_t> where(size_t(weight.view().nonzeros));
    for (size_t i = 0; i < where.size(); i++) where[i] = int32_t(offset[strips_.column()[i]]);
    const int64_t channels = shape.channels * shape.group, room = kernels.max_groups * kLanes;
    const Cut cut(at.positions(), std::min(kernels.max_groups, 4));
    float* phases = at.direct ? nullptr : scratch(Scratch::input, size_t(channels * at.plane + room));
    if (phases) std::fill(phases + channels * at.plane, phases + channels * at.plane + room, 0.0f);
    for (int64_t image = 0; image < images; image++) {
        const float* in = x + image * channels * at.height * at.width;
        const bool laid = !at.direct && lay_out(kernels, shape, at, in, phases, threads);
        const float* source = at.direct ? in : phases;
        threads.each(cut.tiles * shape.group, [&](int64_t index) {
            const int64_t group = index % shape.group, tile = index / shape.group, position = cut.begin(tile) * kLanes;
            const int groups = cut.width(tile), lanes = groups * kLanes;
            const int64_t stop = std::min(position + lanes, at.positions());
            float* sums = zeros(Scratch::sums, rows * lanes);
            const float* from = source + group * shape.channels * at.plane + position;
            const bool finite = laid || (at.direct && kernels.finite(from, stop - position, shape.channels, at.plane));
            for (int64_t b = 0; b < strips_.blocks(); b++) {
                const Strip& strip = strips_.strip(group, b);
                kernels.strip(strip, where.data() + strip.first, from, sums, groups);
            }
            if (!finite)
                for (int64_t c = 0; c < weight.view().columns; c++)
                    for (int64_t l = 0; l < stop - position; l++)
                        if (!std::isfinite(from[offset[size_t(c)] + l]))
                            for (int64_t r = 0; r < rows; r++)
                                if (!weight.bit(group * rows + r, c)) sums[r * lanes + l] = std::numeric_limits<float>::quiet_NaN();
            const int64_t row = image * shape.outputs + group * rows;
            for (int64_t p = position, run; p < stop; p += run) {
                const int64_t out_y = p / at.row, out_x = p % at.row;
                run = at.out_w == at.row ? stop - p : std::min(at.row - out_x, stop - p);
                const int64_t count = at.out_w == at.row ? run : std::min(at.out_w - out_x, run), to = row * area + out_y * at.out_w + out_x;
                if (count > 0)
                    kernels.finish(sums + (p - position), lanes, rows, count, bias ? bias + group * rows : nullptr, added ? added + to : nullptr,
                                   area, activation, y + to);
            }
        });
    }
}

void Conv::run(const Kernels& kernels, const float* x, int64_t images, int64_t height, int64_t width, const float* bias,
               const float* added, Activation activation, float* y, const Threads& threads) const {
    const Layout at(shape, height, width);
    const int64_t area = at.out_h * at.out_w, rows = shape.outputs / shape.group, columns = weight.view().columns;
    if (images == 0 || area <= 0 || shape.outputs == 0) return;
    if (in_strips(at, x)) return run_strips(kernels, at, x, images, bias, added, activation, y, threads);
    std::call_once(once_, [&] { tiles_.arrange(weight, rows); });
    const Tiles& w = tiles_;
    const int64_t channels = shape.channels * shape.group, chunks = int64_t(w.chunks.size()) / shape.group;
    float* phases = at.direct ? nullptr : scratch(Scratch::input, size_t(channels * at.plane));
    for (int64_t image = 0; image < images; image++) {
        const float* in = x + image * channels * height * width;
        const bool finite = !at.direct && lay_out(kernels, shape, at, in, phases, threads);
        const Pass pass(kernels, shape, weight, w, at, at.direct ? in : phases, finite);
        float* out = y + image * shape.outputs * area;
        const float* also = added ? added + image * shape.outputs * area : nullptr;
        // With many tiles each thread does whole ones; with few, all threads fill one together, and then each does some rows.
        if (pass.count() >= 8 || pass.count() >= chunks) {
            threads.each(pass.count(), [&](int64_t index) {
                const Tile t = pass.tile(index);
                float *sums = zeros(Scratch::sums, rows * t.lanes), *input = scratch(Scratch::block, size_t(std::min(w.span, w.blocks() * w.block) * t.lanes));
                std::vector<NonFinite> found;
                const size_t first = size_t(t.group * chunks);
                for (int64_t b = 0; b < w.blocks(); b++) {
                    const int64_t from = b * w.block;
                    pass.fill(t, from, std::min(columns, from + w.block), input + from % w.span * t.lanes, found);
                    for (size_t c = first; c < first + size_t(chunks); c++)
                        pass.multiply(t, c, b, input, sums + (w.chunks[c].row - t.group * rows) * t.lanes, nullptr);
                }
                pass.finish(t, t.group * rows, (t.group + 1) * rows, sums, found, bias, also, activation, out);
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
                for (int64_t b = 0; b < w.blocks(); b++) {
                    const float* next = w.fetch_ahead ? input + (b + 1 < w.blocks() ? b + 1 : 0) * w.block * t.lanes : nullptr;
                    pass.multiply(t, chunk, b, input + b * w.block / w.span * w.span * t.lanes, sums, next);
                }
                pass.finish(t, row, end, sums, found, bias, also, activation, out);
            });
        }
    }
}

}  // namespace emp
