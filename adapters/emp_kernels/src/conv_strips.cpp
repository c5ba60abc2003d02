// Each output position reads its input where it lies.
#include <cmath>
#include <limits>

#include "conv.hpp"
#include "layout.hpp"

namespace emp {

constexpr int64_t kBandBytes = 512 << 10;  // of input: half of a second-level cache
constexpr int64_t kMostFetched = 16;       // cache lines for each row of a strip

void Conv::run_strips(const Given& given) const {
    const Kernels& kernels = given.kernels;
    const Layout& at = given.at;
    const Threads& threads = given.threads;
    const float *x = given.x, *bias = given.bias, *added = given.added;
    float* y = given.y;
    const int64_t area = at.out_h * at.out_w, rows = shape.outputs / shape.group, taps = shape.kernel[0] * shape.kernel[1];
    // what the taps of a channel read for one tile, so that the tiles of a block's channels stay in the first-level cache
    const int64_t floats = 4 * kLanes + (shape.kernel[0] - 1) * std::min<int64_t>(shape.dilation[0] * at.row, 5 * kLanes) + kLanes;
    std::call_once(strips_once_, [&] { strips_.arrange(weight, rows, taps * std::max<int64_t>(1, 10240 / floats)); });
    const std::vector<int64_t> offset = column_offsets(shape, at);
    std::vector<int32_t> where(size_t(weight.view().nonzeros));
    for (size_t i = 0; i < where.size(); i++) where[i] = int32_t(offset[strips_.column()[i]]);
    const int64_t channels = shape.channels * shape.group, room = kernels.max_groups * kLanes;
    const Cut cut(at.positions(), std::min(kernels.max_groups, 4));
    const int64_t reach = at.direct ? offset[size_t(taps - 1)] : 0;  // from where an output's input begins to where it ends, in a channel
    const int64_t most = std::max<int64_t>(1, kBandBytes / (shape.channels * 4 * kLanes * int64_t(sizeof(float))));  // tiles of a band
    const int64_t bands = std::min(cut.tiles, 2 * ((cut.tiles + 2 * most - 1) / (2 * most)));                        // even, for two threads
    float* phases = at.direct ? nullptr : scratch(Scratch::input, size_t(channels * at.plane + room));
    if (phases) std::fill(phases + channels * at.plane, phases + channels * at.plane + room, 0.0f);
    for (int64_t image = 0; image < given.images; image++) {
        const float* in = x + image * channels * at.height * at.width;
        const bool laid = !at.direct && lay_out(kernels, shape, at, in, phases, threads);
        const float* source = at.direct ? in : phases;
        const auto tile = [&](int64_t group, int64_t index, bool finite, Ahead& ahead) {
            const int64_t position = cut.begin(index) * kLanes, stop = std::min(cut.begin(index + 1) * kLanes, at.positions());
            const int groups = cut.width(index), lanes = groups * kLanes;
            float* sums = zeros(Scratch::sums, rows * lanes);
            const float* from = source + group * shape.channels * at.plane + position;
            for (int64_t b = 0; b < strips_.blocks(); b++) {
                const Strip& strip = strips_.strip(group, b);
                kernels.strip(strip, where.data() + strip.first, from, sums, groups, ahead);
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
                                   area, from_row(given.ending, group * rows), y + to);
            }
        };
        threads.each(bands * shape.group, [&](int64_t index) {
            const int64_t group = index % shape.group, band = index / shape.group, first = band * cut.tiles / bands, last = (band + 1) * cut.tiles / bands;
            // What all its tiles read is read once in the order in which memory gives it fastest, and stays in the second-level cache.
            const int64_t begin = cut.begin(first) * kLanes, end = std::min(cut.begin(last) * kLanes + reach, at.plane);
            const bool finite = laid || (at.direct && kernels.finite(source + group * shape.channels * at.plane + begin, end - begin, shape.channels, at.plane));
            // While it is computed, what the next band reads comes into that cache, where the image is larger than it. (Memory gives it in this time.)
            Ahead ahead = {};
            if (band + 1 < bands && shape.channels * at.plane * int64_t(sizeof(float)) > 2 * kBandBytes) {
                const int64_t next = cut.begin(last) * kLanes, stop = std::min(cut.begin((band + 2) * cut.tiles / bands) * kLanes + reach, at.plane);
                const int64_t lines = (stop - next + 15) / 16, visits = (last - first) * strips_.blocks() * rows;
                ahead = {source + group * shape.channels * at.plane + next, lines, lines, at.plane, int(std::min<int64_t>(kMostFetched, (lines * shape.channels + visits - 1) / visits))};
            }
            for (int64_t i = first; i < last; i++) tile(group, i, finite, ahead);
        });
    }
}

}  // namespace emp
