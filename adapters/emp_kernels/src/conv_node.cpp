// Conv, and its dynamically quantised kin, as nodes.
#include "broadcast.hpp"
#include "conv.hpp"
#include "integer_conv.hpp"
#include "parts.hpp"

namespace emp {
namespace {

using ort::Context;
using ort::Info;
using ort::Refusal;
using ort::Tensor;

// What the attributes of a node say; throws a Refusal. A convolution over one axis is one over two, whose images have one row.
ConvShape shape_of(const Info& info) {
    std::vector<int64_t> shape = info.integers("shape");
    if (shape.size() != 3 && shape.size() != 4) throw Refusal("must have a shape of three or four dimensions, got " + text(shape));
    const bool one = shape.size() == 3;
    const auto given = [&](const char* name, int64_t otherwise, size_t ends) {
        std::vector<int64_t> axes = info.integers(name, std::vector<int64_t>(ends * (one ? 1 : 2), otherwise));
        if (one && axes.size() == ends)
            for (size_t end = 0; end < ends; end++) axes.insert(axes.begin() + int64_t(2 * end), otherwise);
        return axes;
    };
    const std::vector<int64_t> strides = given("strides", 1, 1), dilations = given("dilations", 1, 1), pads = given("pads", 0, 2);
    if (one) shape.insert(shape.begin() + 2, 1);
    ConvShape s = {};
    s.outputs = shape[0], s.channels = shape[1], s.group = info.integer("group", 1);
    if (strides.size() != 2 || dilations.size() != 2 || pads.size() != 4) throw Refusal("must have a stride, a dilation and two pads for each axis");
    for (size_t i = 0; i < 2; i++) {
        s.kernel[i] = shape[2 + i], s.stride[i] = strides[i], s.dilation[i] = dilations[i];
        s.pad_begin[i] = pads[i], s.pad_end[i] = pads[2 + i];
    }
    const std::string wrong = s.wrong();
    if (!wrong.empty()) throw Refusal(wrong + ", got the shape " + text(shape));
    return s;
}

// What the attributes of a node say of the pool behind it; throws a Refusal.
PoolShape pool_of(const Info& info) {
    const std::vector<int64_t> kernel = info.integers("pool_kernel"), strides = info.integers("pool_strides", {1, 1});
    const std::vector<int64_t> pads = info.integers("pool_pads", {0, 0, 0, 0});
    if (kernel.size() != 2 || strides.size() != 2 || pads.size() != 4) throw Refusal("must have a pool of two axes behind it, with two strides and four pads");
    PoolShape p = {};
    for (size_t i = 0; i < 2; i++) {
        p.kernel[i] = kernel[i], p.stride[i] = strides[i], p.pad_begin[i] = pads[i], p.pad_end[i] = pads[2 + i];
        if (p.kernel[i] < 1 || p.kernel[i] > 1024 || p.stride[i] < 1 || p.stride[i] > 1024) throw Refusal("must have a pool whose kernel and strides are ≥ 1 and ≤ 1024");
        for (int64_t one : {p.pad_begin[i], p.pad_end[i]})
            if (one < 0 || one >= p.kernel[i]) throw Refusal("must have a pool whose pads are ≥ 0 and smaller than its kernel");
    }
    return p;
}

// The sizes of an input, and of what is made of it.
struct Sizes {
    int64_t images, height, width, out_h, out_w;
    std::vector<int64_t> made;
};

// For an input, of which a convolution over so many axes is asked; throws a Refusal where it does not fit.
Sizes sizes_of(const ConvShape& s, size_t axes, const Tensor& x) {
    if (x.shape.size() != axes + 2 || x.shape[1] != s.channels * s.group)
        throw Refusal("the input must have " + std::string(axes == 1 ? "three" : "four") + " dimensions, the second " + std::to_string(s.channels * s.group) +
                      ", got " + text(x.shape));
    Sizes found = {x.shape[0], axes == 1 ? 1 : x.shape[2], x.shape.back(), 0, 0, {x.shape[0], s.outputs}};
    found.out_h = s.out(0, found.height), found.out_w = s.out(1, found.width);
    if (found.out_h < 0 || found.out_w < 0) throw Refusal("the kernel must not be larger than the padded input, got " + text(x.shape));
    if (axes == 2) found.made.push_back(found.out_h);
    found.made.push_back(found.out_w);
    return found;
}

size_t axes_of(const Info& info) { return info.integers("shape").size() - 2; }

class ConvNode : public Node {
  public:
    ConvNode(const Op& op, const Info& info) : op_(op) {
        const ConvShape& s = conv_.shape = shape_of(info);
        axes_ = axes_of(info);
        ending_ = {op.activation, info.number(op.activation == Activation::clip ? "low" : "alpha", 0), info.number("high", 0), nullptr};
        const int64_t columns = s.channels * s.kernel[0] * s.kernel[1];
        parts_ = read_parts(op, op.weight, info, s.outputs, columns);
        const float* values = static_cast<const float*>(parts_.values);
        if (op.values_are != Values::plain) {  // kernels for convolutions arrange the values in float32 anyway
            const std::vector<float> scale = op.scale ? read_scale(op, info, s.outputs) : std::vector<float>();
            if (parts_.bytes == size_t(s.outputs * columns + 7) / 8) widened(parts_, scale, s.outputs * columns, columns, false, own_);
            values = own_.grow(parts_.count + 1);
        }
        const std::string wrong = conv_.weight.bind(s.outputs, columns, parts_.mask, parts_.bytes, values, parts_.count);
        if (!wrong.empty()) throw Refusal(wrong);
        if (op.kind == Kind::conv_pool) pool_ = pool_of(info);
        if (!conv_.weight.can_list()) throw Refusal("must have at most 65536 weights for each output, got the shape " + text(info.integers("shape")));
    }
    void run(const Context& context) const override {
        const Tensor x = ort::tensor(context.input(0));
        const Sizes sizes = sizes_of(conv_.shape, axes_, x);
        const float* bias = bias_of(op_, context, conv_.shape.outputs);
        if (op_.slope) return run_prelu(context, x, sizes, bias);
        if (op_.kind == Kind::conv_pool) return run_pooled(context, x, sizes, bias);
        auto run = [&](const float* added, const Ending& ending, float* y) {
            conv_.run(kernels(), x.as<float>(), sizes.images, sizes.height, sizes.width, bias, added, ending, y, context.threads());
        };
        if (!op_.added) return run(nullptr, ending_, context.output(0, sizes.made));
        const Tensor added = ort::tensor(context.input(op_.added));
        if (added.shape == sizes.made) return run(added.as<float>(), ending_, context.output(0, sizes.made));
        Buffer<float> alone(size_t(sizes.images * conv_.shape.outputs * sizes.out_h * sizes.out_w));
        run(nullptr, {Activation::none, 0, 0, nullptr}, alone.data());
        const std::vector<int64_t> shape = joint(sizes.made, added.shape);
        add(alone.data(), sizes.made, added.as<float>(), added.shape, op_.activation, context.output(0, shape), shape);
    }

  private:
    void run_prelu(const Context& context, const Tensor& x, const Sizes& sizes, const float* bias) const {
        const Tensor slope = ort::tensor(context.input(op_.slope));
        if (slope.size() != conv_.shape.outputs) throw Refusal("slopes must have " + std::to_string(conv_.shape.outputs) + " elements, got the shape " + text(slope.shape));
        const Ending ending = {op_.activation, 0, 0, slope.as<float>()};
        conv_.run(kernels(), x.as<float>(), sizes.images, sizes.height, sizes.width, bias, nullptr, ending, context.output(0, sizes.made), context.threads());
    }
    void run_pooled(const Context& context, const Tensor& x, const Sizes& sizes, const float* bias) const {
        const int64_t rows = pool_.out(0, sizes.out_h), pixels = pool_.out(1, sizes.out_w);
        if (rows < 0 || pixels < 0) throw Refusal("the kernel of its pool must not be larger than the padded image, got the input " + text(x.shape));
        float* y = context.output(0, {x.shape[0], conv_.shape.outputs, rows, pixels});
        conv_.run_pooled(kernels(), x.as<float>(), x.shape[0], x.shape[2], x.shape[3], bias, ending_, pool_, y, context.threads());
    }

    const Op& op_;
    Parts parts_ = {};
    Buffer<float> own_;
    Conv conv_;
    size_t axes_;
    Ending ending_;
    PoolShape pool_ = {};
};

class DynamicConvNode : public Node {
  public:
    DynamicConvNode(const Op& op, const Info& info) : op_(op) {
        const ConvShape& s = conv_.shape = shape_of(info);
        axes_ = axes_of(info);
        if (s.group != 1) throw Refusal("must have one group where activations are quantised");
        const Parts parts = read_parts(op, op.weight, info, s.outputs, s.channels * s.kernel[0] * s.kernel[1]);
        const std::vector<float> scale = read_scale(op, info, s.outputs);
        if (scale.size() != 1) throw Refusal("must have one scale where activations are quantised");
        conv_.scale = scale[0];
        Buffer<int8_t> own;
        const int8_t* values = centred(parts, own);
        if (!values) throw Refusal("must have values that fit 8 bits once its zero point is taken off");
        const std::string wrong = conv_.bind(parts.mask, parts.bytes, values, parts.count);
        if (!wrong.empty()) throw Refusal(wrong);
    }
    void run(const Context& context) const override {
        const Tensor x = ort::tensor(context.input(0));
        const Sizes sizes = sizes_of(conv_.shape, axes_, x);
        const float* bias = bias_of(op_, context, conv_.shape.outputs);
        float* y = context.output(0, sizes.made);
        conv_.run(integer_kernels(), kernels(), x.as<float>(), sizes.images, sizes.height, sizes.width, bias, op_.activation, y, context.threads());
    }

  private:
    const Op& op_;
    IntegerConv conv_;
    size_t axes_;
};

}  // namespace

std::unique_ptr<Node> make_conv(const Op& op, const Info& info) {
    if (op.kind == Kind::dynamic_conv || op.kind == Kind::dynamic_conv_add) return std::make_unique<DynamicConvNode>(op, info);
    return std::make_unique<ConvNode>(op, info);
}

}  // namespace emp
