// Weights of a convolution whose sums slide: arranged by how far to the right of its output each tap reads.
#pragma once
#include "image.hpp"
#include "matrix.hpp"

namespace emp {

constexpr int kMostLines = 8;    // of sums in a tile
constexpr double kPairs = 0.18;   // the density from which on rows go in pairs, where registers suffice; measured: docs/kernels.md

// Where what a row's columns multiply lies, whatever the size of the image.
struct Places {
    struct Tap {
        int64_t line;  // in a channel
        int slide;
    };
    std::vector<Tap> taps;
    int slides = 1;      // lanes by which the furthest tap reads to the right, and 1
    int64_t stride = 0;  // lines from one channel to the next in a tile of input, whatever its height
};

// Where the taps of a convolution read, for tiles of lines. A line is 16 neighbouring pixels of a phase (image.hpp), or 8 of one half of the image and
// 8 of the other; a tile is up to kMostLines of sums, one below the other. What a tap reads for it are as many lines, further down or of another phase:
// what a tap reads further to the right comes to its lane by moving the sums.
struct Sliding : Places {
    // `shifted`: instead of moving sums, lines are laid once for each column of taps. That takes the more room the more columns there are, but no
    // lanes are lost.
    Sliding(const ConvShape&, const Layout&, bool shifted);

    bool shifted;
    int band;          // lanes of a line that lie in one row of the output: 16, or 8
    int64_t valid;     // outputs of a band
    int64_t segments;  // of `valid` outputs in a row
    int64_t lines;     // of sums in a segment, all below each other

    struct Phase {
        int64_t y, x;   // its first pixel in the padded image; where lines are shifted x is that of a tap
        int64_t first;  // its first line in a channel
        int64_t more;   // lines that a tile of it has more than the tile of sums
    };
    std::vector<Phase> phases;
    // Lines of a channel's tile that are used, for `height` lines of sums.
    int64_t used(int64_t height) const;
    // The share of lanes that are outputs.
    double efficiency(const Layout&) const;
};

class Sweeps {
  public:
    // `channels`: of a block; `pairs`: of rows, so that what both multiply is loaded once.
    void arrange(const Matrix& weight, int64_t groups, const Places&, int64_t channels, bool pairs);

    int64_t block = 0;       // channels
    int64_t blocks = 0;
    int64_t chunk_rows = 0;  // the rows of a group come in chunks of so many
    int64_t chunks = 0;      // of a group
    const Sweep& sweep(int64_t group, int64_t block, int64_t chunk) const { return sweeps_[size_t((group * blocks + block) * chunks + chunk)]; }

  private:
    std::vector<Sweep> sweeps_;
    Buffer<uint16_t> fours_, place_;
    Buffer<float> value_;
};

}  // namespace emp
