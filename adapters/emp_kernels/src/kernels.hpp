// The kernels of one instruction set, as a table of functions; one table is chosen when the library is loaded.
#pragma once
#include "cells.hpp"
#include "view.hpp"

namespace emp {

// What is behind Relu is made by few: Gelu, by erf and by tanh, by `from_lanes`; all by `finish` and `slide`, for what follows convolutions.
enum class Activation { none, relu, gelu, gelu_tanh, clip, leaky_relu, prelu, swish, hard_swish };

// An activation behind a convolution, with its numbers: the bounds of a clip; what a leaky relu multiplies with below 0, which is `low`, or `slope[row]`.
struct Ending {
    Activation activation;
    float low, high;
    const float* slope;
};

// Where results go: y[item * item_stride + row], plus bias[row] if there is one, then the activation. Only `from_lanes` looks at `added`: what lies as y
// does, and is added before the activation; or null.
struct Output {
    float* y;
    int64_t item_stride;
    const float* bias;
    Activation activation;
    const float* added = nullptr;
};

// A stretch of output positions whose input is contiguous: where it begins, and how long it is.
struct Piece {
    int64_t from, count;
};

// Pixels of some rows that belong to input lines of up to two phases. Of the one at out[even] lane i of row r is in[from + down * r + step * i], of the one
// at out[odd] it is one further; < 0: there is none. The next row's lines follow. Only pixels whose bit is chosen are read, others are 0: bit i of lane i,
// where step is 2 bit 2 i of the even line and bit 2 i + 1 of the odd one.
struct Pixels {
    int64_t from, down, even, odd, rows;
    uint32_t chosen;
};

// The greatest of lines of sums, one below the other, for a pool. Those of a row are numbered from the ones on that the tile above kept for it.
struct PooledLines {
    static constexpr int kMostKept = 8;
    int keep, count;
    struct Line {
        int first, lines;  // they become y[row * stride + at + lane]
        int64_t at;
    };
    Line line[8 + kMostKept];  // one for each line that ends it, and for the padding below the image
    unsigned lanes;
};

// Where the lines of a tile of sums go: y[row * stride + at + lane] for the chosen lanes, plus bias[row] and what is added there, then the ending.
// Bias and added may be null. Lines have one part, or two. Where they are pooled they have one, and nothing is added.
struct Landing {
    float* y;
    const float *added, *bias;
    int64_t stride;
    Ending ending;
    int bands;
    struct Line {
        int64_t at;
        unsigned lanes;
    };
    Line line[2][8];
    const PooledLines* pooled = nullptr;
    float* kept = nullptr;  // of each row
};

// Columns of 2 × 2 outputs, for Winograd's convolutions: bundles of `count` columns and `high` rows, one below the other.
struct TileColumns {
    int64_t top, left;    // the first pixel, which may lie before the image: what lies around that is 0
    int64_t rows, begun;  // of tiles; of them before this in the first bundle
    int64_t high, bundle; // rows of a bundle; floats from one to the next
    int count;
};

constexpr int kLanes = 16;     // columns of a tile come in groups of 16, whatever the width of the registers
constexpr double kPickFrom = 0.11, kPickBelow = 0.21;  // densities; measured: docs/kernels.md
constexpr int kWinogradRows = 32;  // outputs whose weights are transformed together
// Floats from one of 16 places to the next: an odd number of cache lines, so that no two places want the same ones of the first level.
static inline int64_t winograd_place(int64_t floats) { return ((floats + 15) / 16 | 1) * 16; }
constexpr int kMaxItems = 8;   // items that `dot` takes at once

// One item: y[row] of rows [row, end); x begins on a cache line, and is zero from `columns` up to the next multiple of 64.
using Pick = void (*)(const View&, int64_t row, int64_t end, const float* x, const Output&);

struct Kernels {
    const char* name;
    int max_groups;  // of 16 columns in a tile, so that its sums fit the registers
    bool (*supported)();
    double gather_below;  // the density below which `gather` is faster than `dot` for one item, where nothing picks
    // What is faster than both from `kPickFrom` to `kPickBelow`, or null where the processor has no such instructions.
    Pick (*pick)();

    // Few items: the weights are decoded in registers, 8 at a time. x[item * stride + column], zero from `columns` up to the next multiple of 64.
    void (*dot)(const View&, int64_t row, int64_t end, const float* x, int64_t stride, int items, const Output&);
    // One item, very sparse rows; needs the list of columns.
    void (*gather)(const View&, int64_t row, int64_t end, const float* x, const Output&);
    // Many items: sums[row] += weight[row, columns of the segment] * x; x[column of the span] and sums[row] hold 16 * groups floats, aligned.
    // `next` is what will be read after this, and is fetched on the way; or null.
    void (*tile)(const Segment&, const float* x, float* sums, int groups, const float* next);
    // The same with x read where it lies: x[at[i] + lane] is what the i-th value of the strip is multiplied with.
    void (*strip)(const Strip&, const int32_t* at, const float* x, float* sums, int groups, Ahead&);
    // out[c * lanes + i] = in[i * stride + c] for i < items, zeros for items ≤ i < lanes; c in [from, to). Whether all are finite.
    bool (*to_lanes)(const float* in, int64_t stride, int items, int lanes, int64_t from, int64_t to, float* out);
    // The way back: y[i * item_stride + row] for i < items, with bias, what is added, and activation; tile[(row - first) * lanes + i].
    void (*from_lanes)(const float* tile, int lanes, int items, int64_t row, int64_t end, const Output&);
    // y[r * y_stride + i] = ending(tile[r * lanes + i] + bias[r] + added[r * y_stride + i]) for r < rows, i < count; bias and added may be null.
    void (*finish)(const float* tile, int lanes, int64_t rows, int64_t count, const float* bias, const float* added, int64_t y_stride, const Ending&,
                   float* y);
    // One channel [height, width] of an image, every `step`-th pixel of a row from `first` on, into rows of `stride` floats with zeros around:
    // `left` before, up to the end of the row behind. Whether all that were read are finite.
    bool (*lay)(const float* in, int64_t height, int64_t width, int64_t in_stride, int64_t step, int64_t left, int64_t stride, float* out);
    // Columns of an image, gathered for a tile: for each offset the pieces, one behind the other, and `lanes` from one offset to the next.
    // What lies behind the last piece in its register becomes 0; registers behind that are not written.
    void (*fill)(const float* in, const int64_t* offset, int64_t count, const Piece*, int pieces, int64_t lanes, float* out);
    // y[i] = the greatest of in[i + width * r] for r < rows, i < width.
    void (*pool_down)(const float* in, int64_t rows, int64_t width, float* y);
    // y[i] = the greatest of line[i * step] to line[i * step + taps - 1] for i < out; 32 * step floats behind the last one needed may be read.
    void (*pool_across)(const float* line, int64_t taps, int64_t step, int64_t out, float* y);
    // Lines of each channel of an image, from `count` pixels of rows; `plane` and `stride` from one channel to the next. Each has as many parts as there are
    // `bands`, one behind the other in the list, whose rows are as many and whose lanes do not overlap. Two phases only where step is 2. Whether all that
    // were read are finite.
    bool (*lines)(const float* in, int64_t channels, int64_t plane, const Pixels*, int count, int bands, int64_t step, int64_t stride, float* out);
    // A block of channels, multiplied with a tile of `lines` lines of sums, at most 8, whose bands have 16 lanes or 8; x begins with 8 lines of zeros.
    // sums[row] holds `lines` lines: what other blocks gave, or it is the `first`. They stay there, or go where `landing` says.
    void (*slide)(const Sweep&, const float* x, float* sums, bool first, int lines, int band, const Landing*);
    // Winograd's F(2 × 2, 3 × 3), of tiles of 2 × 2 outputs, 4 × 4 pixels, 16 places. At most `winograd_most` tiles go at once, as a bundle.
    int winograd_most;
    // Weights of kWinogradRows outputs: of each channel and tap a mask of these outputs, and the values that it has. out[place, channel, output].
    void (*winograd_weights)(const uint32_t* mask, const float* value, int64_t channels, float* out);
    // Some columns of tiles of a channel of an image; out[place, channel, winograd_room() tiles] of each bundle, of which one channel is written.
    void (*winograd_pixels)(const float* in, int64_t height, int64_t width, const TileColumns&, int64_t channels, float* out);
    // Outputs of a bundle, out[2 rows, kWinogradRows outputs, 2 * kLanes pixels], from weights and pixels as they are above; whether all are finite. There
    // is room for 16 * tiles * kWinogradRows floats and as many as `out` has.
    bool (*winograd_tiles)(const float* weights, const float* pixels, int64_t channels, int tiles, float* room, float* out);
    int winograd_room() const { return winograd_most > 8 ? 16 : 8; }
    // Whether all are finite: `count` of each row.
    bool (*finite)(const float* x, int64_t count, int64_t rows, int64_t stride);
    Cells cells;
};

// The best one that this processor has, or the one named by the environment variable EMP_KERNELS_ISA if this processor has it.
const Kernels& kernels();
// By name, or null: "avx512", "avx2", "neon", "portable".
const Kernels* kernels(const char* name);

}  // namespace emp
