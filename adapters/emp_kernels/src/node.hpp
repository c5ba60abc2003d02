// A node of the packed domain as the library sees it: what its name says, and what it does when it runs.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "api.hpp"
#include "form.hpp"
#include "kernels.hpp"
#include "recurrent.hpp"

namespace emp {

enum class Kind { mat_mul, mat_mul_add, gemm, conv, conv_add, conv_pool, dynamic, dynamic_add, dynamic_conv, dynamic_conv_add, recurrent };

// What becomes of the stored values before the product: nothing (float32), a cast to float32, a scale and a zero point.
enum class Values { plain, cast, dequantize };

// Where the parts of a packed weight are among the inputs and attributes of a node.
struct Stored {
    Form form;
    size_t packed, values;  // the first of its inputs, and the last of these
    const char *shape, *count;
};

struct Op : ort::CustomOp {
    Kind kind;
    Values values_are;
    Activation activation;
    std::string name;
    std::vector<int> types;       // of the inputs
    std::vector<bool> optional;   // which of them may be left out
    size_t outputs;               // how many there are; of a recurrent node each may be left out
    size_t bias, added, slope, scale, zero;  // their places, or 0
    bool heads;                       // whether what a product makes is sorted by heads
    Stored weight, state;         // `state`: what a recurrent cell multiplies its state with
    Cell cell;                    // of a recurrent node
    bool convolves() const { return kind == Kind::conv || kind == Kind::conv_add || kind == Kind::conv_pool || kind == Kind::dynamic_conv || kind == Kind::dynamic_conv_add; }
};

class Node {
  public:
    virtual ~Node() = default;
    virtual void run(const ort::Context&) const = 0;
};

// Each throws a Refusal, whose message follows "the packed weight of NODE ".
std::unique_ptr<Node> make_linear(const Op&, const ort::Info&);
std::unique_ptr<Node> make_conv(const Op&, const ort::Info&);
std::unique_ptr<Node> make_recurrent(const Op&, const ort::Info&);

inline std::string text(const std::vector<int64_t>& shape) {
    std::string out = "[";
    for (size_t i = 0; i < shape.size(); i++) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + "]";
}

// `rows` floats, or null where a node has no bias.
inline const float* bias_of(const Op& op, const ort::Context& context, int64_t rows) {
    const OrtValue* value = op.bias ? context.input(op.bias) : nullptr;
    if (!value) return nullptr;
    const ort::Tensor found = ort::tensor(value);
    if (found.size() != rows) throw ort::Refusal("bias must have " + std::to_string(rows) + " elements, got the shape " + text(found.shape));
    return found.as<float>();
}

}  // namespace emp
