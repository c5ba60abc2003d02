// Y = activation(X * transposed(W) + bias + added) for a packed W.
#pragma once
#include "kernels.hpp"
#include "parallel.hpp"
#include "tiles.hpp"

namespace emp {

// How a product is done; chosen by density and number of items from measurements (docs/kernels.md).
enum class Way { dot, pick, gather, tile };

// y[i] = activation(y[i] + added[i]) for i < count, where a product cannot do so on its way out; `added` may be null.
void complete(const Kernels&, const float* added, Activation, float* y, int64_t count, const Threads&);

// Rows of a product that belong to heads of so many each, as attention has them: y[sequence, head, token, of the head], or, where they lie `across`,
// y[sequence, head, of the head, token].
struct Heads {
    int64_t sequences, tokens, count, size;
    bool across;
};

class Linear {
  public:
    Matrix weight;

    // x[items, columns] -> y[items, rows], both dense and row by row. `bias` holds `rows` floats, or is null; `added` is as large as y and not y
    // itself, or null.
    //
    // The result is that of the dense product, but for the order of addition; also where x holds NaN or infinities: a pruned weight times one of
    // these is NaN.
    void run(const Kernels&, const float* x, int64_t items, const float* bias, Activation, float* y, const Threads&, const float* added = nullptr) const;

    // The same, sorted by heads: items are the tokens of all sequences, rows the sizes of all heads. False: not done, since something in x is not finite,
    // or since items are too few for a tile; y means nothing then.
    bool run_heads(const Kernels&, const float* x, const float* bias, const Heads&, float* y, const Threads&) const;

    Way way(const Kernels&, int64_t items) const;

  private:
    // `pick`: by Kernels::pick, for one item.
    void run_dot(const Kernels&, const float* x, int64_t items, const Output&, const Threads&, bool pick) const;
    void run_gather(const Kernels&, const float* x, const Output&, const Threads&) const;
    // `land(sums, lanes, item, count, row, end)` takes finished sums[(row - first) * lanes + item - first]. Whether all of x is finite.
    template <typename Land>
    bool run_tile(const Kernels&, const float* x, int64_t items, const Threads&, const Land& land) const;
    void spread_non_finite(const float* x, int64_t items, float* y, const Threads&) const;

    mutable std::once_flag once_;
    mutable Tiles tiles_;
};

}  // namespace emp
