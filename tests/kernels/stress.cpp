// Made to be run under sanitizers: weights of any shape, well-formed or not, in arrays of exactly their size, used by several threads at once.
// Arguments: seed, rounds, seconds after which no round begins (0: all are made), "hostile" for malformed weights alone. What has been made is told
// every two seconds. Exit code 0 if every well-formed one gave the right result, and every other one was refused.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <thread>

#include "conv.hpp"
#include "form.hpp"
#include "integer_conv.hpp"
#include "linear.hpp"
#include "narrow.hpp"
#include "own_threads.hpp"
#include "recurrent.hpp"

using namespace emp;

namespace {

std::mt19937 source;
int64_t below(int64_t limit) { return int64_t(source() % uint64_t(limit)); }

// Exactly `size` elements on the heap: one more, and the sanitizer says so.
template <typename T>
struct Exact {
    explicit Exact(size_t size) : data(new T[size]), size(size) {}
    ~Exact() { delete[] data; }
    T* data;
    size_t size;
};

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "FAILED: %s\n", what);
    std::exit(1);
}

const Kernels& any_kernels() {
    const char* const names[] = {"avx512", "avx2", "neon", "portable"};
    for (;;)
        if (const Kernels* found = kernels(names[below(4)])) return *found;
}

// What a piece throws arrives at whoever asked for all of them.
void throwing_round() {
    int threads = int(1 + below(4));
    const int64_t count = 1 + below(50), bad = below(count);
    std::atomic<int64_t> made{0};
    try {
        Threads{&threads, run_threads}.each(count, [&](int64_t i) {
            if (i == bad) throw std::bad_alloc();
            made++;
        });
    } catch (const std::bad_alloc&) {
        if (made < count) return;
    }
    fail("what a piece throws must arrive");
}

// A product, by four threads that share the weight, each with threads of its own.
void linear_round() {
    const int64_t rows = below(200), columns = below(400), items = below(3) ? below(6) : below(140);
    const double density = double(below(11)) / 10;
    std::vector<float> dense(size_t(rows * columns));
    std::vector<float> kept;
    Exact<uint8_t> mask(size_t(rows * columns + 7) / 8);
    std::memset(mask.data, 0, mask.size);
    for (size_t i = 0; i < dense.size(); i++)
        if (double(below(1000)) < 1000 * density) {
            dense[i] = float(below(2000)) / 1000 - 1;
            kept.push_back(dense[i]);
            mask.data[i / 8] |= uint8_t(1 << (i % 8));
        }
    const bool transposed = below(2);
    Exact<float> values(kept.size());
    std::copy(kept.begin(), kept.end(), values.data);
    Linear linear;
    const std::string wrong = transposed ? linear.weight.bind_transposed(columns, rows, mask.data, mask.size, values.data, values.size)
                                         : linear.weight.bind(rows, columns, mask.data, mask.size, values.data, values.size);
    if (!wrong.empty()) fail(wrong.c_str());
    const int64_t n = transposed ? columns : rows, k = transposed ? rows : columns;
    Exact<float> x(size_t(items * k)), bias(static_cast<size_t>(n)), added(size_t(items * n));
    for (size_t i = 0; i < x.size; i++) x.data[i] = float(below(2000)) / 1000 - 1;
    for (size_t i = 0; i < bias.size; i++) bias.data[i] = float(i);
    for (size_t i = 0; i < added.size; i++) added.data[i] = float(below(2000)) / 1000 - 1;
    const Kernels& chosen = any_kernels();
    const bool summed = below(2), across = below(2);
    const Activation activation = below(2) ? Activation::none : below(2) ? Activation::gelu : Activation::gelu_tanh;
    std::vector<std::thread> users;
    for (int user = 0; user < 4; user++)
        users.emplace_back([&, user] {
            int threads = 1 + user;
            const int64_t mine = user % 2 ? std::min<int64_t>(items, 1) : items;  // ways of their own, at the same time
            Exact<float> y(size_t(mine * n));
            linear.run(chosen, x.data, mine, bias.data, activation, y.data, {&threads, run_threads}, summed ? added.data : nullptr);
            for (int64_t i = 0; i < mine; i++)
                for (int64_t r = 0; r < n; r++) {
                    const double more = summed ? added.data[i * n + r] : 0.0;
                    double sum = bias.data[r] + more, scale = std::fabs(bias.data[r]) + std::fabs(more) + 1e-20;
                    for (int64_t c = 0; c < k; c++) {
                        const double w = transposed ? dense[size_t(c * n + r)] : dense[size_t(r * k + c)];
                        sum += w * x.data[i * k + c], scale += std::fabs(w * x.data[i * k + c]);
                    }
                    if (activation == Activation::gelu) sum *= (1 + std::erf(sum * std::sqrt(0.5))) / 2;
                    if (activation == Activation::gelu_tanh) sum *= (1 + std::tanh(std::sqrt(2 / 3.141592653589793) * (sum + 0.044715 * sum * sum * sum))) / 2;
                    if (!(std::fabs(y.data[i * n + r] - sum) <= 1.2e-5 * scale)) fail("a product is wrong");
                }
            if (summed || activation != Activation::none) return;
            const int64_t count = n % 3 == 0 ? 3 : 1, parts = mine % 2 == 0 ? 2 : 1, tokens = mine / parts, size = n / count;
            Exact<float> sorted(y.size);
            if (!linear.run_heads(chosen, x.data, bias.data, {parts, tokens, count, size, across}, sorted.data, {&threads, run_threads})) return;
            for (int64_t i = 0; i < mine; i++)
                for (int64_t r = 0; r < n; r++) {
                    const int64_t t = i % tokens, head = (i / tokens * count + r / size) * tokens * size, own = r % size;
                    if (sorted.data[head + (across ? own * tokens + t : t * size + own)] != y.data[i * n + r]) fail("a product by heads is wrong");
                }
        });
    for (std::thread& user : users) user.join();
}

// 8-bit weights, stored in arrays of exactly their size, in rows or in columns.
struct Bytes {
    Bytes(int64_t rows, int64_t columns, bool transposed) : dense(size_t(rows * columns)), mask(size_t(rows * columns + 7) / 8) {
        const int64_t density = below(11);
        for (int8_t& one : dense) one = below(10) < density ? int8_t(below(256) - 128) : int8_t(0);
        std::memset(mask.data, 0, mask.size);
        std::vector<int8_t> kept;
        for (int64_t i = 0; i < rows * columns; i++) {
            const int8_t one = dense[size_t(transposed ? i % rows * columns + i / rows : i)];
            if (!one) continue;
            kept.push_back(one);
            mask.data[i / 8] |= uint8_t(1 << (i % 8));
        }
        count = kept.size();
        values = std::make_unique<Exact<int8_t>>(count);
        std::copy(kept.begin(), kept.end(), values->data);
    }
    std::vector<int8_t> dense;
    Exact<uint8_t> mask;
    std::unique_ptr<Exact<int8_t>> values;
    size_t count;
};

// Products of integers, and of integers with floats, by four threads that share the weight.
void byte_round() {
    const int64_t rows = below(150), columns = below(400), items = below(3) ? below(6) : below(140);
    const bool transposed = below(2);
    const Bytes given(rows, columns, transposed);
    const char* const names[] = {"avx512", "avxvnni", "avx2", "portable"};
    const IntegerKernels* chosen = nullptr;
    while (!chosen) chosen = integer_kernels(names[below(4)]);
    const NarrowKernels* narrow = narrow_kernels(below(2) ? "avx2" : "portable");
    if (!narrow) narrow = narrow_kernels("portable");
    IntegerLinear linear;
    NarrowLinear<int8_t> wide;
    const std::string wrong = linear.weight.bind(rows, columns, transposed, given.mask.data, given.mask.size, given.values->data, given.count) +
                              wide.bind(rows, columns, transposed, given.mask.data, given.mask.size, given.values->data, given.count, {1.0f});
    if (!wrong.empty()) fail(wrong.c_str());
    linear.scale = {1.0f};
    linear.prepare();
    Exact<float> x(size_t(items * columns));
    // whole numbers whose scale is 1: both ways are exact
    for (size_t i = 0; i < x.size; i++) x.data[i] = float(below(256) - 100);
    if (items && columns > 1) x.data[0] = -100, x.data[1] = 155;
    std::vector<std::thread> users;
    for (int user = 0; user < 4; user++)
        users.emplace_back([&, user] {
            int threads = 1 + user;
            Exact<float> y(size_t(items * rows)), z(y.size);
            linear.run(*chosen, kernels(), x.data, items, nullptr, Activation::none, y.data, {&threads, run_threads});
            wide.run(*narrow, kernels(), x.data, items, nullptr, Activation::none, z.data, {&threads, run_threads});
            for (int64_t i = 0; i < items; i++)
                for (int64_t r = 0; r < rows; r++) {
                    int64_t sum = 0;
                    for (int64_t c = 0; c < columns; c++) sum += int64_t(given.dense[size_t(r * columns + c)]) * int64_t(x.data[i * columns + c]);
                    if (z.data[i * rows + r] != float(sum)) fail("a product with 8-bit weights is wrong");
                    if (columns > 1 && y.data[i * rows + r] != float(sum)) fail("a product of integers is wrong");
                }
        });
    for (std::thread& user : users) user.join();
}

// Kernels, strides, dilations and pads of a convolution.
void any_axes(ConvShape& s) {
    for (int i = 0; i < 2; i++) {
        s.kernel[i] = 1 + below(3), s.stride[i] = 1 + below(3), s.dilation[i] = 1 + below(2);
        s.pad_begin[i] = below(3), s.pad_end[i] = below(3);
    }
}

// A mask of so many elements, a quarter of them set; how many are.
size_t any_bits(Exact<uint8_t>& mask, int64_t elements) {
    size_t count = 0;
    for (size_t i = 0; i < mask.size; i++) mask.data[i] = uint8_t(below(256) & below(256));
    if (elements % 8) mask.data[mask.size - 1] &= uint8_t((1 << (elements % 8)) - 1);
    for (size_t i = 0; i < mask.size; i++) count += size_t(__builtin_popcount(mask.data[i]));
    return count;
}

void conv_round() {
    Conv conv;
    ConvShape& s = conv.shape;
    s.group = 1 + below(2), s.outputs = s.group * (1 + below(140)), s.channels = 1 + below(8);
    any_axes(s);
    if (below(3) == 0) {
        for (int i = 0; i < 2; i++) s.kernel[i] = 3, s.stride[i] = s.dilation[i] = 1;
        conv.winograd_wherever_it_can = true;
    }
    const int64_t columns = s.channels * s.kernel[0] * s.kernel[1], height = 1 + below(20), width = 1 + below(20);
    if (s.out(0, height) < 0 || s.out(1, width) < 0) return;
    Exact<uint8_t> mask(size_t(s.outputs * columns + 7) / 8);
    const size_t count = any_bits(mask, s.outputs * columns);
    Exact<float> values(count), x(size_t(2 * s.group * s.channels * height * width));
    for (size_t i = 0; i < count; i++) values.data[i] = float(below(7)) - 3;
    for (size_t i = 0; i < x.size; i++) x.data[i] = float(below(7)) - 3;
    if (!conv.weight.bind(s.outputs, columns, mask.data, mask.size, values.data, count).empty()) fail("a convolution was refused");
    Exact<float> first(size_t(2 * s.outputs * s.out(0, height) * s.out(1, width))), second(first.size);
    int threads = 4, alone = 1;
    conv.run(any_kernels(), x.data, 2, height, width, nullptr, nullptr, {Activation::relu, 0, 0, nullptr}, first.data, {&threads, run_threads});
    conv.run(*kernels("portable"), x.data, 2, height, width, nullptr, nullptr, {Activation::relu, 0, 0, nullptr}, second.data, {&alone, run_threads});
    // whole numbers: every order of additions gives the same
    for (size_t i = 0; i < first.size; i++)
        if (first.data[i] != second.data[i]) fail("instruction sets disagree on a convolution");
    PoolShape p;
    for (int i = 0; i < 2; i++)
        p.kernel[i] = 1 + below(3), p.stride[i] = 1 + below(3), p.pad_begin[i] = below(int(p.kernel[i])), p.pad_end[i] = below(int(p.kernel[i]));
    const int64_t rows = p.out(0, s.out(0, height)), pixels = p.out(1, s.out(1, width));
    if (rows < 0 || pixels < 0) return;
    Exact<float> pooled(size_t(2 * s.outputs * rows * pixels)), again(pooled.size);
    conv.run_pooled(any_kernels(), x.data, 2, height, width, nullptr, {Activation::relu, 0, 0, nullptr}, p, pooled.data, {&threads, run_threads});
    conv.run_pooled(*kernels("portable"), x.data, 2, height, width, nullptr, {Activation::relu, 0, 0, nullptr}, p, again.data, {&alone, run_threads});
    for (size_t i = 0; i < pooled.size; i++)
        if (pooled.data[i] != again.data[i]) fail("instruction sets disagree on a pool");
}

void integer_conv_round() {
    IntegerConv conv;
    ConvShape& s = conv.shape;
    s.group = 1, s.outputs = 1 + below(140), s.channels = 1 + below(12);
    any_axes(s);
    const int64_t columns = s.channels * s.kernel[0] * s.kernel[1], height = 1 + below(20), width = 1 + below(20);
    if (s.out(0, height) < 0 || s.out(1, width) < 0) return;
    Exact<uint8_t> mask(size_t(s.outputs * columns + 7) / 8);
    const size_t count = any_bits(mask, s.outputs * columns);
    Exact<int8_t> values(count);
    Exact<float> x(size_t(2 * s.channels * height * width));
    for (size_t i = 0; i < count; i++) values.data[i] = int8_t(below(256) - 128);
    for (size_t i = 0; i < x.size; i++) x.data[i] = float(below(700)) - 300;
    conv.scale = 0.5f;
    if (!conv.bind(mask.data, mask.size, values.data, count).empty()) fail("a convolution of integers was refused");
    Exact<float> wanted(size_t(2 * s.outputs * s.out(0, height) * s.out(1, width)));
    int alone = 1;
    conv.run(*integer_kernels("portable"), *kernels("portable"), x.data, 2, height, width, nullptr, Activation::relu, wanted.data, {&alone, run_threads});
    std::vector<std::thread> users;
    for (const char* name : {"avx512", "avxvnni", "avx2", "portable"})
        users.emplace_back([&, name] {
            int threads = 3;
            const IntegerKernels* chosen = integer_kernels(name);
            if (!chosen) return;
            Exact<float> y(wanted.size);
            conv.run(*chosen, kernels(), x.data, 2, height, width, nullptr, Activation::relu, y.data, {&threads, run_threads});
            for (size_t i = 0; i < y.size; i++)
                if (y.data[i] != wanted.data[i]) fail("instruction sets disagree on a convolution of integers");
        });
    for (std::thread& user : users) user.join();
}

// A packed weight of any density, in arrays of exactly its size.
struct Floats {
    explicit Floats(int64_t elements) : dense(size_t(elements)), mask(size_t(elements + 7) / 8) {
        const int64_t density = below(11);
        for (float& one : dense) one = below(10) < density ? float(below(2000)) / 4000 - 0.25f : 0.0f;
        std::memset(mask.data, 0, mask.size);
        std::vector<float> kept;
        for (size_t i = 0; i < dense.size(); i++)
            if (dense[i] != 0) kept.push_back(dense[i]), mask.data[i / 8] |= uint8_t(1 << (i % 8));
        values = std::make_unique<Exact<float>>(kept.size());
        std::copy(kept.begin(), kept.end(), values->data);
    }
    PackedRows rows() const { return {mask.data, mask.size, values->data, values->size}; }
    std::vector<float> dense;
    Exact<uint8_t> mask;
    std::unique_ptr<Exact<float>> values;
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// One direction of a cell, as ONNX writes it down; y[steps, batch, hidden] of this direction.
void plain_cell(const RecurrentShape& s, int64_t direction, const float* w, const float* r, const Sequence& given, std::vector<double>& y) {
    const int64_t n = s.hidden, rows = s.gates() * n, batch = given.batch;
    const bool backward = direction == 1 || s.backward;
    const float* bias = given.bias + direction * 2 * rows;
    y.assign(size_t(given.steps * batch * n), 0.0);
    for (int64_t b = 0; b < batch; b++) {
        std::vector<double> h(static_cast<size_t>(n)), c(h), next(h);
        for (int64_t i = 0; i < n; i++) h[size_t(i)] = given.state[(direction * batch + b) * n + i];
        for (int64_t step = 0; step < given.lengths[b]; step++) {
            const int64_t t = backward ? given.lengths[b] - 1 - step : step;
            auto from_x = [&](int64_t row) {
                double sum = bias[row];
                for (int64_t k = 0; k < s.inputs; k++) sum += double(w[(direction * rows + row) * s.inputs + k]) * double(given.x[(t * batch + b) * s.inputs + k]);
                return sum;
            };
            auto from_h = [&](int64_t row, auto state) {
                double sum = bias[rows + row];
                for (int64_t k = 0; k < n; k++) sum += double(r[(direction * rows + row) * n + k]) * state(k);
                return sum;
            };
            auto plain = [&](int64_t k) { return h[size_t(k)]; };
            auto reset = [&](int64_t k) { return h[size_t(k)] * sigmoid(from_x(n + k) + from_h(n + k, plain)); };
            for (int64_t i = 0; i < n; i++) {
                const size_t at = size_t(i);
                if (s.cell == Cell::rnn) {
                    next[at] = std::tanh(from_x(i) + from_h(i, plain));
                } else if (s.cell == Cell::lstm) {
                    const double in = sigmoid(from_x(i) + from_h(i, plain)), out = sigmoid(from_x(n + i) + from_h(n + i, plain));
                    c[at] = sigmoid(from_x(2 * n + i) + from_h(2 * n + i, plain)) * c[at] + in * std::tanh(from_x(3 * n + i) + from_h(3 * n + i, plain));
                    next[at] = out * std::tanh(c[at]);
                } else {
                    const double update = sigmoid(from_x(i) + from_h(i, plain));
                    const double other = s.reset_after ? sigmoid(from_x(n + i) + from_h(n + i, plain)) * from_h(2 * n + i, plain) : from_h(2 * n + i, reset);
                    next[at] = (1 - update) * std::tanh(from_x(2 * n + i) + other) + update * h[at];
                }
            }
            h = next;
            for (int64_t i = 0; i < n; i++) y[size_t((t * batch + b) * n + i)] = h[size_t(i)];
        }
    }
}

// Recurrent cells by four threads that share the weights; and weights whose sizes do not agree, which are refused.
void recurrent_round() {
    RecurrentShape s = {Cell(below(3)), 1 + below(2), below(20), 1 + below(40), below(2) == 1, below(2) == 1};
    const int64_t rows = s.directions * s.gates() * s.hidden, batch = 1 + below(7), steps = below(5), n = s.hidden;
    const Floats w(rows * s.inputs), r(rows * n);
    Recurrent cell, wrong;
    if (!cell.bind(s, w.rows(), r.rows()).empty()) fail("a recurrent cell was refused");
    PackedRows bad = r.rows();
    below(2) && bad.count ? bad.count-- : bad.bytes--;
    if (wrong.bind(s, w.rows(), bad).empty()) fail("a recurrent cell was not refused");
    Exact<float> x(size_t(steps * batch * s.inputs)), bias(size_t(2 * rows)), state(size_t(s.directions * batch * n));
    Exact<int32_t> lengths(static_cast<size_t>(batch));
    for (const Exact<float>* one : {&x, &bias, &state})
        for (size_t i = 0; i < one->size; i++) one->data[i] = float(below(2000)) / 1000 - 1;
    for (int64_t i = 0; i < batch; i++) lengths.data[i] = int32_t(below(steps + 1));
    const Sequence given = {x.data, steps, batch, bias.data, lengths.data, state.data, nullptr};
    std::vector<double> want[2];
    for (int64_t d = 0; d < s.directions; d++) plain_cell(s, d, w.dense.data(), r.dense.data(), given, want[d]);
    const Kernels& chosen = any_kernels();
    std::vector<std::thread> users;
    for (int user = 0; user < 4; user++)
        users.emplace_back([&, user] {
            int threads = 1 + user;
            Exact<float> y(size_t(steps * s.directions * batch * n));
            cell.run(chosen, given, {y.data, nullptr, nullptr}, {&threads, run_threads});
            for (int64_t i = 0; i < int64_t(y.size); i++) {
                const int64_t t = i / (s.directions * batch * n), d = i / (batch * n) % s.directions, rest = i % (batch * n);
                if (!(std::fabs(y.data[i] - want[d][size_t(t * batch * n + rest)]) <= 2e-5)) fail("a recurrent cell is wrong");
            }
        });
    for (std::thread& user : users) user.join();
}

// Sizes and contents that need not agree: either refused, or used without leaving the arrays.
void hostile_round() {
    const int64_t shapes[] = {-1, 0, 1, 3, 8, 17, 64, 100, int64_t(1) << 33, INT64_MAX};
    const int64_t rows = shapes[below(below(4) ? 8 : 10)], columns = shapes[below(below(4) ? 8 : 10)];
    const bool sane = rows >= 0 && columns >= 0 && rows <= 100 && columns <= 100;
    const size_t honest = sane ? size_t(rows * columns + 7) / 8 : 0;
    Exact<uint8_t> mask(below(3) ? honest : size_t(below(1300)));
    size_t bits = 0;
    for (size_t i = 0; i < mask.size; i++) mask.data[i] = uint8_t(source());
    for (size_t i = 0; i < mask.size; i++) bits += size_t(__builtin_popcount(mask.data[i]));
    Exact<float> values(below(3) ? bits : size_t(below(1300)));
    std::fill(values.data, values.data + values.size, 1.0f);
    Linear linear;
    const std::string wrong = below(2) ? linear.weight.bind(rows, columns, mask.data, mask.size, values.data, values.size)
                                       : linear.weight.bind_transposed(rows, columns, mask.data, mask.size, values.data, values.size);
    if (wrong.empty() && sane) {
        int threads = 2;
        const int64_t items = 1 + below(20);
        Exact<float> x(size_t(items * columns)), y(size_t(items * rows));
        std::fill(x.data, x.data + x.size, 1.0f);
        linear.run(any_kernels(), x.data, items, nullptr, Activation::none, y.data, {&threads, run_threads});
    }
    Rows<int8_t> bytes;
    const Exact<int8_t> stored(below(3) ? bits : size_t(below(1300)));
    std::memset(stored.data, 1, stored.size);
    bytes.bind(rows, columns, below(2), mask.data, mask.size, stored.data, stored.size);
    const int widths[] = {4, 6, 8};
    Codes codes = {mask.data, values.size ? reinterpret_cast<uint8_t*>(values.data) : nullptr, mask.size, values.size * sizeof(float), 0, widths[below(3)]};
    codes.count = below(4) ? int64_t(codes.bits == 8 ? mask.size : 2 * mask.size) - below(2) : shapes[below(10)];
    if (codes.bits == 6 && below(2)) codes.high_bytes = std::min(codes.high_bytes, size_t(std::max<int64_t>(0, std::min<int64_t>(codes.count, 1 << 20)) + 3) / 4);
    if (codes.bits != 6) codes.high_bytes = 0;
    Buffer<uint8_t> made;
    mask_of(codes, sane ? rows * columns : below(20000), size_t(below(1300)), made);
}

}  // namespace

int main(int count, char** arguments) {
    source.seed(count > 1 ? unsigned(std::atoi(arguments[1])) : 0);
    const int rounds = count > 2 ? std::atoi(arguments[2]) : 100;
    const double limit = count > 3 ? std::atof(arguments[3]) : 0;
    const bool hostile = count > 4 && std::strcmp(arguments[4], "hostile") == 0;
    const auto begin = std::chrono::steady_clock::now();
    auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
    int made = 0;
    for (double told = 0; made < rounds && !(limit > 0 && seconds() >= limit); made++) {
        if (!hostile) throwing_round(), linear_round(), byte_round(), conv_round(), integer_conv_round(), recurrent_round();
        for (int j = 0; j < 20; j++) hostile_round();
        if (seconds() >= told + 2) told = seconds(), std::fprintf(stderr, "%d rounds in %.0f s\n", made + 1, told);
    }
    std::printf("%d rounds\n", made);
}
