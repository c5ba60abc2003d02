// A packed matrix whose values are of any type: one bit for each element, and the stored values row by row. The owner of a RowsView.
#pragma once
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "bits.hpp"
#include "matrix.hpp"
#include "rows_view.hpp"

namespace emp {

template <typename T>
class Rows {
  public:
    // `bits` holds rows * columns bits, row after row without gaps, or those of the transposed matrix. Both arrays are read only within their sizes;
    // what can stay where it is must outlive this. Returns "" or what is wrong, as the end of a sentence that begins with the name of the weight.
    std::string bind(int64_t rows, int64_t columns, bool transposed, const uint8_t* bits, size_t bytes, const T* values, size_t count) {
        if (std::string wrong = check_shape(rows, columns, bytes); !wrong.empty()) return wrong;
        const uint64_t found = counted(bits, bytes);
        if (found != count)
            return "must have as many values as bits set in its mask (" + std::to_string(found) + "), got " + std::to_string(count);
        if (uint64_t(rows * columns) % 8 && bits[bytes - 1] >> (rows * columns % 8)) return "must have no bits behind the end of its mask";
        words_ = (columns + 63) / 64;
        offset_.assign(size_t(rows) + 1, 0);
        return transposed ? turn(rows, columns, bits, bytes, values, count) : take(rows, columns, bits, bytes, values, count);
    }

    const RowsView<T>& view() const { return view_; }
    double density() const { return view_.rows && view_.columns ? double(view_.nonzeros) / double(view_.rows * view_.columns) : 0.0; }
    bool bit(int64_t row, int64_t column) const { return view_.bits(row)[column / 8] >> (column % 8) & 1; }

  private:
    static uint64_t counted(const uint8_t* bits, size_t bytes) {
        uint64_t found = 0;
        size_t i = 0;
        for (; i + 8 <= bytes; i += 8) {
            uint64_t word;
            std::memcpy(&word, bits + i, 8);
            found += uint64_t(count_bits(word));
        }
        for (; i < bytes; i++) found += uint64_t(count_bits(bits[i]));
        return found;
    }

    std::string take(int64_t rows, int64_t columns, const uint8_t* bits, size_t bytes, const T* values, size_t count) {
        const uint8_t* mask = bits;
        if (columns % 64) {  // give every row its own words
            uint8_t* own = mask_.grow(size_t(rows * words_ * 8));
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < columns; c += 64) {
                    const uint64_t word = read_bits(bits, bytes, uint64_t(r * columns + c), int(std::min<int64_t>(64, columns - c)));
                    std::memcpy(own + (r * words_ + c / 64) * 8, &word, 8);
                }
            mask = own;
        }
        for (int64_t r = 0; r < rows; r++) offset_[size_t(r) + 1] = offset_[size_t(r)] + counted(mask + r * words_ * 8, size_t(words_ * 8));
        finish(rows, columns, mask, values, count);
        return "";
    }

    std::string turn(int64_t rows, int64_t columns, const uint8_t* bits, size_t bytes, const T* values, size_t count) {
        uint8_t* mask = mask_.grow(size_t(rows * words_ * 8));
        std::fill(mask, mask + rows * words_ * 8, uint8_t(0));
        auto each = [&](auto visit) {  // visit(row, column), in the order of the values
            for (int64_t c = 0; c < columns; c++)
                for (int64_t r = 0; r < rows; r += 64)
                    for (uint64_t word = read_bits(bits, bytes, uint64_t(c * rows + r), int(std::min<int64_t>(64, rows - r))); word; word &= word - 1)
                        visit(r + first_bit(word), c);
        };
        each([&](int64_t r, int64_t c) {
            mask[r * words_ * 8 + c / 8] |= uint8_t(1 << (c % 8));
            offset_[size_t(r) + 1]++;
        });
        for (int64_t r = 0; r < rows; r++) offset_[size_t(r) + 1] += offset_[size_t(r)];
        std::vector<uint64_t> next = offset_;
        T* moved = values_.grow(count + kRoom);
        const T* value = values;
        each([&](int64_t r, int64_t) { moved[next[size_t(r)]++] = *value++; });
        finish(rows, columns, mask, moved, count);
        return "";
    }

    // The last rows, behind whose values there is less room than kernels may read, are kept in a copy.
    void finish(int64_t rows, int64_t columns, const uint8_t* mask, const T* values, size_t count) {
        int64_t row = rows;
        while (row > 0 && offset_[size_t(row)] + kRoom > count) row--;
        const size_t kept = size_t(count - offset_[size_t(row)]);
        T* copy = tail_.grow(kept + kRoom);
        if (kept) std::memcpy(copy, values + offset_[size_t(row)], kept * sizeof(T));
        std::memset(static_cast<void*>(copy + kept), 0, kRoom * sizeof(T));
        view_ = {rows, columns, words_, int64_t(count), mask, values, offset_.data(), row, copy};
    }

    RowsView<T> view_ = {};
    int64_t words_ = 0;
    std::vector<uint64_t> offset_;
    Buffer<uint8_t> mask_;
    Buffer<T> values_, tail_;
};

}  // namespace emp
