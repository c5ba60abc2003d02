// The operations of the packed domain: a product or a convolution with its packed weight, bias and activation in one node.
//
// The name says what a node does, as the local function of the same name in the file does:
// - one of MatMul, MatMulAdd (of a bias), Gemm, each with Residual if something else is added then, or MatMul and
//   MatMulAdd with Heads if their outputs are sorted by heads, Conv, ConvAdd (a sum follows), ConvMaxPool (a pool
//   follows), DynamicMatMul, DynamicMatMulAdd, DynamicConv, DynamicConvAdd (the last four quantise their activations first; what is added is a bias);
// - Relu or, of MatMul, MatMulAdd and Gemm, Gelu or GeluTanh, or, of Conv, that or Clip, LeakyRelu, PRelu, Swish or HardSwish, if that follows;
// - Cast or Dequantize if that is done to the stored values first;
// - the form of the weight (Mask, Mask4, Early, Gaps4, Gaps6, Gaps8).
// Inputs: the activations; the bias, except for MatMul; what is added, of ConvAdd and Residual; the slopes of PRelu; of integers scale and zero point; what the form needs, values last; then the places that a
// function needs for itself, which are not read here.
//
// Recurrent cells (LSTM, GRU, RNN) have two weights, and so two forms in their names, that of the input's weight first. Their inputs: the
// activations, the bias, the lengths of the sequences, the state and, of an LSTM, the cell at the begin; then the parts of both weights.
#include "ops.hpp"

#include "node.hpp"

namespace emp {
namespace {

using ort::Context;
using ort::Info;
using ort::Refusal;

// The weight's name is not known here; the node's is what a user can look for.
OrtStatus* make(const ort::CustomOp* given, const OrtApi*, const OrtKernelInfo* kernel_info, void** made) {
    const Op& op = *static_cast<const Op*>(given);
    const Info info(kernel_info);
    std::string where = op.name;
    try {
        where += " '" + info.name() + "'";
        *made = (op.convolves() ? make_conv : op.kind == Kind::recurrent ? make_recurrent : make_linear)(op, info).release();
        return nullptr;
    } catch (const Refusal& refusal) {
        return ort::status("the packed weight of " + where + " " + refusal.what());
    } catch (const std::exception&) {
        return ort::status("the packed weight of " + where + " needs more memory than there is");
    }
}

OrtStatus* compute(void* node, OrtKernelContext* context) {
    try {
        static_cast<const Node*>(node)->run(Context(context));
        return nullptr;
    } catch (const Refusal& refusal) {
        return ort::status(refusal.what());
    } catch (const std::exception&) {
        return ort::status("a packed operation needs more memory than there is");
    }
}

const Op& self(const ort::CustomOp* op) { return *static_cast<const Op*>(op); }

void set_functions(Op& op) {
    op.version = ort::kVersion;
    op.GetName = [](const ort::CustomOp* o) { return self(o).name.c_str(); };
    op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return "CPUExecutionProvider"; };
    op.GetInputTypeCount = [](const ort::CustomOp* o) { return self(o).types.size(); };
    op.GetInputType = [](const ort::CustomOp* o, size_t i) { return self(o).types[i]; };
    op.GetOutputTypeCount = [](const ort::CustomOp* o) { return self(o).outputs; };
    op.GetOutputType = [](const ort::CustomOp*, size_t) -> int { return ort::kFloat; };
    op.GetInputCharacteristic = [](const ort::CustomOp* o, size_t i) { return self(o).optional[i] ? ort::kOptional : ort::kRequired; };
    op.GetOutputCharacteristic = [](const ort::CustomOp* o, size_t) { return self(o).kind == Kind::recurrent ? ort::kOptional : ort::kRequired; };
    op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return 0; };
    op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
    op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 0; };
    op.CreateKernelV2 = make;
    op.KernelComputeV2 = compute;
    op.KernelDestroy = [](void* node) { delete static_cast<Node*>(node); };
    op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
    op.GetEndVersion = [](const ort::CustomOp*) { return 0x7fffffff; };
}

struct Input {
    size_t operator()(Op& op, int type, bool optional = false) const {
        op.types.push_back(type), op.optional.push_back(optional);
        return op.types.size() - 1;
    }
};

struct NamedForm {
    Form form;
    const char* name;
    int places;
} const kForms[] = {{Form::mask, "Mask", 1}, {Form::mask, "Mask4", 4}, {Form::early, "Early", 0}, {Form::gaps4, "Gaps4", 1}, {Form::gaps6, "Gaps6", 1}, {Form::gaps8, "Gaps8", 1}};

Stored stored(Op& op, const NamedForm& form, const char* shape, const char* count) {
    const Input input;
    Stored made = {form.form, input(op, ort::kUint8), 0, shape, count};
    if (form.form == Form::gaps6) input(op, ort::kUint8);
    if (form.form == Form::early) input(op, ort::kInt32), input(op, ort::kInt64);
    made.values = input(op, op.values_are == Values::plain ? ort::kFloat : ort::kAnyType);
    for (int i = 0; i < form.places; i++) input(op, ort::kFloat, true);
    return made;
}

const char* of(Activation activation) {
    switch (activation) {
        case Activation::none: return "";
        case Activation::relu: return "Relu";
        case Activation::gelu: return "Gelu";
        case Activation::gelu_tanh: return "GeluTanh";
        case Activation::clip: return "Clip";
        case Activation::leaky_relu: return "LeakyRelu";
        case Activation::prelu: return "PRelu";
        case Activation::swish: return "Swish";
        case Activation::hard_swish: return "HardSwish";
    }
    return "";
}

const char* of(Values values) { return values == Values::cast ? "Cast" : values == Values::dequantize ? "Dequantize" : ""; }

enum class Then { nothing, residual, heads };

Op describe(Kind kind, const char* kind_name, Then then, Values values, Activation activation, const NamedForm& form) {
    const Input input;
    const bool dynamic = kind >= Kind::dynamic && kind <= Kind::dynamic_conv_add;
    Op op = {};
    op.kind = kind, op.values_are = values, op.activation = activation, op.outputs = 1;
    op.name = std::string(kind_name) + (then == Then::residual ? "Residual" : then == Then::heads ? "Heads" : "") + of(activation) + (dynamic ? "" : of(values)) + form.name;
    input(op, ort::kFloat);
    if (kind != Kind::mat_mul && kind != Kind::dynamic && kind != Kind::dynamic_conv) op.bias = input(op, ort::kFloat, kind == Kind::gemm || kind == Kind::conv || kind == Kind::conv_add || kind == Kind::conv_pool);
    op.heads = then == Then::heads;
    if (kind == Kind::conv_add || then == Then::residual) op.added = input(op, ort::kFloat);
    if (activation == Activation::prelu) op.slope = input(op, ort::kFloat);
    if (values == Values::dequantize) op.scale = input(op, ort::kFloat), op.zero = input(op, ort::kAnyType, true);
    op.weight = stored(op, form, "shape", "count");
    set_functions(op);
    return op;
}

Op describe_cell(Cell cell, const char* cell_name, Values values, const NamedForm& first, const NamedForm& second) {
    const Input input;
    Op op = {};
    op.kind = Kind::recurrent, op.cell = cell, op.values_are = values, op.outputs = cell == Cell::lstm ? 3 : 2;
    op.name = std::string(cell_name) + of(values) + first.name + second.name;
    input(op, ort::kFloat);
    op.bias = input(op, ort::kFloat, true);
    input(op, ort::kInt32, true);
    for (size_t i = 1; i < op.outputs; i++) input(op, ort::kFloat, true);
    op.weight = stored(op, first, "shape", "count");
    op.state = stored(op, second, "state_shape", "state_count");
    set_functions(op);
    return op;
}

const std::vector<Op>& all() {
    static const std::vector<Op> made = [] {
        struct {
            Kind kind;
            const char* name;
            std::vector<Values> values;
        } const kinds[] = {{Kind::mat_mul, "MatMul", {Values::plain, Values::cast, Values::dequantize}},
                           {Kind::mat_mul_add, "MatMulAdd", {Values::plain, Values::cast, Values::dequantize}},
                           {Kind::gemm, "Gemm", {Values::plain, Values::cast, Values::dequantize}},
                           {Kind::conv, "Conv", {Values::plain, Values::cast, Values::dequantize}},
                           {Kind::conv_add, "ConvAdd", {Values::plain, Values::cast, Values::dequantize}},
                           {Kind::conv_pool, "ConvMaxPool", {Values::plain, Values::cast, Values::dequantize}},
                           {Kind::dynamic, "DynamicMatMul", {Values::dequantize}},
                           {Kind::dynamic_add, "DynamicMatMulAdd", {Values::dequantize}},
                           {Kind::dynamic_conv, "DynamicConv", {Values::dequantize}},
                           {Kind::dynamic_conv_add, "DynamicConvAdd", {Values::dequantize}}};
        std::vector<Op> ops;
        for (auto& kind : kinds)
            for (Values values : kind.values)
                for (Activation activation : {Activation::none, Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::clip,
                                              Activation::leaky_relu, Activation::prelu, Activation::swish, Activation::hard_swish})
                    for (auto& form : kForms) {
                        const bool linear = kind.kind <= Kind::gemm, plain = activation <= Activation::relu;
                        const bool gelu = activation == Activation::gelu || activation == Activation::gelu_tanh;
                        if (plain || kind.kind == Kind::conv || (gelu && linear)) ops.push_back(describe(kind.kind, kind.name, Then::nothing, values, activation, form));
                        if (plain && linear) ops.push_back(describe(kind.kind, kind.name, Then::residual, values, activation, form));
                        if (activation == Activation::none && kind.kind <= Kind::mat_mul_add)
                            ops.push_back(describe(kind.kind, kind.name, Then::heads, values, activation, form));
                    }
        struct {
            Cell cell;
            const char* name;
        } const cells[] = {{Cell::lstm, "LSTM"}, {Cell::gru, "GRU"}, {Cell::rnn, "RNN"}};
        for (auto& cell : cells)
            for (Values values : {Values::plain, Values::cast})
                for (auto& first : kForms)
                    for (auto& second : kForms) ops.push_back(describe_cell(cell.cell, cell.name, values, first, second));
        return ops;
    }();
    return made;
}

}  // namespace

std::vector<const ort::CustomOp*> operations() {
    std::vector<const ort::CustomOp*> out;
    for (const Op& op : all()) out.push_back(&op);
    return out;
}

}  // namespace emp
