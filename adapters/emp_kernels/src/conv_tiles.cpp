// A tile, 16 * groups output positions, is filled by plain copies of what each tap of the kernel reads.
#include <cmath>
#include <limits>

#include "conv.hpp"
#include "layout.hpp"

namespace emp {
namespace {

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
                const float* added, const Ending& ending, float* y) const {
        for (int64_t r = row; r < end && !found.empty(); r++)
            for (const NonFinite& one : found)  // 0 * inf is NaN, as in the dense convolution
                if (!weight.bit(r, one.column)) sums[(r - row) * t.lanes + one.lane] = std::numeric_limits<float>::quiet_NaN();
        const int64_t first = row * area + t.position;
        kernels.finish(sums, int(t.lanes), end - row, t.count, bias ? bias + row : nullptr, added ? added + first : nullptr, area, from_row(ending, row),
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

}  // namespace

void Conv::run_tiles(const Given& given) const {
    const Kernels& kernels = given.kernels;
    const Layout& at = given.at;
    const Threads& threads = given.threads;
    const float *x = given.x, *bias = given.bias, *added = given.added;
    float* y = given.y;
    const int64_t area = at.out_h * at.out_w, rows = shape.outputs / shape.group, columns = weight.view().columns;
    std::call_once(once_, [&] { tiles_.arrange(weight, rows, kernels.max_groups >= 8); });
    const Tiles& w = tiles_;
    const int64_t channels = shape.channels * shape.group, chunks = int64_t(w.chunks.size()) / shape.group;
    float* phases = at.direct ? nullptr : scratch(Scratch::input, size_t(channels * at.plane));
    for (int64_t image = 0; image < given.images; image++) {
        const float* in = x + image * channels * at.height * at.width;
        const bool finite = !at.direct && lay_out(kernels, shape, at, in, phases, threads);
        const Pass pass(kernels, shape, weight, w, at, at.direct ? in : phases, finite);
        float* out = y + image * shape.outputs * area;
        const float* also = added ? added + image * shape.outputs * area : nullptr;
        // With many tiles each thread does whole ones; with few, all threads fill one together, and then each does some rows.
        if (pass.count() >= 8 || pass.count() >= chunks) {
            threads.each(pass.count(), [&](int64_t index) {
                const Tile t = pass.tile(index);
                float *sums = zeros(Scratch::sums, (rows + 1) * t.lanes), *input = scratch(Scratch::block, size_t(std::min(w.span, w.blocks() * w.block) * t.lanes));
                std::vector<NonFinite> found;
                const size_t first = size_t(t.group * chunks);
                for (int64_t b = 0; b < w.blocks(); b++) {
                    const int64_t from = b * w.block;
                    pass.fill(t, from, std::min(columns, from + w.block), input + from % w.span * t.lanes, found);
                    for (size_t c = first; c < first + size_t(chunks); c++)
                        pass.multiply(t, c, b, input, sums + (w.chunks[c].row - t.group * rows) * t.lanes, nullptr);
                }
                pass.finish(t, t.group * rows, (t.group + 1) * rows, sums, found, bias, also, given.ending, out);
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
                float* sums = zeros(Scratch::sums, w.chunks[chunk].room() * t.lanes);
                for (int64_t b = 0; b < w.blocks(); b++) {
                    const float* next = w.fetch_ahead ? input + (b + 1 < w.blocks() ? b + 1 : 0) * w.block * t.lanes : nullptr;
                    pass.multiply(t, chunk, b, input + b * w.block / w.span * w.span * t.lanes, sums, next);
                }
                pass.finish(t, row, end, sums, found, bias, also, given.ending, out);
            });
        }
    }
}

}  // namespace emp
