// LSTM, GRU and RNN as nodes.
#include "parts.hpp"
#include "recurrent.hpp"

namespace emp {
namespace {

using ort::Context;
using ort::Info;
using ort::Refusal;
using ort::Tensor;

constexpr size_t kBias = 1, kLengths = 2, kState = 3, kCell = 4;  // inputs

// A weight whose values are float32, or made so.
struct Wide {
    Parts parts;
    Buffer<float> own;
    PackedRows rows(const Op& op, int64_t elements, int64_t columns) {
        const auto* values = static_cast<const float*>(parts.values);
        if (op.values_are != Values::plain) {
            if (parts.bytes == size_t(elements + 7) / 8) widened(parts, {}, elements, columns, false, own);
            values = own.grow(parts.count + 1);
        }
        return {parts.mask, parts.bytes, values, parts.count};
    }
};

class RecurrentNode : public Node {
  public:
    RecurrentNode(const Op& op, const Info& info) : op_(op) {
        const std::vector<int64_t> input = info.integers(op.weight.shape), state = info.integers(op.state.shape);
        if (input.size() != 3 || state.size() != 3) throw Refusal("must have shapes of three dimensions, got " + text(input) + " and " + text(state));
        const std::string direction = info.text("direction", "forward");
        if (direction != "forward" && direction != "reverse" && direction != "bidirectional")
            throw Refusal("must have the direction forward, reverse or bidirectional, got " + direction);
        shape_ = {op.cell, direction == "bidirectional" ? 2 : 1, input[2], state[2], direction == "reverse", info.integer("linear_before_reset", 0) != 0};
        constexpr int64_t most = int64_t(1) << 20;  // so that no product of sizes overflows
        const int64_t gates = shape_.gates() * shape_.hidden;
        if (shape_.hidden < 1 || shape_.hidden > most || shape_.inputs < 0 || shape_.inputs > most)
            throw Refusal("must have a hidden size ≥ 1 and ≤ 1048576, and at most as many inputs");
        if (input[0] != shape_.directions || state[0] != shape_.directions || input[1] != gates || state[1] != gates)
            throw Refusal("must have shapes [" + std::to_string(shape_.directions) + ", " + std::to_string(gates) + ", inputs], and the same with its hidden size, got " +
                          text(input) + " and " + text(state));
        const int64_t rows = shape_.directions * gates;
        input_.parts = read_parts(op, op.weight, info, rows, shape_.inputs);
        state_.parts = read_parts(op, op.state, info, rows, shape_.hidden);
        const std::string wrong = cell_.bind(shape_, input_.rows(op, rows * shape_.inputs, shape_.inputs), state_.rows(op, rows * shape_.hidden, shape_.hidden));
        if (!wrong.empty()) throw Refusal(wrong);
    }
    void run(const Context& context) const override {
        const Tensor x = ort::tensor(context.input(0));
        if (x.shape.size() != 3 || x.shape[2] != shape_.inputs)
            throw Refusal("the input must have three dimensions, the last " + std::to_string(shape_.inputs) + ", got the shape " + text(x.shape));
        const int64_t steps = x.shape[0], batch = x.shape[1], hidden = shape_.hidden, directions = shape_.directions;
        Sequence given = {x.as<float>(), steps, batch, nullptr, nullptr, nullptr, nullptr};
        given.bias = optional(context, kBias, {directions, 2 * shape_.gates() * hidden}, "bias");
        given.state = optional(context, kState, {directions, batch, hidden}, "initial state");
        if (op_.cell == Cell::lstm) given.cell = optional(context, kCell, {directions, batch, hidden}, "initial cell");
        if (const OrtValue* value = context.input(kLengths)) {
            const Tensor lengths = ort::tensor(value);
            if (lengths.shape != std::vector<int64_t>{batch}) throw Refusal("the lengths must be " + std::to_string(batch) + " numbers, got the shape " + text(lengths.shape));
            given.lengths = lengths.as<int32_t>();
            for (int64_t i = 0; i < batch; i++)
                if (given.lengths[i] < 0 || given.lengths[i] > steps)
                    throw Refusal("the lengths must be ≥ 0 and ≤ " + std::to_string(steps) + ", got " + std::to_string(given.lengths[i]));
        }
        const std::vector<int64_t> last = {directions, batch, hidden};
        States made = {context.output(0, {steps, directions, batch, hidden}), context.output(1, last), nullptr};
        if (op_.cell == Cell::lstm) made.last_cell = context.output(2, last);
        cell_.run(kernels(), given, made, context.threads());
    }

  private:
    static const float* optional(const Context& context, size_t input, const std::vector<int64_t>& shape, const char* what) {
        const OrtValue* value = context.input(input);
        if (!value) return nullptr;
        const Tensor found = ort::tensor(value);
        if (found.shape != shape) throw Refusal(std::string("the ") + what + " must have the shape " + text(shape) + ", got " + text(found.shape));
        return found.as<float>();
    }

    const Op& op_;
    RecurrentShape shape_ = {};
    Wide input_, state_;
    Recurrent cell_;
};

}  // namespace

std::unique_ptr<Node> make_recurrent(const Op& op, const Info& info) { return std::make_unique<RecurrentNode>(op, info); }

}  // namespace emp
