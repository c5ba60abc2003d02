#include "tiles.hpp"

#include <algorithm>
#include <array>

#include "bits.hpp"

namespace emp {
namespace {

constexpr double kDense = 0.3;       // measured, as what follows: docs/kernels.md
constexpr int64_t kChunkRows = 512;  // at most; a block of columns is read once for each chunk
constexpr int64_t kReach = 256;      // columns that one byte counts

// A nonzero of a row within a span, or two of a pair of rows.
struct Item {
    uint16_t column;  // of the span
    float value, other;
};

// Items that wait for their turn: those from `next` on.
struct Queue {
    std::vector<Item> items;
    size_t next = 0;
    size_t waiting() const { return items.size() - next; }
    void clear() { items.clear(), next = 0; }
};

struct Row {
    std::vector<uint16_t> column;  // of the span
    const float* value;            // of the first
    size_t next;                   // that no queue has seen
    std::vector<Item> late;        // what came too late for its turn
    bool before(int64_t stop) const { return next < column.size() && column[next] < stop; }
    Item take() {
        const Item item = {column[next], value[next], 0.0f};
        next++;
        return item;
    }
};

// A row, or two: what both have, what the first has, what the second has.
struct Member {
    Row *one, *two;  // two may be null
    Queue both, first, second;

    void take(int64_t stop) {
        if (two)
            while (one->before(stop) && two->before(stop)) {
                const uint16_t left = one->column[one->next], right = two->column[two->next];
                if (left == right) {
                    const Item other = two->take();
                    both.items.push_back(one->take()), both.items.back().other = other.value;
                } else {
                    left < right ? first.items.push_back(one->take()) : second.items.push_back(two->take());
                }
            }
        while (one->before(stop)) first.items.push_back(one->take());
        while (two && two->before(stop)) second.items.push_back(two->take());
    }
    // What lies before `base` waits no more.
    void drop(int64_t base) {
        const auto leave = [&](Queue& queue, auto&& late) {
            for (; queue.waiting() && queue.items[queue.next].column < base; queue.next++) late(queue.items[queue.next]);
        };
        leave(first, [&](const Item& item) { one->late.push_back(item); });
        leave(second, [&](const Item& item) { two->late.push_back(item); });
        leave(both, [&](const Item& item) { one->late.push_back(item), two->late.push_back({item.column, item.other, 0.0f}); });
    }
    std::array<uint16_t, 3> units() const {
        return {uint16_t(both.waiting() / kPairUnit), uint16_t(first.waiting() / kPairUnit), uint16_t(second.waiting() / kPairUnit)};
    }
};

struct Writer {
    uint16_t *head, *rest;
    uint8_t* column;
    float* value;
    // So many items, from a base on, in units of 4 where there are two values of each.
    void add(Queue& queue, size_t count, int64_t base, bool two) {
        for (size_t i = 0; i < count; i++, queue.next++) {
            const Item& item = queue.items[queue.next];
            *column++ = uint8_t(item.column - base), *value++ = item.value;
            if (!two || i % kPairUnit != kPairUnit - 1) continue;
            for (size_t k = queue.next - kPairUnit + 1; k <= queue.next; k++) *value++ = queue.items[k].other;
        }
    }
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

void Tiles::arrange(const Matrix& matrix, int64_t group_rows, bool pairs) {
    const View& view = matrix.view();
    const bool dense = matrix.density() >= kDense;
    pairs = pairs && dense;
    block = dense ? 64 : 128;
    span = 16 * block;
    max_groups = dense ? 8 : 4;
    fetch_ahead = dense;
    blocks_ = (view.columns + block - 1) / block;
    chunks.clear();
    const int64_t parts = 2 * ((group_rows + 2 * kChunkRows - 1) / (2 * kChunkRows));  // even, so that two threads have as many
    int64_t chunk_rows = std::max<int64_t>(1, (group_rows + parts - 1) / std::max<int64_t>(1, parts));
    chunk_rows += pairs && chunk_rows % 2;
    for (int64_t group = 0; group < view.rows; group += group_rows)
        for (int64_t row = group; row < group + group_rows; row += chunk_rows)
            chunks.push_back({row, std::min(row + chunk_rows, group + group_rows)});
    segments_.clear(), first_.clear();
    const size_t room = size_t(view.nonzeros) + 64;  // kernels fetch a little ahead
    // each head of up to four numbers stands for a unit, or for a pair in a block, or for the rest of a row in a span
    const size_t spans = size_t((view.columns + span - 1) / span), paired = pairs ? size_t(blocks_ * (view.rows + int64_t(chunks.size()))) : 0;
    Writer out = {head_.grow(3 * (size_t(view.nonzeros) / kUnit + size_t(view.rows) * spans) + 2 * paired + 64), rest_.grow(room), column_.grow(room),
                  value_.grow(room)};
    Buffer<float> moved;
    const float* values = matrix.values(moved);
    std::vector<Row> rows(static_cast<size_t>(chunk_rows));
    std::vector<Member> members;
    std::vector<std::pair<int, uint16_t>> counts;
    std::vector<std::pair<std::array<uint16_t, 3>, uint16_t>> order;
    for (const Chunk& chunk : chunks) {
        const size_t size = size_t(chunk.end - chunk.row);
        members.clear();
        for (size_t r = 0; r < size; r += pairs ? 2 : 1) members.push_back({&rows[r], pairs && r + 1 < size ? &rows[r + 1] : nullptr, {}, {}, {}});
        for (size_t r = 0; r < size; r++) rows[r].value = values + view.offset[chunk.row + int64_t(r)];
        for (int64_t b = 0; b < blocks_; b++) {
            const int64_t start = b * block / span * span, stop = (b + 1) * block - start;  // of the span; of the block, in the span
            const int64_t base = std::max<int64_t>(0, stop - kReach);
            if (start == b * block)
                for (size_t r = 0; r < size; r++) {
                    list(matrix, chunk.row + int64_t(r), start, std::min(start + span, view.columns), rows[r].column);
                    rows[r].next = 0, rows[r].late.clear();
                }
            first_.push_back(segments_.size());
            Segment segment = {out.head, nullptr, out.column, nullptr, out.value, base, pairs};
            for (Member& member : members) member.take(stop), member.drop(base);
            if (pairs) {
                order.clear();
                for (size_t m = 0; m < members.size(); m++) order.push_back({members[m].units(), uint16_t(m)});
                std::sort(order.begin(), order.end());  // so that loops end where the processor foresees it
                for (const auto& [units, m] : order) {
                    if (units == std::array<uint16_t, 3>{}) continue;
                    *out.head++ = uint16_t(2 * m), out.head = std::copy(units.begin(), units.end(), out.head);
                    out.add(members[m].both, units[0] * kPairUnit, base, true);
                    out.add(members[m].first, units[1] * kPairUnit, base, false), out.add(members[m].second, units[2] * kPairUnit, base, false);
                }
            } else {
                counts.clear();
                for (size_t m = 0; m < members.size(); m++)
                    if (const size_t units = members[m].first.waiting() / kUnit) counts.push_back({int(units), uint16_t(m)});
                runs(out.head, counts, [&](size_t m, int units) { out.add(members[m].first, size_t(units) * kUnit, base, false); });
            }
            segment.end = out.head;
            if (segment.head < segment.end) segments_.push_back(segment);
            if (stop < span && b + 1 < blocks_) continue;
            for (Member& member : members) {
                member.drop(span);
                member.both.clear(), member.first.clear(), member.second.clear();
            }
            segment = {out.head, nullptr, nullptr, out.rest, out.value, 0, false};
            counts.clear();
            for (size_t r = 0; r < size; r++) {
                if (!rows[r].late.empty()) counts.push_back({int(rows[r].late.size()), uint16_t(r)});
                rows[r].value += rows[r].column.size();
            }
            runs(out.head, counts, [&](size_t r, int) {
                for (const Item& item : rows[r].late) *out.rest++ = item.column, *out.value++ = item.value;
            });
            segment.end = out.head;
            if (segment.head < segment.end) segments_.push_back(segment);
        }
    }
    first_.push_back(segments_.size());
}

void Strips::arrange(const Matrix& matrix, int64_t group_rows, int64_t block) {
    const View& view = matrix.view();
    block = std::min(block, kMost);
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
