// A matrix arranged in segments, for products with many items at once.
#pragma once
#include "matrix.hpp"

namespace emp {

class Tiles {
  public:
    // `group_rows`: a segment's rows never cross a multiple of it. `pairs`: of rows, where that is faster, so that what both multiply is loaded once.
    void arrange(const Matrix& matrix, int64_t group_rows, bool pairs);

    struct Chunk {
        int64_t row, end;
        int64_t room() const { return end - row + 1; }  // rows of sums: an odd last one may have another one behind it
    };
    int64_t block = 0;   // columns that a segment adds to those before
    int64_t span = 0;    // columns after which nothing waits any more; a multiple of `block`
    int max_groups = 0;  // of 16 items, so that a block of their tile stays in the first-level cache
    bool fetch_ahead = false;  // whether it pays to fetch the next block while one is computed
    std::vector<Chunk> chunks;
    // The segments of a chunk that belong to the columns from `block * index` on.
    const Segment* begin(size_t chunk, int64_t index) const { return segments_.data() + first_[chunk * size_t(blocks_) + size_t(index)]; }
    const Segment* end(size_t chunk, int64_t index) const { return segments_.data() + first_[chunk * size_t(blocks_) + size_t(index) + 1]; }
    int64_t blocks() const { return blocks_; }

  private:
    int64_t blocks_ = 0;
    std::vector<Segment> segments_;
    std::vector<size_t> first_;
    Buffer<uint16_t> head_, rest_;
    Buffer<uint8_t> column_;
    Buffer<float> value_;
};

// A matrix arranged in strips.
class Strips {
  public:
    static constexpr int64_t kMost = 65535;  // rows of a group, and columns of a block, which are counted in 16 bits
    // `block`: columns of a strip. At most kMost rows.
    void arrange(const Matrix& matrix, int64_t group_rows, int64_t block);

    int64_t blocks() const { return blocks_; }
    // The strip of all rows of a group.
    const Strip& strip(int64_t group, int64_t block) const { return strips_[size_t(group * blocks_ + block)]; }
    // The column of each value.
    const uint16_t* column() const { return column_.data(); }

  private:
    int64_t blocks_ = 0;
    std::vector<Strip> strips_;
    Buffer<uint16_t> head_, column_;
    Buffer<float> value_;
};

// Items cut into tiles of at most `most` groups of 16, as equal as can be.
struct Cut {
    int64_t groups, tiles;
    Cut(int64_t items, int most) : groups((items + 15) / 16), tiles((groups + most - 1) / most) {}
    // The first group of a tile; of `tiles`, the end.
    int64_t begin(int64_t tile) const { return tile * groups / tiles; }
    int width(int64_t tile) const { return int(begin(tile + 1) - begin(tile)); }
    int widest() const { return tiles ? int((groups + tiles - 1) / tiles) : 0; }
};

}  // namespace emp
