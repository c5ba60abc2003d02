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
    offset_.assign(size_t(rows) + 1, 0);
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t* row = mask + r * stride;
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
    if (offset_.back() != count) return disagree(offset_.back(), count);
    view_ = {rows, columns, int64_t(count), mask, stride, values, offset_.data(), 0, nullptr, nullptr};
    find_tail();
    return "";
}

std::string Matrix::bind_transposed(int64_t rows, int64_t columns, const uint8_t* bits, size_t bytes, const float* values,
                                    size_t count) {
    std::string wrong = check(rows, columns, bytes, count);
    if (!wrong.empty()) return wrong;
    const int64_t stride = (columns + 7) / 8;
    uint8_t* mask = mask_.grow(size_t(rows * stride));
    std::fill(mask, mask + rows * stride, uint8_t(0));
    offset_.assign(size_t(rows) + 1, 0);
    auto each = [&](auto visit) {  // visit(row, column), in the order of the values
        for (int64_t c = 0; c < columns; c++)
            for (int64_t r = 0; r < rows; r += 64)
                for (uint64_t word = read_bits(bits, bytes, uint64_t(c * rows + r), int(std::min<int64_t>(64, rows - r))); word;
                     word &= word - 1)
                    visit(r + first_bit(word), c);
    };
    each([&](int64_t r, int64_t c) {
        mask[r * stride + c / 8] |= uint8_t(1 << (c % 8));
        offset_[size_t(r) + 1]++;
    });
    for (int64_t r = 0; r < rows; r++) offset_[size_t(r) + 1] += offset_[size_t(r)];
    if (offset_.back() != count) return disagree(offset_.back(), count);
    std::vector<uint64_t> next = offset_;
    float* moved = values_.grow(count + 16);
    const float* value = values;
    each([&](int64_t r, int64_t) { moved[next[size_t(r)]++] = *value++; });
    view_ = {rows, columns, int64_t(count), mask, stride, moved, offset_.data(), 0, nullptr, nullptr};
    find_tail();
    return "";
}

// The last rows, whose values end less than 16 floats before the end of the array, are kept in a copy with room behind it.
void Matrix::find_tail() {
    const uint64_t count = uint64_t(view_.nonzeros);
    int64_t row = view_.rows;
    while (row > 0 && offset_[size_t(row)] + 16 > count) row--;
    const size_t kept = size_t(count - offset_[size_t(row)]);
    float* copy = tail_.grow(kept + 16);
    if (kept) std::memcpy(copy, view_.values + offset_[size_t(row)], kept * sizeof(float));
    std::fill(copy + kept, copy + kept + 16, 0.0f);
    view_.tail_row = row, view_.tail = copy;
}

const View& Matrix::listed() const {
    std::call_once(once_, [this] {
        uint16_t* column = column_.grow(size_t(view_.nonzeros) + 16);
        uint16_t* next = column;
        for (int64_t r = 0; r < view_.rows; r++)
            for (int64_t c = 0; c < view_.columns; c += 64)
                for (uint64_t word = bits(r, c); word; word &= word - 1) *next++ = uint16_t(c + first_bit(word));
        listed_ = view_;
        listed_.column = column;
    });
    return listed_;
}

uint64_t Matrix::bits(int64_t row, int64_t column) const {
    return read_bits(view_.mask + row * view_.mask_stride, size_t(view_.mask_stride), uint64_t(column),
                     int(std::min<int64_t>(64, view_.columns - column)));
}

}  // namespace emp
