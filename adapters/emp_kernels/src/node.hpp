// A node of the packed domain as the library sees it: what its name says, and what it does when it runs.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "api.hpp"
#include "form.hpp"
#include "kernels.hpp"

namespace emp {

enum class Kind { mat_mul, mat_mul_add, gemm, conv, dynamic, dynamic_add, recurrent };

// What becomes of the stored values before the product: nothing (float32), a cast to float32, a scale and a zero point.
enum class Values { plain, cast, dequantize };

struct Op : ort::CustomOp {
    Kind kind;
    Values values_are;
    Activation activation;
    Form form;
    std::string name;
    std::vector<int> types;       // of the inputs
    std::vector<bool> optional;   // which of them may be left out
    size_t bias, scale, zero;     // their places, or 0
    size_t packed, values;        // the first of the weight's inputs, and the last of these
    std::string cell;             // of a recurrent node
};

class Node {
  public:
    virtual ~Node() = default;
    virtual void run(const ort::Context&) const = 0;
};

// Each throws a Refusal, whose message follows "the packed weight of NODE ".
std::unique_ptr<Node> make_linear(const Op&, const ort::Info&);
std::unique_ptr<Node> make_conv(const Op&, const ort::Info&);

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
