// Y = activation((X - zero) * transposed(W) * scales + bias) for a packed W of 8-bit integers and X quantised to 8 bits as it comes: what onnxruntime
// does for DynamicQuantizeLinear, MatMulInteger and the two multiplications that follow. The sums are integers, so they are the same in any order.
#pragma once
#include "integer_kernels.hpp"
#include "parallel.hpp"
#include "rows.hpp"

namespace emp {

// What the kernels for many items read: for pairs of rows the quads of columns in which not all weights are zero.
class Quads {
  public:
    // Pairs of `rows` rows of a block of columns: quads of both, of the first, of the second.
    void arrange(const RowsView<int8_t>&, int64_t block);
    QuadsView view(int64_t chunk, int64_t block) const;

    std::vector<std::pair<int64_t, int64_t>> chunks;  // of rows; the first of each is even
    int64_t blocks = 0, quads_in_block = 0;

  private:
    struct Start {
        size_t head, column, value;
    };
    std::vector<Start> starts_;
    std::vector<uint16_t> head_, column_;
    std::vector<int8_t> value_;
};

// The columns of a block for tiles of `groups` times 16 items.
int64_t block_columns(int groups);

// The sum of the weights of each row.
std::vector<int32_t> row_sums(const RowsView<int8_t>&);

// How DynamicQuantizeLinear quantises `count` activations, all of them alike, and what then becomes of sums.
Scales scales_of(const IntegerKernels&, const float* x, int64_t count, const int32_t* row_sum, const float* scale, int64_t scale_step);

class IntegerLinear {
  public:
    Rows<int8_t> weight;
    std::vector<float> scale;  // of every row, or one for all

    // To be called once the weight is bound.
    void prepare();
    // x[items, columns] -> y[items, rows], both dense and row by row. `bias` holds `rows` floats, or is null. Where x is not finite the result means
    // nothing, as in onnxruntime.
    void run(const IntegerKernels&, const Kernels&, const float* x, int64_t items, const float* bias, Activation, float* y, const Threads&) const;

  private:
    const Quads& quads(int groups) const;
    void run_tiles(const IntegerKernels&, const Kernels&, const float* quantised, int64_t items, const Scales&, const Output&, const Threads&) const;

    std::vector<int32_t> row_sum_;
    mutable std::once_flag once_[2];
    mutable Quads quads_[2];  // for up to 64 items, and for more
};

}  // namespace emp
