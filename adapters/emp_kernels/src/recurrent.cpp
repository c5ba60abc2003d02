#include "recurrent.hpp"

#include <algorithm>
#include <cstring>

#include "bits.hpp"
#include "cells.hpp"

namespace emp {
namespace {

// Rows of a packed weight, taken one lot after the other.
class Taker {
  public:
    Taker(const PackedRows& given, int64_t columns) : given_(given), columns_(columns) {}

    std::string take(int64_t rows, Matrix& out, Buffer<uint8_t>& own) {
        const uint64_t bits = uint64_t(rows) * uint64_t(columns_);
        const size_t bytes = size_t(bits + 7) / 8;
        const uint8_t* mask = given_.mask + at_ / 8;
        if (at_ % 8 || bits % 8) {  // no byte is shared with other rows
            uint8_t* copy = own.grow(bytes + 1);
            for (uint64_t i = 0; i < bits; i += 8) copy[i / 8] = uint8_t(read_bits(given_.mask, given_.bytes, at_ + i, int(std::min<uint64_t>(8, bits - i))));
            mask = copy;
        }
        size_t count = 0;
        for (size_t i = 0; i < bytes; i++) count += size_t(count_bits(mask[i]));
        if (count > given_.count - used_) return "must have as many values as bits set in its mask, got " + std::to_string(given_.count);
        const std::string wrong = out.bind(rows, columns_, mask, bytes, given_.values + used_, count);
        at_ += bits, used_ += count;
        return wrong;
    }
    std::string finish() const {
        return used_ == given_.count ? "" : "must have as many values as bits set in its mask (" + std::to_string(used_) + "), got " + std::to_string(given_.count);
    }

  private:
    const PackedRows& given_;
    int64_t columns_;
    uint64_t at_ = 0;
    size_t used_ = 0;
};

std::string check(const PackedRows& given, int64_t rows, int64_t columns, const char* which) {
    constexpr int64_t most = int64_t(1) << 24;
    if (rows < 0 || columns < 0 || rows > most || columns > most || (columns && rows > (int64_t(1) << 40) / columns))
        return "must have a shape of at most 2^40 elements";
    const size_t wanted = (size_t(rows) * size_t(columns) + 7) / 8;
    if (given.bytes == wanted) return "";
    return std::string("must have a mask of ") + std::to_string(wanted) + " bytes for its " + which + ", got " + std::to_string(given.bytes);
}

}  // namespace

std::string Recurrent::bind(const RecurrentShape& shape, const PackedRows& input, const PackedRows& state) {
    if (shape.directions < 1 || shape.directions > 2 || shape.hidden < 1 || shape.inputs < 0 || shape.hidden > int64_t(1) << 20)
        return "must have one or two directions, and a hidden size ≥ 1 and ≤ 1048576";
    const int64_t rows = shape.gates() * shape.hidden;
    std::string wrong = check(input, shape.directions * rows, shape.inputs, "input");
    if (wrong.empty()) wrong = check(state, shape.directions * rows, shape.hidden, "state");
    shape_ = shape;
    Taker inputs(input, shape.inputs), states(state, shape.hidden);
    const int64_t apart = shape.cell == Cell::gru && !shape.reset_after ? shape.hidden : 0;
    for (int64_t d = 0; d < shape.directions && wrong.empty(); d++) {
        directions_.push_back(std::make_unique<Direction>());
        Direction& one = *directions_.back();
        wrong = inputs.take(rows, one.input.weight, one.masks[0]);
        if (wrong.empty()) wrong = states.take(rows - apart, one.state.weight, one.masks[1]);
        if (wrong.empty() && apart) wrong = states.take(apart, one.hidden.weight, one.masks[2]);
    }
    if (wrong.empty()) wrong = inputs.finish();
    return wrong.empty() ? states.finish() : wrong;
}

void Recurrent::run(const Kernels& kernels, const Sequence& given, const States& made, const Threads& threads) const {
    for (int64_t d = 0; d < shape_.directions; d++) run_direction(kernels, given, made, d, threads);
}

void Recurrent::run_direction(const Kernels& kernels, const Sequence& given, const States& made, int64_t index, const Threads& threads) const {
    const Direction& one = *directions_[size_t(index)];
    const Cells& cells = kernels.cells;
    const int64_t n = shape_.hidden, gates = shape_.gates() * n, batch = given.batch, steps = given.steps;
    const bool backward = index == 1 || shape_.backward;
    const bool lstm = shape_.cell == Cell::lstm, reset_before = shape_.cell == Cell::gru && !shape_.reset_after;
    const float *input_bias = given.bias ? given.bias + index * 2 * gates : nullptr, *state_bias = given.bias ? input_bias + gates : nullptr;
    // the gates from the input, of all steps; those from the state; state and cell; what a GRU needs in between
    const int64_t state_size = batch * n;
    float* pre = scratch(Scratch::steps, size_t(steps * batch * gates));
    float* gate = scratch(Scratch::state, size_t(batch * gates + 5 * state_size));
    float *h = gate + batch * gates, *c = h + state_size, *update = c + state_size, *reset = update + state_size, *fresh = reset + state_size;
    auto begin = [&](float* to, const float* from) {
        if (from)
            std::copy(from + index * state_size, from + (index + 1) * state_size, to);
        else
            std::fill(to, to + state_size, 0.0f);
    };
    begin(h, given.state), begin(c, lstm ? given.cell : nullptr);
    one.input.run(kernels, given.x, steps * batch, input_bias, Activation::none, pre, threads);
    const int64_t pieces = state_size >= 8192 ? batch : 1, items = batch / std::max<int64_t>(pieces, 1);  // elements worth a thread
    for (int64_t s = 0; s < steps; s++) {
        const int64_t t = backward ? steps - 1 - s : s;
        const float* x = pre + t * batch * gates;
        auto each = [&](auto work) {  // work(item), for those whose sequence has this step
            threads.each(pieces, [&](int64_t piece) {
                for (int64_t i = piece * items; i < (piece + 1) * items; i++)
                    if (!given.lengths || t < given.lengths[i]) work(i);
            });
        };
        const int64_t rows = reset_before ? 2 * n : gates;
        one.state.run(kernels, h, batch, state_bias, Activation::none, gate, threads);
        if (reset_before) {
            std::fill(reset, reset + state_size, 0.0f);
            each([&](int64_t i) { cells.gru_reset(x + i * gates, gate + i * rows, n, h + i * n, update + i * n, reset + i * n); });
            one.hidden.run(kernels, reset, batch, state_bias ? state_bias + rows : nullptr, Activation::none, fresh, threads);
            each([&](int64_t i) { cells.gru_finish(x + i * gates, fresh + i * n, n, update + i * n, h + i * n); });
        } else {
            each([&](int64_t i) {
                const float *from = x + i * gates, *other = gate + i * gates;
                if (lstm)
                    cells.lstm(from, other, n, c + i * n, h + i * n);
                else
                    (shape_.cell == Cell::gru ? cells.gru : cells.rnn)(from, other, n, h + i * n);
            });
        }
        if (!made.y) continue;
        float* y = made.y + (t * shape_.directions + index) * state_size;
        for (int64_t i = 0; i < batch; i++) {
            if (!given.lengths || t < given.lengths[i])
                std::copy(h + i * n, h + (i + 1) * n, y + i * n);
            else
                std::fill(y + i * n, y + (i + 1) * n, 0.0f);
        }
    }
    for (int64_t i = 0; i < batch; i++)  // as onnxruntime has it
        if (given.lengths && given.lengths[i] == 0) std::fill(h + i * n, h + (i + 1) * n, 0.0f), std::fill(c + i * n, c + (i + 1) * n, 0.0f);
    if (made.last) std::copy(h, h + state_size, made.last + index * state_size);
    if (made.last_cell) std::copy(c, c + state_size, made.last_cell + index * state_size);
}

}  // namespace emp
