#include "tiles.hpp"

#include <algorithm>

#include "bits.hpp"

namespace emp {
namespace {

constexpr int64_t kChunkRows = 256;  // at most; a block of columns is read once for each chunk
constexpr int64_t kReach = 256;  // columns that one byte counts

// The nonzeros of a row within a span: those from `next` to `end` wait for their turn, and those in `late` came too late for it.
struct Row {
    std::vector<uint16_t> column;  // of the span
    const float* value;            // of the first
    size_t next, end;
    std::vector<uint16_t> late;    // indices
};

struct Writer {
    uint16_t *head, *rest;
    uint8_t* column;
    float* value;
};

// `counts` of (count, row): heads in runs of equal counts, and `put(row, count)` in the same order.
template <typename Put>
void runs(uint16_t*& head, std::vector<std::pair<int, uint16_t>>& counts, Put&& put) {
    std::sort(counts.begin(), counts.end());
    for (size_t i = 0, j; i < counts.size(); i = j) {
        for (j = i; j < counts.size() && counts[j].first == counts[i].first;) j++;
        *head++ = uint16_t(counts[i].first), *head++ = uint16_t(j - i);
        for (size_t r = i; r < j; r++) *head++ = counts[r].second, put(counts[r].second, counts[r].first);
    }
}

// The nonzeros of columns [from, to), as columns counted from `from`.
void list(const Matrix& matrix, int64_t row, int64_t from, int64_t to, std::vector<uint16_t>& out) {
    out.clear();
    for (int64_t c = from; c < to; c += 64)
        for (uint64_t word = matrix.bits(row, c); word; word &= word - 1) {
            if (c + first_bit(word) >= to) break;
            out.push_back(uint16_t(c - from + first_bit(word)));
        }
}

}  // namespace

void Tiles::arrange(const Matrix& matrix, int64_t group_rows) {
    const View& view = matrix.view();
    const bool dense = matrix.density() >= 0.3;  // measured: docs/kernels.md
    block = dense ? 64 : 128;
    span = 16 * block;
    max_groups = dense ? 8 : 4;
    fetch_ahead = dense;
    blocks_ = (view.columns + block - 1) / block;
    chunks.clear();
    const int64_t pairs = (group_rows + 2 * kChunkRows - 1) / (2 * kChunkRows);  // so that two threads have as many
    const int64_t chunk_rows = std::max<int64_t>(1, (group_rows + 2 * pairs - 1) / std::max<int64_t>(1, 2 * pairs));
    for (int64_t group = 0; group < view.rows; group += group_rows)
        for (int64_t row = group; row < group + group_rows; row += chunk_rows)
            chunks.push_back({row, std::min(row + chunk_rows, group + group_rows)});
    segments_.clear(), first_.clear();
    const size_t room = size_t(view.nonzeros) + 64;  // kernels fetch a little ahead
    // each head of three numbers stands for a unit, or for the rest of a row in a span
    const size_t spans = size_t((view.columns + span - 1) / span);
    Writer out = {head_.grow(3 * (size_t(view.nonzeros) / kUnit + size_t(view.rows) * spans) + 64), rest_.grow(room), column_.grow(room),
                  value_.grow(room)};
    std::vector<Row> rows(size_t(std::min(kChunkRows, std::max<int64_t>(group_rows, 0))));
    std::vector<std::pair<int, uint16_t>> counts;
    for (const Chunk& chunk : chunks) {
        const size_t members = size_t(chunk.end - chunk.row);
        for (size_t r = 0; r < members; r++) rows[r].value = view.values + view.offset[chunk.row + int64_t(r)];
        for (int64_t b = 0; b < blocks_; b++) {
            const int64_t start = b * block / span * span, stop = (b + 1) * block - start;  // of the span; of the block, in the span
            const int64_t base = std::max<int64_t>(0, stop - kReach);
            if (start == b * block)
                for (size_t r = 0; r < members; r++) {
                    list(matrix, chunk.row + int64_t(r), start, std::min(start + span, view.columns), rows[r].column);
                    rows[r].next = rows[r].end = 0;
                    rows[r].late.clear();
                }
            first_.push_back(segments_.size());
            Segment segment = {out.head, nullptr, out.column, nullptr, out.value, base};
            counts.clear();
            for (size_t r = 0; r < members; r++) {
                Row& row = rows[r];
                while (row.end < row.column.size() && row.column[row.end] < stop) row.end++;
                while (row.next < row.end && row.column[row.next] < base) row.late.push_back(uint16_t(row.next++));
                const size_t units = (row.end - row.next) / kUnit;
                if (units) counts.push_back({int(units), uint16_t(r)});
            }
            runs(out.head, counts, [&](size_t r, int units) {
                Row& row = rows[r];
                for (int i = 0; i < units * kUnit; i++, row.next++)
                    *out.column++ = uint8_t(row.column[row.next] - base), *out.value++ = row.value[row.next];
            });
            segment.end = out.head;
            if (segment.head < segment.end) segments_.push_back(segment);
            if (stop < span && b + 1 < blocks_) continue;
            segment = {out.head, nullptr, nullptr, out.rest, out.value, 0};
            counts.clear();
            for (size_t r = 0; r < members; r++) {
                Row& row = rows[r];
                while (row.next < row.end) row.late.push_back(uint16_t(row.next++));
                if (!row.late.empty()) counts.push_back({int(row.late.size()), uint16_t(r)});
            }
            runs(out.head, counts, [&](size_t r, int) {
                for (const uint16_t i : rows[r].late) *out.rest++ = rows[r].column[i], *out.value++ = rows[r].value[i];
            });
            segment.end = out.head;
            if (segment.head < segment.end) segments_.push_back(segment);
            for (size_t r = 0; r < members; r++) rows[r].value += rows[r].column.size();
        }
    }
    first_.push_back(segments_.size());
}

void Strips::arrange(const Matrix& matrix, int64_t group_rows, int64_t block) {
    const View& view = matrix.view();
    blocks_ = (view.columns + block - 1) / block;
    strips_.clear();
    const size_t room = size_t(view.nonzeros) + 64;
    uint16_t *head = head_.grow(3 * size_t(view.rows * blocks_) + 64), *column = column_.grow(room);
    float* value = value_.grow(room);
    std::vector<std::vector<uint16_t>> columns(static_cast<size_t>(group_rows));
    std::vector<std::pair<int, uint16_t>> counts;
    for (int64_t group = 0; group < view.rows; group += group_rows) {
        std::vector<const float*> next;
        for (int64_t r = 0; r < group_rows; r++) next.push_back(view.values + view.offset[group + r]);
        for (int64_t from = 0; from < view.columns; from += block) {
            counts.clear();
            for (size_t r = 0; r < columns.size(); r++) {
                list(matrix, group + int64_t(r), from, std::min(from + block, view.columns), columns[r]);
                if (!columns[r].empty()) counts.push_back({int(columns[r].size()), uint16_t(r)});
            }
            Strip strip = {head, nullptr, value, size_t(value - value_.data())};
            runs(head, counts, [&](size_t r, int) {
                for (const uint16_t c : columns[r]) *column++ = uint16_t(from + c), *value++ = *next[r]++;
            });
            strip.end = head;
            strips_.push_back(strip);
        }
    }
}

}  // namespace emp
