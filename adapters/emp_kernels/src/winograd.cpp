#include "winograd.hpp"

#include <algorithm>

#include "bits.hpp"
#include "kernels.hpp"

namespace emp {
namespace {

// work(column) for each weight of a row that is there, from left to right.
template <typename Work>
void each_set(const Matrix& weight, int64_t row, Work&& work) {
    for (int64_t c = 0; c < weight.view().columns; c += 64)
        for (uint64_t word = weight.bits(row, c); word; word &= word - 1) work(c + first_bit(word));
}

}  // namespace

void Winograd::arrange(const Matrix& weight, int64_t groups) {
    const View& view = weight.view();
    const int64_t rows = view.rows / groups, columns = view.columns;
    channels_ = columns / 9, blocks = (rows + kWinogradRows - 1) / kWinogradRows;
    uint32_t* mask = mask_.grow(size_t(groups * blocks * columns));
    float* values = values_.grow(size_t(view.nonzeros) + kLanes);  // a register at a time is read
    std::fill(values + view.nonzeros, values + view.nonzeros + kLanes, 0.0f);
    std::fill(mask, mask + groups * blocks * columns, 0u);
    std::vector<int64_t> next(static_cast<size_t>(columns));  // where the next value of each column goes
    int64_t at = 0;
    first_.clear();
    for (int64_t group = 0; group < groups; group++)
        for (int64_t row = group * rows; row < (group + 1) * rows; row += kWinogradRows, mask += columns) {
            const int64_t end = std::min((group + 1) * rows, row + kWinogradRows);
            for (int64_t r = row; r < end; r++) each_set(weight, r, [&](int64_t c) { mask[c] |= 1u << (r - row); });
            first_.push_back(at);
            for (int64_t c = 0; c < columns; c++) next[size_t(c)] = at, at += count_bits(mask[c]);
            const float* value = view.values + view.offset[row];
            for (int64_t r = row; r < end; r++) each_set(weight, r, [&](int64_t c) { values[next[size_t(c)]++] = *value++; });
        }
}

}  // namespace emp
