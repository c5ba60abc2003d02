// A 3 × 3 convolution by Winograd's F(2 × 2, 3 × 3), where so many weights are left that 16 products in place of 36 are fewer than skipping saves.
#include <atomic>

#include "conv.hpp"

namespace emp {
namespace {

constexpr int64_t kPlaces = 16;                     // of a tile of 4 × 4 pixels
constexpr int64_t kBandBytes = 400 << 10;           // of a band's transformed pixels: they stay in the second-level cache
constexpr int64_t kLeastTiles = 48;                 // of a band, for which weights are read once
constexpr int64_t kOwnBands = 4;                    // from so many on, each thread does whole ones
constexpr int64_t kKeptBytes = 4 << 20;             // of transformed weights, up to which bands share them

// Rows of tiles of all images, one below the other, in bands of bundles.
struct Bands {
    int64_t down, across, rows;  // rows and columns of tiles in an image, rows in all
    int64_t deep, count;         // rows of a band
    int64_t wide, columns;       // tiles of a bundle's row; bundles beside each other
    Bands(const Layout& at, int64_t images, int64_t channels, int64_t most) : down((at.out_h + 1) / 2), across((at.out_w + 1) / 2), rows(images * down) {
        columns = (across + most - 1) / most, wide = (across + columns - 1) / columns, columns = (across + wide - 1) / wide;
        const int64_t tile = kPlaces * channels * int64_t(sizeof(float)), tiles = std::max(kLeastTiles, kBandBytes / std::max<int64_t>(1, tile));
        count = std::max<int64_t>(1, (rows * across + tiles / 2) / tiles), deep = (rows + count - 1) / count;
        if (columns == 1) deep = (deep + most / wide - 1) / (most / wide) * (most / wide);
        count = (rows + deep - 1) / deep;
    }
    int64_t width(int64_t column) const { return std::min(wide, across - column * wide); }
};

// Some rows of tiles, all of whose bundles but the last ones are as high.
struct Band {
    int64_t from, to, high, lines;  // rows of tiles, rows of a bundle; bundles below each other
    Band(const Bands& all, int64_t most, int64_t from, int64_t to) : from(from), to(to), high(all.columns == 1 ? most / all.wide : 1) {
        lines = (to - from + high - 1) / high, high = (to - from + lines - 1) / lines, lines = (to - from + high - 1) / high;
    }
};

class Pass {
  public:
    Pass(const Kernels& kernels, const ConvShape& shape, const Layout& at, const Winograd& w, const Bands& bands)
        : kernels(kernels), shape(shape), at(at), w(w), bands(bands), rows(shape.outputs / shape.group),
          bundle(kPlaces * winograd_place(shape.channels * kernels.winograd_room())) {}

    int64_t weight_room() const { return kPlaces * winograd_place(shape.channels * kWinogradRows); }
    int64_t pixel_room(const Band& band) const { return band.lines * bands.columns * bundle; }

    void weights(int64_t block, float* out) const {  // of all groups
        kernels.winograd_weights(w.mask(block / w.blocks, block % w.blocks), w.values(block / w.blocks, block % w.blocks), shape.channels, out);
    }
    // A channel of a group.
    void pixels(const Band& band, int64_t group, int64_t channel, const float* x, float* out) const {
        const int64_t plane = at.height * at.width;
        out += channel * kernels.winograd_room();
        for (int64_t row = band.from, next; row < band.to; row = next) {  // those of an image
            const int64_t image = row / bands.down, top = 2 * (row % bands.down), before = row - band.from;
            next = std::min(band.to, (image + 1) * bands.down);
            const float* in = x + ((image * shape.group + group) * shape.channels + channel) * plane;
            for (int64_t i = 0; i < bands.columns; i++) {
                const TileColumns columns = {top - shape.pad_begin[0], 2 * i * bands.wide - shape.pad_begin[1], next - row, before % band.high, band.high, bundle,
                                             int(bands.width(i))};
                kernels.winograd_pixels(in, at.height, at.width, columns, shape.channels, out + (i * band.lines + before / band.high) * bundle);
            }
        }
    }
    // Outputs of a block; whether all are finite.
    bool outputs(const Band& band, int64_t block, const float* u, const float* v, const Landing& to) const {
        constexpr int64_t kOut = 2 * 2 * kLanes * kWinogradRows, kSums = kPlaces * kLanes * kWinogradRows;
        const int64_t first = block / w.blocks * rows + block % w.blocks * kWinogradRows;
        float *room = scratch(Scratch::steps, size_t(kSums + 2 * kOut)), *made = room + kSums + kOut;
        bool finite = true;
        for (int64_t column = 0; column < bands.columns; column++)
            for (int64_t row = band.from; row < band.to; row += band.high, v += bundle) {
                const int64_t end = std::min(band.to, row + band.high), width = bands.width(column);
                finite = kernels.winograd_tiles(u, v, shape.channels, int(width * (end - row)), room, made) && finite;
                for (int64_t r = row; r < end; r++) land(r, column, block, first, made + 2 * (r - row) * width, to);
            }
        return finite;
    }

  private:
    // A row of tiles of a bundle, two of pixels.
    void land(int64_t row, int64_t column, int64_t block, int64_t first, const float* made, const Landing& to) const {
        const int64_t count = std::min<int64_t>(kWinogradRows, (block / w.blocks + 1) * rows - first), left = 2 * column * bands.wide;
        const int64_t image = row / bands.down, top = 2 * (row % bands.down), wide = std::min(at.out_w - left, 2 * bands.width(column));
        for (int64_t y = top; y < std::min(top + 2, at.out_h); y++, made += 2 * kLanes * kWinogradRows) {
            const int64_t place = (image * shape.outputs + first) * to.stride + y * at.out_w + left;
            kernels.finish(made, 2 * kLanes, count, wide, to.bias ? to.bias + first : nullptr, to.added ? to.added + place : nullptr, to.stride,
                           from_row(to.ending, first), to.y + place);
        }
    }

    const Kernels& kernels;
    const ConvShape& shape;
    const Layout& at;
    const Winograd& w;
    const Bands& bands;
    const int64_t rows;    // outputs of a group
    const int64_t bundle;  // floats
};

}  // namespace

bool Conv::run_winograd(const Given& given) const {
    const Layout& at = given.at;
    const Threads& threads = given.threads;
    std::call_once(winograd_once_, [&] { winograd_.arrange(weight, shape.group); });
    const int64_t most = given.kernels.winograd_most;
    const Bands bands(at, given.images, shape.channels * shape.group, most);
    const Pass pass(given.kernels, shape, at, winograd_, bands);
    const Landing to = {given.y, given.added, given.bias, at.out_h * at.out_w, given.ending, 0, {}};
    const int64_t blocks = winograd_.blocks * shape.group, room = pass.weight_room();
    std::atomic<bool> finite{true};
    if (bands.count >= kOwnBands) {
        const bool kept = blocks * room * int64_t(sizeof(float)) <= kKeptBytes;
        float* all = kept ? scratch(Scratch::sums, size_t(blocks * room)) : nullptr;
        if (kept) threads.each(blocks, [&](int64_t block) { pass.weights(block, all + block * room); });
        threads.each(bands.count, [&](int64_t i) {
            const Band band(bands, most, i * bands.deep, std::min(bands.rows, (i + 1) * bands.deep));
            float* v = scratch(Scratch::block, size_t(pass.pixel_room(band)));
            for (int64_t group = 0; group < shape.group; group++) {
                for (int64_t c = 0; c < shape.channels; c++) pass.pixels(band, group, c, given.x, v);
                for (int64_t block = group * winograd_.blocks; block < (group + 1) * winograd_.blocks; block++) {
                    float* u = kept ? all + block * room : scratch(Scratch::sums, size_t(room));
                    if (!kept) pass.weights(block, u);
                    if (!pass.outputs(band, block, u, v, to)) finite = false;
                }
            }
        });
        return finite;
    }
    const Band band(bands, most, 0, bands.rows);
    const int64_t of_group = pass.pixel_room(band);
    float* v = scratch(Scratch::block, size_t(of_group * shape.group));
    threads.ranges(shape.channels * shape.group, 16, 16, [&](int64_t from, int64_t to) {
        for (int64_t c = from; c < to; c++) pass.pixels(band, c / shape.channels, c % shape.channels, given.x, v + c / shape.channels * of_group);
    });
    threads.each(blocks, [&](int64_t block) {
        float* u = scratch(Scratch::sums, size_t(room));
        pass.weights(block, u);
        if (!pass.outputs(band, block, u, v + block / winograd_.blocks * of_group, to)) finite = false;
    });
    return finite;
}

}  // namespace emp
