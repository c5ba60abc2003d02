#include "narrow.hpp"

#include <cmath>
#include <limits>

namespace emp {

#if defined(__x86_64__) || defined(_M_X64)
extern const NarrowKernels kNarrowAvx2;
#endif
extern const NarrowKernels kNarrowPortable;

namespace {

constexpr int64_t kFewItems = 5;  // above it products are tiled, in float32; and where weights are very sparse
constexpr double kSparse = 0.18, kSparseMany = 0.25;

void run(const NarrowKernels& k, const RowsView<Half>& w, int64_t row, int64_t end, const float* x, int64_t stride, int items, RowScale s, const Output& o) {
    k.half(w, row, end, x, stride, items, s, o);
}
void run(const NarrowKernels& k, const RowsView<Bfloat>& w, int64_t row, int64_t end, const float* x, int64_t stride, int items, RowScale s, const Output& o) {
    k.bfloat(w, row, end, x, stride, items, s, o);
}
void run(const NarrowKernels& k, const RowsView<int8_t>& w, int64_t row, int64_t end, const float* x, int64_t stride, int items, RowScale s, const Output& o) {
    k.int8(w, row, end, x, stride, items, s, o);
}

}  // namespace

const NarrowKernels* narrow_kernels(const char* name) {
#if defined(__x86_64__) || defined(_M_X64)
    if (std::strcmp(name, "avx2") == 0 && kNarrowAvx2.supported()) return &kNarrowAvx2;
#endif
    return std::strcmp(name, "portable") == 0 ? &kNarrowPortable : nullptr;
}

const NarrowKernels& narrow_kernels() {
    static const NarrowKernels& chosen = []() -> const NarrowKernels& {
        const NarrowKernels* found = std::strcmp(kernels().name, "portable") != 0 ? narrow_kernels("avx2") : nullptr;
        return found ? *found : kNarrowPortable;
    }();
    return chosen;
}

template <typename T>
std::string NarrowLinear<T>::bind(int64_t rows, int64_t columns, bool transposed, const uint8_t* bits, size_t bytes, const T* values,
                                  size_t count, std::vector<float> scale) {
    scale_ = std::move(scale);
    if (scale_.size() != 1 && scale_.size() != size_t(rows))
        return "must have one scale, or one for each of its " + std::to_string(rows) + " outputs, got " + std::to_string(scale_.size());
    return weight_.bind(rows, columns, transposed, bits, bytes, values, count);
}

template <typename T>
const Linear& NarrowLinear<T>::wide() const {
    std::call_once(once_, [this] {
        const RowsView<T>& w = weight_.view();
        float* values = values_.grow(size_t(w.nonzeros));
        float* next = values;
        // the same bits without the gaps between rows
        std::vector<uint8_t> bits(size_t(w.rows * w.columns + 7) / 8);
        for (int64_t r = 0; r < w.rows; r++) {
            const T* value = w.values(r);
            const float scale = scale_[scale_.size() > 1 ? size_t(r) : 0];
            for (uint64_t i = w.offset[r]; i < w.offset[r + 1]; i++) *next++ = to_float(*value++) * scale;
            for (int64_t c = 0; c < w.columns; c++)
                if (weight_.bit(r, c)) bits[size_t(r * w.columns + c) / 8] |= uint8_t(1 << ((r * w.columns + c) % 8));
        }
        // bits that the matrix does not copy must stay
        bits_ = std::move(bits);
        wide_.weight.bind(w.rows, w.columns, bits_.data(), bits_.size(), values, size_t(w.nonzeros));
    });
    return wide_;
}

template <typename T>
void NarrowLinear<T>::run(const NarrowKernels& kernels, const Kernels& floats, const float* x, int64_t items, const float* bias,
                          Activation activation, float* y, const Threads& threads, const float* added) const {
    const RowsView<T>& w = weight_.view();
    if (items == 0 || w.rows == 0) return;
    if (items > kFewItems || weight_.density() < (items > 1 ? kSparseMany : kSparse)) return wide().run(floats, x, items, bias, activation, y, threads, added);
    const int64_t stride = w.words * 64;
    const float* padded = x;
    if (stride != w.columns) {
        float* copy = scratch(Scratch::input, size_t(stride * items));
        for (int64_t i = 0; i < items; i++) {
            std::copy(x + i * w.columns, x + (i + 1) * w.columns, copy + i * stride);
            std::fill(copy + i * stride + w.columns, copy + (i + 1) * stride, 0.0f);
        }
        padded = copy;
    }
    const bool later = added || activation > Activation::relu;
    const RowScale scale = {scale_.data(), scale_.size() > 1};
    threads.ranges(w.rows, std::max<int64_t>(16, 65536 / std::max<int64_t>(w.columns, 1)), 64, [&](int64_t row, int64_t end) {
        for (int64_t i = 0; i < items; i += kNarrowItems) {
            const int count = int(std::min<int64_t>(kNarrowItems, items - i));
            const Output part = {y + i * w.rows, w.rows, bias, later ? Activation::none : activation};
            emp::run(kernels, w, row, end, padded + i * stride, stride, count, scale, part);
        }
    });
    if (later) complete(floats, added, activation, y, items * w.rows, threads);
    if (!floats.finite(x, items * w.columns, 1, 0)) spread_non_finite(x, items, y, threads);
}

// Pruned weights are left out; times NaN or infinity they would be NaN.
template <typename T>
void NarrowLinear<T>::spread_non_finite(const float* x, int64_t items, float* y, const Threads& threads) const {
    const int64_t rows = this->rows(), columns = this->columns();
    threads.each(items, [&](int64_t i) {
        for (int64_t c = 0; c < columns; c++)
            for (int64_t r = 0; r < rows && !std::isfinite(x[i * columns + c]); r++)
                if (!weight_.bit(r, c)) y[i * rows + r] = std::numeric_limits<float>::quiet_NaN();
    });
}

template class NarrowLinear<Half>;
template class NarrowLinear<Bfloat>;
template class NarrowLinear<int8_t>;

}  // namespace emp
