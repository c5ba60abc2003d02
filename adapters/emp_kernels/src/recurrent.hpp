// LSTM, GRU and RNN with packed weights: the input of all steps is multiplied at once, the state step by step.
#pragma once
#include <memory>

#include "linear.hpp"

namespace emp {

enum class Cell { lstm, gru, rnn };

struct RecurrentShape {
    Cell cell;
    int64_t directions, inputs, hidden;
    bool backward;           // of a single direction; of two the second is
    bool reset_after = false;  // GRU: the reset is applied to the product with the state, not to the state (linear_before_reset)
    int64_t gates() const { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }
};

// A packed weight [directions, gates * hidden, columns], as a mask and the values of the bits set.
struct PackedRows {
    const uint8_t* mask;
    size_t bytes;
    const float* values;
    size_t count;
};

// What a run is given: x[steps, batch, inputs]; the others may be null.
struct Sequence {
    const float* x;
    int64_t steps, batch;
    const float* bias;        // [directions, 2 * gates * hidden]
    const int32_t* lengths;   // [batch], each within [0, steps]
    const float *state, *cell;  // [directions, batch, hidden], at the begin
};

// And what it makes: y[steps, directions, batch, hidden]; last and last_cell [directions, batch, hidden]. Each may be null.
struct States {
    float *y, *last, *last_cell;
};

class Recurrent {
  public:
    // The numbers of both weights must outlive this. Returns "" or what is wrong, as the end of a sentence that begins with the name of the weight.
    std::string bind(const RecurrentShape&, const PackedRows& input, const PackedRows& state);

    // The result is that of the dense cell within the stated error of its products; see Linear::run for NaN and infinities.
    void run(const Kernels&, const Sequence&, const States&, const Threads&) const;

  private:
    struct Direction {
        Linear input, state, hidden;  // `hidden`: the rows of a GRU's hidden gate, where the state they take is another one
        Buffer<uint8_t> masks[3];
    };
    void run_direction(const Kernels&, const Sequence&, const States&, int64_t index, const Threads&) const;

    RecurrentShape shape_ = {};
    std::vector<std::unique_ptr<Direction>> directions_;
};

}  // namespace emp
