#include "integer_conv.hpp"

#include <cstring>

#include "bits.hpp"
#include "tiles.hpp"

namespace emp {

std::string IntegerConv::bind(const uint8_t* bits, size_t bytes, const int8_t* values, size_t count) {
    const int64_t taps = shape.kernel[0] * shape.kernel[1], columns = shape.channels * taps, wide = quads() * taps * 4;
    Rows<int8_t> given;  // says what is wrong, before anything is moved
    std::string wrong = given.bind(shape.outputs, columns, false, bits, bytes, values, count);
    if (!wrong.empty()) return wrong;
    uint8_t* mask = mask_.grow(size_t(shape.outputs * wide + 7) / 8);
    std::fill(mask, mask + size_t(shape.outputs * wide + 7) / 8, uint8_t(0));
    int8_t* moved = values_.grow(count + kRoom);
    std::vector<int8_t> row(static_cast<size_t>(columns));
    for (int64_t r = 0; r < shape.outputs; r++) {
        std::fill(row.begin(), row.end(), int8_t(0));
        const int8_t* value = given.view().values(r);
        for (int64_t c = 0; c < columns; c++)
            if (given.bit(r, c)) row[size_t(c)] = *value++;
        int64_t to = r * wide;
        for (int64_t q = 0; q < quads(); q++)
            for (int64_t tap = 0; tap < taps; tap++)
                for (int64_t c = 4 * q; c < 4 * q + 4; c++, to++)
                    if (c < shape.channels && given.bit(r, c * taps + tap)) {
                        mask[to / 8] |= uint8_t(1 << (to % 8));
                        *moved++ = row[size_t(c * taps + tap)];
                    }
    }
    wrong = weight_.bind(shape.outputs, wide, false, mask, size_t(shape.outputs * wide + 7) / 8, values_.data(), count);
    row_sum_ = row_sums(weight_.view());
    return wrong;
}

const Quads& IntegerConv::arranged(int groups) const {
    const bool wide = groups > 4;
    std::call_once(once_[wide], [&] { quads_[wide].arrange(weight_.view(), block_columns(groups)); });
    return quads_[wide];
}

void IntegerConv::lay_out(const IntegerKernels& kernels, const Layout& at, const float* x, const Scales& scales, float* out,
                          const Threads& threads) const {
    const int64_t area = at.height * at.width;
    threads.each(quads(), [&](int64_t q) {
        thread_local Buffer<uint8_t> kept;
        uint8_t* plane = kept.grow(size_t(4 * area + 1));
        for (int64_t i = 0; i < 4; i++)
            if (4 * q + i < shape.channels)
                kernels.quantise(x + (4 * q + i) * area, area, scales.x_scale, scales.x_zero, plane + i * area);
            else
                std::fill(plane + i * area, plane + (i + 1) * area, uint8_t(0));
        uint8_t* phases = reinterpret_cast<uint8_t*>(out + q * at.plane);
        std::memset(phases, scales.x_zero, size_t(at.plane) * 4);
        for (int64_t py = 0; py < shape.stride[0]; py++)
            for (int64_t px = 0; px < shape.stride[1]; px++) {
                if (!at.used[0][size_t(py)] || !at.used[1][size_t(px)]) continue;
                const auto [top, left, height, width, y, x_first] = Inside(shape, at, py, px);
                const int64_t step = shape.stride[1];
                for (int64_t r = 0; r < height; r++) {
                    uint8_t* to = phases + ((py * shape.stride[1] + px) * at.phase + (top + r) * at.row + left) * 4;
                    const uint8_t* from = plane + (y + r * shape.stride[0]) * at.width + x_first;
                    if (step == 1)
                        for (int64_t i = 0; i < width; i++)
                            for (int64_t k = 0; k < 4; k++) to[4 * i + k] = from[k * area + i];
                    else
                        for (int64_t i = 0; i < width; i++)
                            for (int64_t k = 0; k < 4; k++) to[4 * i + k] = from[k * area + i * step];
                }
            }
    });
}

void IntegerConv::run(const IntegerKernels& kernels, const Kernels& floats, const float* x, int64_t images, int64_t height, int64_t width,
                      const float* bias, Activation activation, float* y, const Threads& threads) const {
    const Layout at(shape, height, width);
    const int64_t area = at.out_h * at.out_w, rows = shape.outputs, size = shape.channels * height * width;
    if (images == 0 || area <= 0 || rows == 0) return;
    const Scales scales = scales_of(kernels, x, images * size, row_sum_.data(), &scale, 0);
    ConvShape fours = shape;
    fours.channels = quads();
    const std::vector<int64_t> offset = column_offsets(fours, at);
    const Cut cut(area, kernels.max_groups);
    const Quads& w = arranged(cut.widest());
    const int64_t all = int64_t(offset.size()), chunks = int64_t(w.chunks.size());
    float* phases = scratch(Scratch::input, size_t(quads() * at.plane + kLanes));
    for (int64_t image = 0; image < images; image++) {
        lay_out(kernels, at, x + image * size, scales, phases, threads);
        float* out = y + image * rows * area;
        auto fill = [&](int64_t tile, int64_t from, int64_t to, float* input) {
            const int64_t first = cut.begin(tile) * kLanes, last = std::min(area, cut.begin(tile + 1) * kLanes);
            const std::vector<Piece> pieces = pieces_of(at, first, last);
            floats.fill(phases, offset.data() + from, to - from, pieces.data(), int(pieces.size()), cut.width(tile) * kLanes, input);
        };
        auto multiply = [&](int64_t tile, int64_t chunk, int64_t b, const float* input, float* sums) {
            kernels.tile(w.view(chunk, b), (w.chunks[size_t(chunk)].second - w.chunks[size_t(chunk)].first + 1) / 2,
                         reinterpret_cast<const uint8_t*>(input), reinterpret_cast<int32_t*>(sums), cut.width(tile), b > 0);
        };
        auto finish = [&](int64_t tile, int64_t row, int64_t end, float* sums) {
            const int64_t first = cut.begin(tile) * kLanes, lanes = cut.width(tile) * kLanes;
            kernels.scaled(sums, int(lanes), row, end, scales);
            floats.finish(sums, int(lanes), end - row, std::min(lanes, area - first), bias ? bias + row : nullptr, nullptr, area, {activation, 0, 0, nullptr},
                          out + row * area + first);
        };
        if (cut.tiles >= 8 || cut.tiles >= chunks) {
            threads.each(cut.tiles, [&](int64_t tile) {
                const int64_t lanes = cut.width(tile) * kLanes;
                float *input = scratch(Scratch::block, size_t(w.quads_in_block * lanes)), *sums = scratch(Scratch::sums, size_t((rows + 1) * lanes));
                for (int64_t b = 0; b < w.blocks; b++) {
                    fill(tile, b * w.quads_in_block, std::min(all, (b + 1) * w.quads_in_block), input);
                    for (int64_t c = 0; c < chunks; c++) multiply(tile, c, b, input, sums + w.chunks[size_t(c)].first * lanes);
                }
                finish(tile, 0, rows, sums);
            });
            continue;
        }
        for (int64_t tile = 0; tile < cut.tiles; tile++) {
            const int64_t lanes = cut.width(tile) * kLanes;
            float* input = scratch(Scratch::block, size_t(w.blocks * w.quads_in_block * lanes));
            threads.ranges(all, 128, 16, [&](int64_t from, int64_t to) { fill(tile, from, to, input + from * lanes); });
            threads.each(chunks, [&](int64_t c) {
                const auto [row, end] = w.chunks[size_t(c)];
                float* sums = scratch(Scratch::sums, size_t((end - row + 1) * lanes));
                for (int64_t b = 0; b < w.blocks; b++) multiply(tile, c, b, input + b * w.quads_in_block * lanes, sums);
                finish(tile, row, end, sums);
            });
        }
    }
}

}  // namespace emp
