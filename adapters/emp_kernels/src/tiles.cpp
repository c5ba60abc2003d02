#include "tiles.hpp"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "bits.hpp"

namespace emp {
namespace {

constexpr int64_t kChunkRows = 128;

// What a row holds in a block.
struct Part {
    uint64_t bits[4];
    const float* value;
    int count;
};

// A pair: rows (relative), and how many columns both, only the first, only the second have.
struct Pair {
    uint16_t both, first, second, row, other;
};

struct Writer {
    uint16_t *head, *column;
    float* value;

    // The columns in `chosen`, and their values, which are found by their rank in `part`.
    void put(const Part& part, const uint64_t* chosen, int words) {
        int before = 0;
        for (int w = 0; w < words; w++) {
            for (uint64_t word = chosen[w]; word; word &= word - 1) {
                const int at = first_bit(word);
                *column++ = uint16_t(64 * w + at);
                *value++ = part.value[before + count_bits(part.bits[w] & ((uint64_t(1) << at) - 1))];
            }
            before += count_bits(part.bits[w]);
        }
    }
};

void arrange_singles(const std::vector<Part>& rows, int words, Writer& out) {
    std::vector<std::pair<int, uint16_t>> order;
    for (size_t r = 0; r < rows.size(); r++) order.push_back({rows[r].count, uint16_t(r)});
    std::sort(order.begin(), order.end());
    for (size_t i = 0, j; i < order.size(); i = j) {
        for (j = i; j < order.size() && order[j].first == order[i].first;) j++;
        *out.head++ = uint16_t(order[i].first), *out.head++ = uint16_t(j - i);
        for (size_t r = i; r < j; r++) {
            *out.head++ = order[r].second;
            out.put(rows[order[r].second], rows[order[r].second].bits, words);
        }
    }
}

void arrange_pairs(const std::vector<Part>& rows, int words, Writer& out) {
    const Part empty = {};
    std::vector<Pair> order;
    for (size_t r = 0; r < rows.size(); r += 2) {
        const Part& other = r + 1 < rows.size() ? rows[r + 1] : empty;
        int both = 0;
        for (int w = 0; w < words; w++) both += count_bits(rows[r].bits[w] & other.bits[w]);
        order.push_back({uint16_t(both), uint16_t(rows[r].count - both), uint16_t(other.count - both), uint16_t(r), uint16_t(r + 1)});
    }
    std::sort(order.begin(), order.end(), [](const Pair& a, const Pair& b) {
        return std::make_tuple(a.both, a.first, a.second, a.row) < std::make_tuple(b.both, b.first, b.second, b.row);
    });
    for (const Pair& pair : order) {
        for (uint16_t number : {pair.both, pair.first, pair.second, pair.row, pair.other}) *out.head++ = number;
        const Part& a = rows[pair.row];
        const Part& b = pair.other < rows.size() ? rows[pair.other] : empty;
        int before_a = 0, before_b = 0;
        uint64_t first[4], second[4];
        for (int w = 0; w < words; w++) {
            for (uint64_t word = a.bits[w] & b.bits[w]; word; word &= word - 1) {
                const uint64_t below = (uint64_t(1) << first_bit(word)) - 1;
                *out.column++ = uint16_t(64 * w + first_bit(word));
                *out.value++ = a.value[before_a + count_bits(a.bits[w] & below)];
                *out.value++ = b.value[before_b + count_bits(b.bits[w] & below)];
            }
            before_a += count_bits(a.bits[w]), before_b += count_bits(b.bits[w]);
            first[w] = a.bits[w] & ~b.bits[w], second[w] = b.bits[w] & ~a.bits[w];
        }
        out.put(a, first, words), out.put(b, second, words);
    }
}

}  // namespace

void Tiles::arrange(const Matrix& matrix, int64_t group_rows, bool narrow) {
    const View& view = matrix.view();
    const double density = matrix.density();
    // measured: docs/kernels.md
    pairs = density >= 0.3 && !narrow;
    block = pairs ? 64 : density >= 0.07 ? 128 : 192;
    max_groups = pairs ? 8 : 4;
    blocks_ = (view.columns + block - 1) / block;
    chunks.clear();
    for (int64_t group = 0; group < view.rows; group += group_rows)
        for (int64_t row = group; row < group + group_rows; row += kChunkRows)
            chunks.push_back({row, std::min(row + kChunkRows, group + group_rows)});
    segments_.clear();
    const size_t room = size_t(view.nonzeros) + 64;  // kernels fetch a little ahead
    Writer out = {head_.grow(size_t(view.rows) * 3 * size_t(blocks_) + 5 * chunks.size() * size_t(blocks_) + 64), column_.grow(room),
                  value_.grow(room)};
    std::vector<const float*> next;
    std::vector<Part> parts;
    const int words = int(block / 64);
    for (const Chunk& chunk : chunks) {
        next.clear();
        for (int64_t r = chunk.row; r < chunk.end; r++) next.push_back(view.values + view.offset[r]);
        for (int64_t b = 0; b < blocks_; b++) {
            parts.assign(next.size(), Part{});
            for (size_t r = 0; r < next.size(); r++) {
                parts[r].value = next[r];
                for (int w = 0; w < words && b * block + 64 * w < view.columns; w++) {
                    parts[r].bits[w] = matrix.bits(chunk.row + int64_t(r), b * block + 64 * w);
                    parts[r].count += count_bits(parts[r].bits[w]);
                }
                next[r] += parts[r].count;
            }
            segments_.push_back({out.head, out.column, out.value});
            if (pairs)
                arrange_pairs(parts, words, out);
            else
                arrange_singles(parts, words, out);
        }
    }
}

}  // namespace emp
