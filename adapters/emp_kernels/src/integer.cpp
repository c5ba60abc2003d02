#include "integer.hpp"

#include <cmath>
#include <cstring>

namespace emp {

#if defined(__x86_64__) || defined(_M_X64)
extern const IntegerKernels kIntegerAvx512, kIntegerAvxVnni, kIntegerAvx2;
#endif
extern const IntegerKernels kIntegerPortable;

namespace {

const IntegerKernels* const kAll[] = {
#if defined(__x86_64__) || defined(_M_X64)
    &kIntegerAvx512, &kIntegerAvxVnni, &kIntegerAvx2,
#endif
    &kIntegerPortable};

constexpr int64_t kChunk = 64;          // rows whose sums stay in the first-level cache
constexpr int64_t kTileBytes = 32768;   // of a block of activations, beside them
constexpr int64_t kFew = 16;
// From so many items on tiles are faster: of sparse weights, and of dense ones.
constexpr int64_t kTiledSparse = 12, kTiledDense = 28;

}  // namespace

const IntegerKernels* integer_kernels(const char* name) {
    for (const IntegerKernels* one : kAll)
        if (std::strcmp(one->name, name) == 0 && one->supported()) return one;
    return nullptr;
}

const IntegerKernels& integer_kernels() {
    static const IntegerKernels& chosen = []() -> const IntegerKernels& {
        const char* wanted = kernels().name;
        // the instruction set in use for floats is the most that is used for integers
        if (std::strcmp(wanted, "avx512") == 0)
            if (const IntegerKernels* found = integer_kernels("avx512")) return *found;
        if (std::strcmp(wanted, "portable") != 0)
            for (const char* name : {"avxvnni", "avx2"})
                if (const IntegerKernels* found = integer_kernels(name)) return *found;
        return kIntegerPortable;
    }();
    return chosen;
}

void Quads::arrange(const RowsView<int8_t>& w, int64_t block) {
    quads_in_block = block / 4;
    const int64_t in_row = (w.columns + 3) / 4;
    blocks = std::max<int64_t>(1, (in_row + quads_in_block - 1) / quads_in_block);
    std::vector<int8_t> dense(size_t(2 * w.words * 64 + 64));
    int8_t* line[2] = {dense.data(), dense.data() + w.words * 64};
    // for each block of the pair at hand: the three kinds of quads
    std::vector<std::vector<uint16_t>> heads(static_cast<size_t>(blocks)), columns(static_cast<size_t>(blocks));
    std::vector<std::vector<int8_t>> values(static_cast<size_t>(blocks));
    for (int64_t first = 0; first < w.rows; first += kChunk) {
        const int64_t last = std::min(w.rows, first + kChunk);
        chunks.emplace_back(first, last);
        for (int64_t b = 0; b < blocks; b++) heads[size_t(b)].clear(), columns[size_t(b)].clear(), values[size_t(b)].clear();
        for (int64_t row = first; row < last; row += 2) {
            std::fill(dense.begin(), dense.end(), int8_t(0));
            for (int64_t i = 0; i < 2 && row + i < w.rows; i++) {
                const int8_t* value = w.values(row + i);
                for (int64_t c = 0; c < w.words; c++) {
                    uint64_t word;
                    std::memcpy(&word, w.bits(row + i) + 8 * c, 8);
                    for (; word; word &= word - 1) line[i][64 * c + first_bit(word)] = *value++;
                }
            }
            for (int64_t b = 0; b < blocks; b++) {
                const int64_t from = b * quads_in_block, to = std::min(in_row, from + quads_in_block);
                uint16_t count[3] = {};
                for (int kind = 0; kind < 3; kind++)
                    for (int64_t q = from; q < to; q++) {
                        uint32_t four[2];
                        for (int i = 0; i < 2; i++) std::memcpy(&four[i], line[i] + 4 * q, 4);
                        if (kind != (four[0] && four[1] ? 0 : four[0] ? 1 : four[1] ? 2 : 3)) continue;
                        count[kind]++;
                        columns[size_t(b)].push_back(uint16_t(q - from));
                        for (int i = 0; i < 2; i++)
                            if (kind == 0 || kind == i + 1) values[size_t(b)].insert(values[size_t(b)].end(), line[i] + 4 * q, line[i] + 4 * q + 4);
                    }
                heads[size_t(b)].insert(heads[size_t(b)].end(), count, count + 3);
            }
        }
        for (int64_t b = 0; b < blocks; b++) {
            starts_.push_back({head_.size(), column_.size(), value_.size()});
            head_.insert(head_.end(), heads[size_t(b)].begin(), heads[size_t(b)].end());
            column_.insert(column_.end(), columns[size_t(b)].begin(), columns[size_t(b)].end());
            value_.insert(value_.end(), values[size_t(b)].begin(), values[size_t(b)].end());
        }
    }
    head_.shrink_to_fit(), column_.shrink_to_fit(), value_.shrink_to_fit();
}

QuadsView Quads::view(int64_t chunk, int64_t block) const {
    const Start& at = starts_[size_t(chunk * blocks + block)];
    return {head_.data() + at.head, column_.data() + at.column, value_.data() + at.value};
}

int64_t block_columns(int groups) { return kTileBytes / (groups > 4 ? 128 : 64); }

std::vector<int32_t> row_sums(const RowsView<int8_t>& w) {
    std::vector<int32_t> sums(size_t(w.rows), 0);
    for (int64_t r = 0; r < w.rows; r++) {
        const int8_t* value = w.values(r);
        uint32_t sum = 0;
        for (uint64_t i = w.offset[r]; i < w.offset[r + 1]; i++) sum += uint32_t(int32_t(*value++));
        sums[size_t(r)] = int32_t(sum);
    }
    return sums;
}

Scales scales_of(const IntegerKernels& kernels, const float* x, int64_t count, const int32_t* row_sum, const float* scale, int64_t scale_step) {
    float least = 0, most = 0;
    kernels.range(x, count, &least, &most);
    const float x_scale = most == least ? 1.0f : (most - least) / 255.0f;
    const float zero = std::nearbyint(std::max(0.0f, std::min(255.0f, 0.0f - least / x_scale)));
    return {row_sum, scale, scale_step, x_scale, std::isfinite(zero) ? int32_t(zero) : 0};
}

void IntegerLinear::prepare() { row_sum_ = row_sums(weight.view()); }

const Quads& IntegerLinear::quads(int groups) const {
    const bool wide = groups > 4;
    std::call_once(once_[wide], [&] { quads_[wide].arrange(weight.view(), block_columns(groups)); });
    return quads_[wide];
}

void IntegerLinear::run(const IntegerKernels& kernels, const Kernels& floats, const float* x, int64_t items, const float* bias,
                        Activation activation, float* y, const Threads& threads) const {
    const RowsView<int8_t>& w = weight.view();
    if (items == 0 || w.rows == 0) return;
    const Scales scales = scales_of(kernels, x, items * w.columns, row_sum_.data(), this->scale.data(), this->scale.size() > 1);
    const int64_t stride = w.words * 64;
    thread_local Buffer<float> kept;  // floats, because they are transposed in fours as such
    float* buffer = kept.grow(size_t(std::max<int64_t>(1, items * stride / 4)));
    uint8_t* quantised = reinterpret_cast<uint8_t*>(buffer);
    threads.ranges(items, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, w.columns)), 64, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; i++) {
            kernels.quantise(x + i * w.columns, w.columns, scales.x_scale, scales.x_zero, quantised + i * stride);
            std::fill(quantised + i * stride + w.columns, quantised + (i + 1) * stride, uint8_t(0));
        }
    });
    const Output out = {y, w.rows, bias, activation};
    if (items >= (weight.density() < 0.15 ? kTiledSparse : kTiledDense)) return run_tiles(kernels, floats, buffer, items, scales, out, threads);
    const int64_t rows = std::max<int64_t>(16, 131072 / std::max<int64_t>(w.columns, 1));
    threads.ranges(w.rows, rows, 64, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row += kFew) {  // weights that stay in the first-level cache for all items
            const int64_t end = std::min(last, row + kFew);
            for (int64_t i = 0; i < items; i += kernels.max_items) {
                const int count = int(std::min<int64_t>(kernels.max_items, items - i));
                const Output part = {out.y + i * out.item_stride, out.item_stride, out.bias, out.activation};
                kernels.few(w, row, end, quantised + i * stride, stride, count, scales, part);
            }
        }
    });
}

void IntegerLinear::run_tiles(const IntegerKernels& kernels, const Kernels& floats, const float* quantised, int64_t items, const Scales& scales,
                              const Output& out, const Threads& threads) const {
    const int64_t stride = weight.view().words * 16;  // in fours
    const int64_t quads_in_row = (weight.view().columns + 3) / 4;
    const int64_t most = std::min<int64_t>(kernels.max_groups, (items + 15) / 16) * 16;
    const Quads& w = quads(int(most / 16));
    thread_local Buffer<float> kept;
    float* input = kept.grow(size_t(stride * most));
    const int64_t tiles = (items + most - 1) / most, each = ((items + tiles - 1) / tiles + 15) / 16 * 16;
    for (int64_t i = 0; i < items; i += each) {
        const int count = int(std::min(each, items - i)), lanes = (count + 15) / 16 * 16;
        const Output part = {out.y + i * out.item_stride, out.item_stride, out.bias, out.activation};
        threads.ranges(quads_in_row, 128, 16, [&](int64_t from, int64_t to) {
            floats.to_lanes(quantised + i * stride, stride, count, lanes, from, to, input + from * lanes);
        });
        threads.each(int64_t(w.chunks.size()), [&](int64_t chunk) {
            const auto [row, end] = w.chunks[size_t(chunk)];
            float* sums = scratch(Scratch::sums, size_t((end - row + 1) * lanes));
            for (int64_t b = 0; b < w.blocks; b++)
                kernels.tile(w.view(chunk, b), (end - row + 1) / 2, reinterpret_cast<const uint8_t*>(input + b * w.quads_in_block * lanes),
                             reinterpret_cast<int32_t*>(sums), lanes / 16, b > 0);
            kernels.scaled(sums, lanes, row, end, scales);
            floats.from_lanes(sums, lanes, count, row, end, part);
        });
    }
}

}  // namespace emp
