// Plain C functions, for the tests and for programs without onnxruntime. Those that run return 0; 1 where there is no such instruction set or activation; 3
// where there is not enough memory.
#include <cstring>
#include <memory>

#include "conv.hpp"
#include "integer_conv.hpp"
#include "linear.hpp"
#include "narrow.hpp"
#include "own_threads.hpp"

#define EMP_PUBLIC extern "C" __attribute__((visibility("default")))

namespace {

using emp::run_threads;

int answer(const std::string& wrong, char* message, size_t room) {
    if (room) message[wrong.copy(message, room - 1)] = 0;
    return wrong.empty() ? 0 : 1;
}

// What `make` gives, which says in `wrong` what is wrong with it; null then. Nothing is thrown at a caller who may not know of exceptions.
template <typename T, typename Bind>
T* made(const Bind& bind, char* message, size_t room) {
    try {
        auto object = std::make_unique<T>();
        return answer(bind(*object), message, room) == 0 ? object.release() : nullptr;
    } catch (const std::exception&) {
        answer("needs more memory than there is", message, room);
        return nullptr;
    }
}

// What `work` returns; 3 where there is not enough memory.
template <typename Work>
int done(const Work& work) {
    try {
        return work();
    } catch (const std::exception&) {
        return 3;
    }
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
    const auto bind = [&](emp::Linear& linear) {
        return transposed ? linear.weight.bind_transposed(rows, columns, mask, bytes, values, count)
                          : linear.weight.bind(rows, columns, mask, bytes, values, count);
    };
    return made<emp::Linear>(bind, message, room);
}

EMP_PUBLIC void emp_linear_free(emp::Linear* linear) { delete linear; }

// y[items, rows] = activation(x[items, columns] * weight + bias + added); bias and added, which is as large as y, may be null; activation is 0 (none),
// 1 (relu), 2 (Gelu) or 3 (Gelu by tanh). Returns 1 if there is no such `isa`, or no such activation.
EMP_PUBLIC int emp_linear_run(const emp::Linear* linear, const char* isa, int threads, const float* x, int64_t items, const float* bias,
                              const float* added, int activation, float* y) {
    const emp::Kernels* kernels = named(isa);
    if (!kernels || activation < 0 || activation > 3) return 1;
    return done([&] {
        linear->run(*kernels, x, items, bias, emp::Activation(activation), y, {&threads, run_threads}, added);
        return 0;
    });
}

// y, sorted by heads: `heads` holds sequences, tokens, heads, their size, and whether they lie across. 2: not done (Linear::run_heads says when).
EMP_PUBLIC int emp_linear_run_heads(const emp::Linear* linear, const char* isa, int threads, const float* x, const float* bias, const int64_t* heads,
                                    float* y) {
    const emp::Kernels* kernels = named(isa);
    if (!kernels) return 1;
    const emp::Heads given = {heads[0], heads[1], heads[2], heads[3], heads[4] != 0};
    return done([&] { return linear->run_heads(*kernels, x, bias, given, y, {&threads, run_threads}) ? 0 : 2; });
}

// x becomes its Gelu, by tanh if that is not 0. Returns 1 if there is no such `isa`.
EMP_PUBLIC int emp_gelu(const char* isa, int tanh, float* x, int64_t count) {
    const emp::Kernels* kernels = named(isa);
    if (!kernels) return 1;
    (tanh ? kernels->cells.gelu_tanh : kernels->cells.gelu)(x, count);
    return 0;
}

// The way chosen for that many items: "dot", "pick", "gather" or "tile".
EMP_PUBLIC const char* emp_linear_way(const emp::Linear* linear, const char* isa, int64_t items) {
    const emp::Kernels* kernels = named(isa);
    if (!kernels) return "";
    const emp::Way way = linear->way(*kernels, items);
    return way == emp::Way::dot ? "dot" : way == emp::Way::pick ? "pick" : way == emp::Way::gather ? "gather" : "tile";
}

// `geometry`: outputs, channels of a group, group, then two each of kernel, stride, dilation, pad at the begin, pad at the end.
EMP_PUBLIC emp::Conv* emp_conv_new(const int64_t* geometry, const uint8_t* mask, size_t bytes, const float* values, size_t count,
                                   char* message, size_t room) {
    const auto bind = [&](emp::Conv& conv) -> std::string {
        std::memcpy(&conv.shape, geometry, sizeof conv.shape);
        const std::string wrong = conv.shape.wrong();
        if (!wrong.empty()) return wrong;
        const int64_t columns = conv.shape.channels * conv.shape.kernel[0] * conv.shape.kernel[1];
        const std::string disagrees = conv.weight.bind(conv.shape.outputs, columns, mask, bytes, values, count);
        return disagrees.empty() && !conv.weight.can_list() ? "must have at most 65536 weights for each output" : disagrees;
    };
    return made<emp::Conv>(bind, message, room);
}

EMP_PUBLIC void emp_conv_free(emp::Conv* conv) { delete conv; }

// Whether it is done by Winograd's method, for an image of this size; `wherever` it can be, from now on.
EMP_PUBLIC int emp_conv_by_winograd(emp::Conv* conv, const char* isa, int64_t images, int64_t height, int64_t width, int wherever) {
    const emp::Kernels* kernels = named(isa);
    conv->winograd_wherever_it_can = wherever;
    return kernels && conv->by_winograd(*kernels, emp::Layout(conv->shape, height, width), images);
}

// `activation`: its place in the list of kernels.hpp; its numbers are those of an `Ending`.
EMP_PUBLIC int emp_conv_run(const emp::Conv* conv, const char* isa, int threads, const float* x, int64_t images, int64_t height,
                            int64_t width, const float* bias, const float* added, int activation, float low, float high,
                            const float* slope, float* y) {
    const emp::Kernels* kernels = named(isa);
    if (!kernels || activation < 0 || activation > int(emp::Activation::hard_swish)) return 1;
    return done([&] {
        conv->run(*kernels, x, images, height, width, bias, added, {emp::Activation(activation), low, high, slope}, y, {&threads, run_threads});
        return 0;
    });
}

// The same with a pool behind it; `pool`: two each of kernel, stride, pad at the begin, pad at the end.
EMP_PUBLIC int emp_conv_run_pooled(const emp::Conv* conv, const char* isa, int threads, const float* x, int64_t images, int64_t height,
                                   int64_t width, const float* bias, int relu, const int64_t* pool, float* y) {
    const emp::Kernels* kernels = named(isa);
    if (!kernels) return 1;
    emp::PoolShape shape;
    std::memcpy(&shape, pool, sizeof shape);
    const emp::Ending ending = {relu ? emp::Activation::relu : emp::Activation::none, 0, 0, nullptr};
    return done([&] {
        conv->run_pooled(*kernels, x, images, height, width, bias, ending, shape, y, {&threads, run_threads});
        return 0;
    });
}

// A packed weight of 8-bit integers; `scale` holds `scales` floats: one, or one for each row. Otherwise as emp_linear_new.
EMP_PUBLIC emp::IntegerLinear* emp_integer_new(int64_t rows, int64_t columns, int transposed, const uint8_t* mask, size_t bytes,
                                               const int8_t* values, size_t count, const float* scale, size_t scales, char* message, size_t room) {
    const auto bind = [&](emp::IntegerLinear& linear) -> std::string {
        if (scales != 1 && scales != size_t(rows)) return "must have one scale, or one for each of its outputs, got " + std::to_string(scales);
        const std::string wrong = linear.weight.bind(rows, columns, transposed, mask, bytes, values, count);
        linear.scale.assign(scale, scale + scales);
        if (wrong.empty()) linear.prepare();
        return wrong;
    };
    return made<emp::IntegerLinear>(bind, message, room);
}

EMP_PUBLIC void emp_integer_free(emp::IntegerLinear* linear) { delete linear; }

// 1 if `isa` is compiled in for integers and this processor has it.
EMP_PUBLIC int emp_integer_has(const char* isa) { return emp::integer_kernels(isa) != nullptr; }

EMP_PUBLIC int emp_integer_run(const emp::IntegerLinear* linear, const char* isa, int threads, const float* x, int64_t items, const float* bias,
                               int relu, float* y) {
    const emp::IntegerKernels* kernels = isa && *isa ? emp::integer_kernels(isa) : &emp::integer_kernels();
    if (!kernels) return 1;
    return done([&] {
        linear->run(*kernels, emp::kernels(), x, items, bias, relu ? emp::Activation::relu : emp::Activation::none, y, {&threads, run_threads});
        return 0;
    });
}

// The same for a convolution of one group; `geometry` as in emp_conv_new.
EMP_PUBLIC emp::IntegerConv* emp_integer_conv_new(const int64_t* geometry, const uint8_t* mask, size_t bytes, const int8_t* values, size_t count,
                                                  float scale, char* message, size_t room) {
    const auto bind = [&](emp::IntegerConv& conv) -> std::string {
        std::memcpy(&conv.shape, geometry, sizeof conv.shape);
        conv.scale = scale;
        const std::string wrong = conv.shape.wrong();
        return wrong.empty() ? conv.bind(mask, bytes, values, count) : wrong;
    };
    return made<emp::IntegerConv>(bind, message, room);
}

EMP_PUBLIC void emp_integer_conv_free(emp::IntegerConv* conv) { delete conv; }

EMP_PUBLIC int emp_integer_conv_run(const emp::IntegerConv* conv, const char* isa, int threads, const float* x, int64_t images, int64_t height,
                                    int64_t width, const float* bias, int relu, float* y) {
    const emp::IntegerKernels* kernels = isa && *isa ? emp::integer_kernels(isa) : &emp::integer_kernels();
    if (!kernels) return 1;
    return done([&] {
        conv->run(*kernels, emp::kernels(), x, images, height, width, bias, relu ? emp::Activation::relu : emp::Activation::none, y, {&threads, run_threads});
        return 0;
    });
}

namespace {

template <typename T>
void* new_narrow(int64_t rows, int64_t columns, int transposed, const uint8_t* mask, size_t bytes, const void* values, size_t count,
                 const float* scale, size_t scales, char* message, size_t room) {
    const auto* given = static_cast<const T*>(values);
    const auto bind = [&](emp::NarrowLinear<T>& linear) {
        return linear.bind(rows, columns, transposed, mask, bytes, given, count, {scale, scale + scales});
    };
    return made<emp::NarrowLinear<T>>(bind, message, room);
}

template <typename T>
void run_narrow(const void* linear, const emp::NarrowKernels& kernels, int threads, const float* x, int64_t items, const float* bias, int relu, float* y) {
    static_cast<const emp::NarrowLinear<T>*>(linear)->run(kernels, emp::kernels(), x, items, bias,
                                                          relu ? emp::Activation::relu : emp::Activation::none, y, {&threads, run_threads});
}

}  // namespace

// A packed weight of type 'h' (float16), 'b' (bfloat16) or 'i' (8-bit integers), with its factors; otherwise as emp_linear_new.
EMP_PUBLIC void* emp_narrow_new(char type, int64_t rows, int64_t columns, int transposed, const uint8_t* mask, size_t bytes, const void* values,
                                size_t count, const float* scale, size_t scales, char* message, size_t room) {
    const auto make = type == 'h' ? new_narrow<emp::Half> : type == 'b' ? new_narrow<emp::Bfloat> : new_narrow<int8_t>;
    return make(rows, columns, transposed, mask, bytes, values, count, scale, scales, message, room);
}

EMP_PUBLIC void emp_narrow_free(char type, void* linear) {
    if (type == 'h')
        delete static_cast<emp::NarrowLinear<emp::Half>*>(linear);
    else if (type == 'b')
        delete static_cast<emp::NarrowLinear<emp::Bfloat>*>(linear);
    else
        delete static_cast<emp::NarrowLinear<int8_t>*>(linear);
}

EMP_PUBLIC int emp_narrow_has(const char* isa) { return emp::narrow_kernels(isa) != nullptr; }

EMP_PUBLIC int emp_narrow_run(char type, const void* linear, const char* isa, int threads, const float* x, int64_t items, const float* bias,
                              int relu, float* y) {
    const emp::NarrowKernels* kernels = isa && *isa ? emp::narrow_kernels(isa) : &emp::narrow_kernels();
    if (!kernels) return 1;
    const auto run = type == 'h' ? run_narrow<emp::Half> : type == 'b' ? run_narrow<emp::Bfloat> : run_narrow<int8_t>;
    return done([&] {
        run(linear, *kernels, threads, x, items, bias, relu, y);
        return 0;
    });
}
