#include "linear.hpp"

#include <atomic>
#include <cmath>
#include <limits>

namespace emp {

void complete(const Kernels& kernels, const float* added, Activation activation, float* y, int64_t count, const Threads& threads) {
    const bool plain = activation <= Activation::relu;
    threads.ranges(count, 16384, 64, [&](int64_t from, int64_t to) {
        float* part = y + from;
        if (added || activation == Activation::relu)
            kernels.finish(part, 0, 1, to - from, nullptr, added ? added + from : nullptr, 0, {plain ? activation : Activation::none, 0, 0, nullptr}, part);
        if (!plain) (activation == Activation::gelu ? kernels.cells.gelu : kernels.cells.gelu_tanh)(part, to - from);
    });
}

Way Linear::way(const Kernels& kernels, int64_t items) const {
    if (!weight.can_list()) return Way::dot;
    const double density = weight.density();
    if (items == 1 && kernels.pick()) return density < kPickFrom ? Way::gather : density < kPickBelow ? Way::pick : Way::dot;
    if (items == 1) return density < kernels.gather_below ? Way::gather : Way::dot;
    constexpr double least[] = {0.14, 0.2, 0.28};  // from which density on `dot` is faster for 2, 3 and 4 items
    return items <= 4 && density >= least[items - 2] ? Way::dot : Way::tile;
}

template <typename Land>
bool Linear::run_tile(const Kernels& kernels, const float* x, int64_t items, const Threads& threads, const Land& land) const {
    std::call_once(once_, [&] { tiles_.arrange(weight, std::max<int64_t>(1, weight.view().rows), kernels.max_groups >= 8); });
    const Tiles& w = tiles_;
    const int64_t columns = weight.view().columns;
    const Cut cut(items, std::min(kernels.max_groups, w.max_groups));
    float* input = scratch(Scratch::input, size_t(columns * cut.widest() * kLanes));
    std::atomic<bool> finite{true};
    for (int64_t tile = 0; tile < cut.tiles; tile++) {
        const int64_t i = cut.begin(tile) * kLanes;
        const int groups = cut.width(tile), lanes = groups * kLanes;
        const int count = int(std::min<int64_t>(lanes, items - i));
        threads.ranges(columns, 256, 16, [&](int64_t from, int64_t to) {
            if (!kernels.to_lanes(x + i * columns, columns, count, lanes, from, to, input + from * lanes)) finite = false;
        });
        threads.each(int64_t(w.chunks.size()), [&](int64_t chunk) {
            const Tiles::Chunk& rows = w.chunks[size_t(chunk)];
            float* sums = zeros(Scratch::sums, rows.room() * lanes);
            for (int64_t b = 0; b < w.blocks(); b++) {
                const float* next = w.fetch_ahead ? input + (b + 1 < w.blocks() ? b + 1 : 0) * w.block * lanes : nullptr;
                for (const Segment* one = w.begin(size_t(chunk), b); one < w.end(size_t(chunk), b); one++)
                    kernels.tile(*one, input + b * w.block / w.span * w.span * lanes, sums, groups, next);
            }
            land(sums, lanes, i, count, rows.row, rows.end);
        });
    }
    return finite;
}

void Linear::run(const Kernels& kernels, const float* x, int64_t items, const float* bias, Activation activation, float* y,
                 const Threads& threads, const float* added) const {
    if (items == 0 || weight.view().rows == 0) return;
    const Way chosen = way(kernels, items);
    const bool later = chosen != Way::tile && (added || activation > Activation::relu);
    const Output out = {y, weight.view().rows, bias, later ? Activation::none : activation, added};
    bool finite;
    if (chosen == Way::tile) {
        finite = run_tile(kernels, x, items, threads, [&](const float* sums, int lanes, int64_t i, int count, int64_t row, int64_t end) {
            const int64_t first = i * out.item_stride;
            const Output part = {out.y + first, out.item_stride, out.bias, out.activation, out.added ? out.added + first : nullptr};
            kernels.from_lanes(sums, lanes, count, row, end, part);
        });
    } else {
        finite = kernels.finite(x, items * weight.view().columns, 1, 0);
        chosen == Way::gather ? run_gather(kernels, x, out, threads) : run_dot(kernels, x, items, out, threads, chosen == Way::pick);
    }
    if (later) complete(kernels, added, activation, y, items * out.item_stride, threads);
    if (!finite) spread_non_finite(x, items, y, threads);
}

void Linear::run_gather(const Kernels& kernels, const float* x, const Output& out, const Threads& threads) const {
    const View& w = weight.listed();
    const int64_t least = std::max<int64_t>(16, 16384 * w.rows / std::max<int64_t>(w.nonzeros, 1));
    threads.ranges(w.rows, least, 64, [&](int64_t row, int64_t end) { kernels.gather(w, row, end, x, out); });
}

void Linear::run_dot(const Kernels& kernels, const float* x, int64_t items, const Output& out, const Threads& threads, bool pick) const {
    const View& w = weight.whole();
    const int64_t stride = (w.columns + 63) / 64 * 64;
    const float* padded = x;
    if (stride != w.columns || reinterpret_cast<uintptr_t>(x) % 64) {  // what is read across two cache lines takes twice as long
        float* copy = scratch(Scratch::input, size_t(stride * items));
        for (int64_t i = 0; i < items; i++) {
            std::copy(x + i * w.columns, x + (i + 1) * w.columns, copy + i * stride);
            std::fill(copy + i * stride + w.columns, copy + (i + 1) * stride, 0.0f);
        }
        padded = copy;
    }
    const int64_t least = std::max<int64_t>(16, 65536 / std::max<int64_t>(w.columns, 1));
    threads.ranges(w.rows, least, 64, [&](int64_t row, int64_t end) {
        if (pick) return kernels.pick()(w, row, end, padded, out);
        for (int64_t i = 0; i < items; i += kMaxItems) {
            const int count = int(std::min<int64_t>(kMaxItems, items - i));
            const Output part = {out.y + i * out.item_stride, out.item_stride, out.bias, out.activation};
            kernels.dot(w, row, end, padded + i * stride, stride, count, part);
        }
    });
}

bool Linear::run_heads(const Kernels& kernels, const float* x, const float* bias, const Heads& heads, float* y, const Threads& threads) const {
    const int64_t items = heads.sequences * heads.tokens, rows = weight.view().rows;
    if (items == 0 || rows == 0) return true;
    if (way(kernels, items) != Way::tile) return false;
    return run_tile(kernels, x, items, threads, [&](const float* sums, int lanes, int64_t i, int count, int64_t row, int64_t end) {
        for (int64_t item = i, stop; item < i + count; item = stop) {
            const int64_t sequence = item / heads.tokens, token = item % heads.tokens;
            stop = std::min(i + count, (sequence + 1) * heads.tokens);
            const float* own = sums + (item - i);
            float* to = y + sequence * heads.tokens * rows;
            if (heads.across) {  // as sums lie
                kernels.finish(own, lanes, end - row, stop - item, bias ? bias + row : nullptr, nullptr, heads.tokens, {Activation::none, 0, 0, nullptr},
                               to + row * heads.tokens + token);
                continue;
            }
            for (int64_t r = row, next; r < end; r = next) {
                const int64_t head = r / heads.size;
                next = std::min(end, (head + 1) * heads.size);
                const Output part = {to + (head * heads.tokens + token) * heads.size - head * heads.size, heads.size, bias, Activation::none};
                kernels.from_lanes(own + (r - row) * lanes, lanes, int(stop - item), r, next, part);
            }
        }
    });
}

// The kernels leave out pruned weights, or multiply them, as it suits them. Where x is NaN or infinite it makes a difference: 0 * inf is NaN.
void Linear::spread_non_finite(const float* x, int64_t items, float* y, const Threads& threads) const {
    const int64_t rows = weight.view().rows, columns = weight.view().columns;
    threads.each(items, [&](int64_t i) {
        std::vector<int64_t> found;
        for (int64_t c = 0; c < columns; c++)
            if (!std::isfinite(x[i * columns + c])) found.push_back(c);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c : found)
                if (!weight.bit(r, c)) {
                    y[i * rows + r] = std::numeric_limits<float>::quiet_NaN();
                    break;
                }
    });
}

}  // namespace emp
