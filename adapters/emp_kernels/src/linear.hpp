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

class Linear {
  public:
    Matrix weight;

    // x[items, columns] -> y[items, rows], both dense and row by row. `bias` holds `rows` floats, or is null; `added` is as large as y and not y
    // itself, or null.
    //
    // The result is that of the dense product, but for the order of addition; also where x holds NaN or infinities: a pruned weight times one of
    // these is NaN.
    void run(const Kernels&, const float* x, int64_t items, const float* bias, Activation, float* y, const Threads&, const float* added = nullptr) const;

    Way way(const Kernels&, int64_t items) const;

  private:
    // `pick`: by Kernels::pick, for one item.
    void run_dot(const Kernels&, const float* x, int64_t items, const Output&, const Threads&, bool pick) const;
    void run_gather(const Kernels&, const float* x, const Output&, const Threads&) const;
    // Whether all of x is finite.
    bool run_tile(const Kernels&, const float* x, int64_t items, const Output&, const Threads&) const;
    void spread_non_finite(const float* x, int64_t items, float* y, const Threads&) const;

    mutable std::once_flag once_;
    mutable Tiles tiles_;
};

}  // namespace emp
