// The operations of the packed domain: a product or a convolution with its packed weight, bias and activation in one node.
//
// The name says what a node does, as the local function of the same name in the file does: one of MatMul, MatMulAdd, Gemm, Conv, then Relu if an
// activation follows, then the form of the weight (Mask, Mask4, Gaps4, Gaps6, Gaps8). Inputs: the activations; the bias, except for MatMul;
// what the form needs, values last; then the places that a function needs for itself, which are not read here.
#include "ops.hpp"

#include <memory>

#include "api.hpp"
#include "conv.hpp"
#include "form.hpp"
#include "linear.hpp"

namespace emp {
namespace {

using ort::Context;
using ort::Info;
using ort::Refusal;
using ort::Tensor;

enum class Kind { mat_mul, mat_mul_add, gemm, conv };

struct Op : ort::CustomOp {
    Kind kind;
    Activation activation;
    Form form;
    std::string name;
    std::vector<int> types;  // of the inputs
    size_t packed;           // the first of the weight's inputs
    size_t values;
};

std::string text(const std::vector<int64_t>& shape) {
    std::string out = "[";
    for (size_t i = 0; i < shape.size(); i++) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + "]";
}

// The weight's parts, bound to `matrix`; `own` keeps a mask that had to be made.
void bind(const Op& op, const Info& info, int64_t rows, int64_t columns, bool transposed, Matrix& matrix, Buffer<uint8_t>& own) {
    const Tensor values = info.constant(op.values, "values");
    if (values.size() < 1) throw Refusal("must have values that begin with the fill, got none");
    if (*values.as<uint32_t>() != 0) throw Refusal("must have 0 as its fill");
    const float* stored = values.as<float>() + 1;
    const size_t count = size_t(values.size()) - 1;
    const uint8_t* mask;
    size_t bytes;
    if (op.form == Form::mask) {
        const Tensor given = info.constant(op.packed, "mask");
        mask = given.as<uint8_t>(), bytes = size_t(given.size());
    } else {
        if (rows < 0 || columns < 0 || (columns && rows > (int64_t(1) << 40) / columns))
            throw Refusal("must have a shape of at most 2^40 elements");
        const Tensor low = info.constant(op.packed, "codes");
        Codes codes = {low.as<uint8_t>(), nullptr, size_t(low.size()), 0, -1, 8};
        codes.bits = op.form == Form::gaps4 ? 4 : op.form == Form::gaps6 ? 6 : 8;
        const std::vector<int64_t> number = info.integers("count");
        if (number.size() == 1) codes.count = number[0];
        if (op.form == Form::gaps6) {
            const Tensor high = info.constant(op.packed + 1, "high codes");
            codes.high = high.as<uint8_t>(), codes.high_bytes = size_t(high.size());
        }
        const std::string wrong = mask_of(codes, rows * columns, count, own);
        if (!wrong.empty()) throw Refusal(wrong);
        mask = own.data(), bytes = size_t(rows * columns + 7) / 8;
    }
    const std::string wrong = transposed ? matrix.bind_transposed(rows, columns, mask, bytes, stored, count)
                                         : matrix.bind(rows, columns, mask, bytes, stored, count);
    if (!wrong.empty()) throw Refusal(wrong);
}

class Node {
  public:
    virtual ~Node() = default;
    virtual void run(const Context&) const = 0;

  protected:
    explicit Node(const Op& op) : activation(op.activation), bias_input(op.kind == Kind::mat_mul ? 0 : 1) {}

    Tensor activations(const Context& context) const { return ort::tensor(context.input(0)); }
    // `rows` floats, or null.
    const float* bias(const Context& context, int64_t rows) const {
        const OrtValue* value = bias_input ? context.input(bias_input) : nullptr;
        if (!value) return nullptr;
        const Tensor found = ort::tensor(value);
        if (found.size() != rows)
            throw Refusal("bias must have " + std::to_string(rows) + " elements, got the shape " + text(found.shape));
        return found.as<float>();
    }

    Activation activation;
    Buffer<uint8_t> mask;

  private:
    size_t bias_input;
};

class LinearNode : public Node {
  public:
    LinearNode(const Op& op, const Info& info) : Node(op) {
        const std::vector<int64_t> shape = info.integers("shape");
        if (shape.size() != 2) throw Refusal("must have a shape of two dimensions, got " + text(shape));
        const bool rows_first = op.kind == Kind::gemm && info.integer("transB", 0) != 0;
        bind(op, info, shape[rows_first ? 0 : 1], shape[rows_first ? 1 : 0], !rows_first, linear.weight, mask);
    }
    void run(const Context& context) const override {
        const Tensor x = activations(context);
        const int64_t columns = linear.weight.view().columns, rows = linear.weight.view().rows;
        if (x.shape.empty() || x.shape.back() != columns)
            throw Refusal("the last dimension of the input must be " + std::to_string(columns) + ", got the shape " + text(x.shape));
        std::vector<int64_t> shape = x.shape;
        int64_t items = 1;
        for (size_t i = 0; i + 1 < shape.size(); i++) items *= shape[i];
        shape.back() = rows;
        const float* added = bias(context, rows);
        linear.run(kernels(), x.as<float>(), items, added, activation, context.output(shape), context.threads());
    }

  private:
    Linear linear;
};

class ConvNode : public Node {
  public:
    ConvNode(const Op& op, const Info& info) : Node(op) {
        const std::vector<int64_t> shape = info.integers("shape");
        if (shape.size() != 4) throw Refusal("must have a shape of four dimensions, got " + text(shape));
        const std::vector<int64_t> strides = info.integers("strides", {1, 1}), dilations = info.integers("dilations", {1, 1});
        const std::vector<int64_t> pads = info.integers("pads", {0, 0, 0, 0});
        ConvShape& s = conv.shape;
        s.outputs = shape[0], s.channels = shape[1], s.group = info.integer("group", 1);
        if (strides.size() != 2 || dilations.size() != 2 || pads.size() != 4 || s.group < 1 || s.outputs % s.group)
            throw Refusal("must have two strides, two dilations, four pads, and a group that divides its outputs");
        for (size_t i = 0; i < 2; i++) {
            s.kernel[i] = shape[2 + i], s.stride[i] = strides[i], s.dilation[i] = dilations[i];
            s.pad_begin[i] = pads[i], s.pad_end[i] = pads[2 + i];
            constexpr int64_t most = int64_t(1) << 20;  // so that no product of sizes overflows
            for (int64_t one : {s.kernel[i], s.dilation[i]})
                if (one < 1 || one > most) throw Refusal("must have kernels and dilations ≥ 1 and ≤ 1048576");
            if (s.stride[i] < 1 || s.stride[i] > 1024) throw Refusal("must have strides ≥ 1 and ≤ 1024");
            for (int64_t one : {s.pad_begin[i], s.pad_end[i]})
                if (one < 0 || one > most) throw Refusal("must have pads ≥ 0 and ≤ 1048576");
        }
        if (s.channels < 0 || s.channels > (int64_t(1) << 40) / (s.kernel[0] * s.kernel[1]))
            throw Refusal("must have a shape of at most 2^40 elements, got " + text(shape));
        bind(op, info, s.outputs, s.channels * s.kernel[0] * s.kernel[1], false, conv.weight, mask);
        if (!conv.weight.can_list()) throw Refusal("must have at most 65536 weights for each output, got the shape " + text(shape));
    }
    void run(const Context& context) const override {
        const Tensor x = activations(context);
        const ConvShape& s = conv.shape;
        if (x.shape.size() != 4 || x.shape[1] != s.channels * s.group)
            throw Refusal("the input must have four dimensions, the second " + std::to_string(s.channels * s.group) + ", got " + text(x.shape));
        const int64_t height = s.out(0, x.shape[2]), width = s.out(1, x.shape[3]);
        if (height < 0 || width < 0) throw Refusal("the kernel must not be larger than the padded input, got " + text(x.shape));
        const float* added = bias(context, s.outputs);
        float* y = context.output({x.shape[0], s.outputs, height, width});
        conv.run(kernels(), x.as<float>(), x.shape[0], x.shape[2], x.shape[3], added, nullptr, activation, y, context.threads());
    }

  private:
    Conv conv;
};

// The weight's name is not known here; the node's is what a user can look for.
OrtStatus* make(const ort::CustomOp* given, const OrtApi*, const OrtKernelInfo* kernel_info, void** made) {
    const Op& op = *static_cast<const Op*>(given);
    const Info info(kernel_info);
    std::string where = op.name;
    try {
        where += " '" + info.name() + "'";
        if (op.kind == Kind::conv)
            *made = static_cast<Node*>(new ConvNode(op, info));
        else
            *made = static_cast<Node*>(new LinearNode(op, info));
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

Op describe(Kind kind, const char* kind_name, Activation activation, Form form, const char* form_name, int places) {
    Op op = {};
    op.kind = kind, op.activation = activation, op.form = form;
    op.name = std::string(kind_name) + (activation == Activation::relu ? "Relu" : "") + form_name;
    op.types = {ort::kFloat};
    if (kind != Kind::mat_mul) op.types.push_back(ort::kFloat);
    op.packed = op.types.size();
    op.types.push_back(ort::kUint8);
    if (form == Form::gaps6) op.types.push_back(ort::kUint8);
    op.values = op.types.size();
    for (int i = 0; i < 1 + places; i++) op.types.push_back(ort::kFloat);

    op.version = ort::kVersion;
    op.GetName = [](const ort::CustomOp* o) { return self(o).name.c_str(); };
    op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return "CPUExecutionProvider"; };
    op.GetInputTypeCount = [](const ort::CustomOp* o) { return self(o).types.size(); };
    op.GetInputType = [](const ort::CustomOp* o, size_t i) { return self(o).types[i]; };
    op.GetOutputTypeCount = [](const ort::CustomOp*) -> size_t { return 1; };
    op.GetOutputType = [](const ort::CustomOp*, size_t) -> int { return ort::kFloat; };
    op.GetInputCharacteristic = [](const ort::CustomOp* o, size_t i) {
        return i > self(o).values || (i == 1 && self(o).packed == 2 && self(o).kind != Kind::mat_mul_add) ? ort::kOptional : ort::kRequired;
    };
    op.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
    op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return 0; };
    op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
    op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 0; };
    op.CreateKernelV2 = make;
    op.KernelComputeV2 = compute;
    op.KernelDestroy = [](void* node) { delete static_cast<Node*>(node); };
    op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
    op.GetEndVersion = [](const ort::CustomOp*) { return 0x7fffffff; };
    return op;
}

const std::vector<Op>& all() {
    static const std::vector<Op> made = [] {
        const std::pair<Kind, const char*> kinds[] = {
            {Kind::mat_mul, "MatMul"}, {Kind::mat_mul_add, "MatMulAdd"}, {Kind::gemm, "Gemm"}, {Kind::conv, "Conv"}};
        struct {
            Form form;
            const char* name;
            int places;
        } const forms[] = {{Form::mask, "Mask", 1}, {Form::mask, "Mask4", 4}, {Form::gaps4, "Gaps4", 1}, {Form::gaps6, "Gaps6", 1}, {Form::gaps8, "Gaps8", 1}};
        std::vector<Op> ops;
        for (auto [kind, kind_name] : kinds)
            for (Activation activation : {Activation::none, Activation::relu})
                for (auto& form : forms) ops.push_back(describe(kind, kind_name, activation, form.form, form.name, form.places));
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
