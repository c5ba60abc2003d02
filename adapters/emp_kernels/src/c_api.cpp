// Plain C functions, for the tests and for programs without onnxruntime.
#include <atomic>
#include <cstring>
#include <thread>

#include "conv.hpp"
#include "linear.hpp"

#define EMP_PUBLIC extern "C" __attribute__((visibility("default")))

namespace {

void run_threads(void* lender, void (*piece)(void*, size_t), size_t count, void* data) {
    const int threads = *static_cast<int*>(lender);
    std::atomic<size_t> next{0};
    auto work = [&] {
        for (size_t i = next++; i < count; i = next++) piece(data, i);
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; t++) others.emplace_back(work);
    work();
    for (std::thread& one : others) one.join();
}

int answer(const std::string& wrong, char* message, size_t room) {
    if (room) message[wrong.copy(message, room - 1)] = 0;
    return wrong.empty() ? 0 : 1;
}

const emp::Kernels* named(const char* isa) { return isa && *isa ? emp::kernels(isa) : &emp::kernels(); }

}  // namespace

// The name of the instruction set in use.
EMP_PUBLIC const char* emp_kernels_isa() { return emp::kernels().name; }

// 1 if `isa` is compiled in and this processor has it.
EMP_PUBLIC int emp_kernels_has(const char* isa) { return emp::kernels(isa) != nullptr; }

// A packed weight [rows, columns], or [columns, rows] if `transposed`; null if it is malformed, and then `message` says how.
// `mask` and `values` must outlive it.
EMP_PUBLIC emp::Linear* emp_linear_new(int64_t rows, int64_t columns, int transposed, const uint8_t* mask, size_t bytes,
                                       const float* values, size_t count, char* message, size_t room) {
    auto* linear = new emp::Linear;
    const std::string wrong = transposed ? linear->weight.bind_transposed(rows, columns, mask, bytes, values, count)
                                         : linear->weight.bind(rows, columns, mask, bytes, values, count);
    if (answer(wrong, message, room) == 0) return linear;
    delete linear;
    return nullptr;
}

EMP_PUBLIC void emp_linear_free(emp::Linear* linear) { delete linear; }

// y[items, rows] = activation(x[items, columns] * weight + bias); bias may be null; relu is 0 or 1. Returns 1 if there is no such `isa`.
EMP_PUBLIC int emp_linear_run(const emp::Linear* linear, const char* isa, int threads, const float* x, int64_t items, const float* bias,
                              int relu, float* y) {
    const emp::Kernels* kernels = named(isa);
    if (!kernels) return 1;
    linear->run(*kernels, x, items, bias, relu ? emp::Activation::relu : emp::Activation::none, y, {&threads, run_threads});
    return 0;
}

// The way chosen for that many items: "dot", "gather" or "tile".
EMP_PUBLIC const char* emp_linear_way(const emp::Linear* linear, const char* isa, int64_t items) {
    const emp::Kernels* kernels = named(isa);
    if (!kernels) return "";
    const emp::Way way = linear->way(*kernels, items);
    return way == emp::Way::dot ? "dot" : way == emp::Way::gather ? "gather" : "tile";
}

// `geometry`: outputs, channels of a group, group, then two each of kernel, stride, dilation, pad at the begin, pad at the end.
EMP_PUBLIC emp::Conv* emp_conv_new(const int64_t* geometry, const uint8_t* mask, size_t bytes, const float* values, size_t count,
                                   char* message, size_t room) {
    auto* conv = new emp::Conv;
    std::memcpy(&conv->shape, geometry, sizeof conv->shape);
    const int64_t columns = conv->shape.channels * conv->shape.kernel[0] * conv->shape.kernel[1];
    if (answer(conv->weight.bind(conv->shape.outputs, columns, mask, bytes, values, count), message, room) == 0) return conv;
    delete conv;
    return nullptr;
}

EMP_PUBLIC void emp_conv_free(emp::Conv* conv) { delete conv; }

EMP_PUBLIC int emp_conv_run(const emp::Conv* conv, const char* isa, int threads, const float* x, int64_t images, int64_t height,
                            int64_t width, const float* bias, int relu, float* y) {
    const emp::Kernels* kernels = named(isa);
    if (!kernels) return 1;
    conv->run(*kernels, x, images, height, width, bias, nullptr, relu ? emp::Activation::relu : emp::Activation::none, y,
              {&threads, run_threads});
    return 0;
}
