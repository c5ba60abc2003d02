#include "matrix.hpp"

#include <algorithm>

#include "bits.hpp"

namespace emp {
namespace {

// Beyond these a shape is a lie, and what is made for each row would fill the memory.
constexpr int64_t kMost = int64_t(1) << 40, kMostSide = int64_t(1) << 24;

std::string check(int64_t rows, int64_t columns, size_t bytes, size_t count) {
    std::string wrong = check_shape(rows, columns, bytes);
    if (wrong.empty() && count > uint64_t(rows) * uint64_t(columns))
        wrong = "must have at most as many values as elements, got " + std::to_string(count);
    return wrong;
}

std::string disagree(uint64_t counted, size_t count) {
    return "must have as many values as bits set in its mask (" + std::to_string(counted) + "), got " + std::to_string(count);
}

}  // namespace

std::string check_shape(int64_t rows, int64_t columns, size_t bytes) {
    if (rows < 0 || columns < 0 || (columns && rows > kMost / columns))
        return "must have a shape of at most 2^40 elements, got " + std::to_string(rows) + " x " + std::to_string(columns);
    if (std::max(rows, columns) > kMostSide)
        return "must have at most 2^24 outputs and inputs, got " + std::to_string(rows) + " and " + std::to_string(columns);
    const uint64_t needed = (uint64_t(rows) * uint64_t(columns) + 7) / 8;
    return bytes == needed ? "" : "must have a mask of " + std::to_string(needed) + " bytes, got " + std::to_string(bytes);
}

std::string Matrix::bind(int64_t rows, int64_t columns, const uint8_t* bits, size_t bytes, const float* values, size_t count) {
    std::string wrong = check(rows, columns, bytes, count);
    if (!wrong.empty()) return wrong;
    const int64_t stride = (columns + 7) / 8;
    const uint8_t* mask = bits;
    if (columns % 8) {  // give every row its own bytes
        uint8_t* own = mask_.grow(size_t(rows * stride));
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < columns; c += 8)
                own[r * stride + c / 8] =
                    uint8_t(read_bits(bits, bytes, uint64_t(r * columns + c), int(std::min<int64_t>(8, columns - c))));
        mask = own;
    }
    view_ = {rows, columns, int64_t(count), mask, stride, values, nullptr, 0, nullptr, nullptr};
    count_rows();
    if (offset_.back() != count) return disagree(offset_.back(), count);
    find_tail(view_);
    return "";
}

// Bits change places 64 by 64, so that the mask is as those of other weights are; values wait until they are needed.
std::string Matrix::bind_transposed(int64_t rows, int64_t columns, const uint8_t* bits, size_t bytes, const float* values,
                                    size_t count) {
    std::string wrong = check(rows, columns, bytes, count);
    if (!wrong.empty()) return wrong;
    const int64_t stride = (columns + 7) / 8;
    uint8_t* mask = mask_.grow(size_t(rows * stride));
    view_ = {rows, columns, int64_t(count), mask, stride, nullptr, nullptr, 0, nullptr, nullptr};
    source_ = {bits, bytes, values}, transposed_ = true;
    for (int64_t r = 0; r < rows; r += 64)
        for (int64_t c = 0; c < columns; c += 64) {
            const int64_t wide = std::min<int64_t>(64, columns - c);
            uint64_t block[64] = {};
            for (int64_t i = 0; i < wide; i++) block[i] = read(r, c + i, rows);
            transpose_bits(block);
            for (int64_t i = 0; i < std::min<int64_t>(64, rows - r); i++)
                std::memcpy(mask + (r + i) * stride + c / 8, &block[i], size_t((wide + 7) / 8));
        }
    count_rows();
    return offset_.back() == count ? "" : disagree(offset_.back(), count);
}

uint64_t Matrix::read(int64_t row, int64_t column, int64_t end) const {
    return read_bits(source_.bits, source_.bytes, uint64_t(column * view_.rows + row), int(std::min<int64_t>(64, end - row)));
}

void Matrix::count_rows() {
    const int64_t stride = view_.mask_stride;
    offset_.assign(size_t(view_.rows) + 1, 0);
    for (int64_t r = 0; r < view_.rows; r++) {
        const uint8_t* row = view_.mask + r * stride;
        uint64_t seen = 0;
        int64_t c = 0;
        for (; c + 8 <= stride; c += 8) {
            uint64_t word;
            std::memcpy(&word, row + c, 8);
            seen += uint64_t(count_bits(word));
        }
        for (; c < stride; c++) seen += uint64_t(count_bits(row[c]));
        offset_[size_t(r) + 1] = offset_[size_t(r)] + seen;
    }
    view_.offset = offset_.data();
}

// As many rows at a time as the first-level cache bears to be written to.
void Matrix::move_values(float* to) const {
    constexpr int64_t kRows = 256;
    std::vector<const float*> next(static_cast<size_t>(view_.columns));
    const float* value = source_.values;
    for (int64_t c = 0; c < view_.columns; c++) {
        next[size_t(c)] = value;
        for (int64_t r = 0; r < view_.rows; r += 64) value += count_bits(read(r, c, view_.rows));
    }
    std::vector<float*> out(static_cast<size_t>(kRows));
    for (int64_t from = 0; from < view_.rows; from += kRows) {
        const int64_t end = std::min(view_.rows, from + kRows);
        for (int64_t r = from; r < end; r++) out[size_t(r - from)] = to + offset_[size_t(r)];
        for (int64_t c = 0; c < view_.columns; c++) {
            const float* own = next[size_t(c)];
            for (int64_t r = from; r < end; r += 64)
                for (uint64_t word = read(r, c, end); word; word &= word - 1) *out[size_t(r - from + first_bit(word))]++ = *own++;
            next[size_t(c)] = own;
        }
    }
}

const View& Matrix::whole() const {
    if (!transposed_) return view_;
    std::call_once(moved_once_, [this] {
        float* moved = values_.grow(size_t(view_.nonzeros) + 16);
        move_values(moved);
        whole_ = view_, whole_.values = moved;
        find_tail(whole_);
        moved_ = true;
    });
    return whole_;
}

const float* Matrix::values(Buffer<float>& room) const {
    if (!transposed_) return view_.values;
    if (moved_) return whole_.values;
    float* moved = room.grow(size_t(view_.nonzeros) + 1);
    move_values(moved);
    return moved;
}

// The last rows, whose values end less than 16 floats before the end of the array, are kept in a copy with room behind it.
void Matrix::find_tail(View& view) const {
    const uint64_t count = uint64_t(view.nonzeros);
    int64_t row = view.rows;
    while (row > 0 && offset_[size_t(row)] + 16 > count) row--;
    const size_t kept = size_t(count - offset_[size_t(row)]);
    float* copy = tail_.grow(kept + 16);
    if (kept) std::memcpy(copy, view.values + offset_[size_t(row)], kept * sizeof(float));
    std::fill(copy + kept, copy + kept + 16, 0.0f);
    view.tail_row = row, view.tail = copy;
}

const View& Matrix::listed() const {
    std::call_once(once_, [this] {
        uint16_t* column = column_.grow(size_t(view_.nonzeros) + 16);
        uint16_t* next = column;
        for (int64_t r = 0; r < view_.rows; r++)
            for (int64_t c = 0; c < view_.columns; c += 64)
                for (uint64_t word = bits(r, c); word; word &= word - 1) *next++ = uint16_t(c + first_bit(word));
        listed_ = whole();
        listed_.column = column;
    });
    return listed_;
}

uint64_t Matrix::bits(int64_t row, int64_t column) const {
    return read_bits(view_.mask + row * view_.mask_stride, size_t(view_.mask_stride), uint64_t(column),
                     int(std::min<int64_t>(64, view_.columns - column)));
}

}  // namespace emp
