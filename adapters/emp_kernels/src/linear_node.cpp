// MatMul and Gemm, and their dynamically quantised kin, as nodes.
#include "broadcast.hpp"
#include "integer.hpp"
#include "linear.hpp"
#include "narrow.hpp"
#include "parts.hpp"

namespace emp {
namespace {

using ort::Context;
using ort::Info;
using ort::Refusal;
using ort::Tensor;

// One kind of weight behind the same call. `added` is as large as y, or null.
class Product {
  public:
    virtual ~Product() = default;
    virtual void run(const float* x, int64_t items, const float* bias, const float* added, Activation, float* y, const Threads&) const = 0;
};

void check(const std::string& wrong) {
    if (!wrong.empty()) throw Refusal(wrong);
}

class Plain : public Product {
  public:
    Plain(Parts&& given, int64_t rows, int64_t columns, bool transposed, const float* values) : parts_(std::move(given)) {
        check(transposed ? linear_.weight.bind_transposed(rows, columns, parts_.mask, parts_.bytes, values, parts_.count)
                         : linear_.weight.bind(rows, columns, parts_.mask, parts_.bytes, values, parts_.count));
    }
    void run(const float* x, int64_t items, const float* bias, const float* added, Activation activation, float* y, const Threads& threads) const override {
        linear_.run(kernels(), x, items, bias, activation, y, threads, added);
    }
    Buffer<float> own;  // values that had to be made

  private:
    Parts parts_;
    Linear linear_;
};

template <typename T>
class Narrow : public Product {
  public:
    Narrow(Parts&& given, int64_t rows, int64_t columns, bool transposed, const T* values, Buffer<T>&& own, std::vector<float> scale)
        : parts_(std::move(given)), own_(std::move(own)) {
        check(linear_.bind(rows, columns, transposed, parts_.mask, parts_.bytes, values, parts_.count, std::move(scale)));
    }
    void run(const float* x, int64_t items, const float* bias, const float* added, Activation activation, float* y, const Threads& threads) const override {
        linear_.run(narrow_kernels(), kernels(), x, items, bias, activation, y, threads, added);
    }

  private:
    Parts parts_;
    Buffer<T> own_;
    NarrowLinear<T> linear_;
};

class Integers : public Product {
  public:
    Integers(Parts&& given, int64_t rows, int64_t columns, bool transposed, const int8_t* values, Buffer<int8_t>&& own, std::vector<float> scale)
        : parts_(std::move(given)), own_(std::move(own)) {
        check(linear_.weight.bind(rows, columns, transposed, parts_.mask, parts_.bytes, values, parts_.count));
        linear_.scale = std::move(scale);
        linear_.prepare();
    }
    // None of these nodes has Gelu, or anything added.
    void run(const float* x, int64_t items, const float* bias, const float*, Activation activation, float* y, const Threads& threads) const override {
        linear_.run(integer_kernels(), kernels(), x, items, bias, activation, y, threads);
    }

  private:
    Parts parts_;
    Buffer<int8_t> own_;
    IntegerLinear linear_;
};

std::unique_ptr<Product> product(const Op& op, const Info& info, int64_t rows, int64_t columns, bool transposed) {
    Parts parts = read_parts(op, op.weight, info, rows, columns);
    if (op.values_are == Values::plain) {
        const auto* values = static_cast<const float*>(parts.values);
        return std::make_unique<Plain>(std::move(parts), rows, columns, transposed, values);
    }
    if (parts.type == ort::kFloat16) {
        const auto* values = static_cast<const Half*>(parts.values);
        return std::make_unique<Narrow<Half>>(std::move(parts), rows, columns, transposed, values, Buffer<Half>(), std::vector<float>{1.0f});
    }
    if (parts.type == ort::kBfloat16) {
        const auto* values = static_cast<const Bfloat*>(parts.values);
        return std::make_unique<Narrow<Bfloat>>(std::move(parts), rows, columns, transposed, values, Buffer<Bfloat>(), std::vector<float>{1.0f});
    }
    std::vector<float> scale = read_scale(op, info, rows);
    Buffer<int8_t> own;
    const int8_t* values = centred(parts, own);
    if (op.kind == Kind::dynamic || op.kind == Kind::dynamic_add) {
        if (!values) throw Refusal("must have values that fit 8 bits once its zero point is taken off");
        return std::make_unique<Integers>(std::move(parts), rows, columns, transposed, values, std::move(own), std::move(scale));
    }
    if (values) return std::make_unique<Narrow<int8_t>>(std::move(parts), rows, columns, transposed, values, std::move(own), std::move(scale));
    Buffer<float> wide;
    if (parts.bytes == size_t(rows * columns + 7) / 8) widened(parts, scale, rows * columns, columns, transposed, wide);
    wide.grow(parts.count + 1);
    auto made = std::make_unique<Plain>(std::move(parts), rows, columns, transposed, wide.data());
    made->own = std::move(wide);
    return made;
}

class LinearNode : public Node {
  public:
    LinearNode(const Op& op, const Info& info) : op_(op) {
        const std::vector<int64_t> shape = info.integers("shape");
        if (shape.size() != 2) throw Refusal("must have a shape of two dimensions, got " + text(shape));
        const bool rows_first = op.kind == Kind::gemm && info.integer("transB", 0) != 0;
        rows_ = shape[rows_first ? 0 : 1], columns_ = shape[rows_first ? 1 : 0];
        product_ = product(op, info, rows_, columns_, !rows_first);
    }
    void run(const Context& context) const override {
        const Tensor x = ort::tensor(context.input(0));
        if (x.shape.empty() || x.shape.back() != columns_)
            throw Refusal("the last dimension of the input must be " + std::to_string(columns_) + ", got the shape " + text(x.shape));
        std::vector<int64_t> shape = x.shape;
        int64_t items = 1;
        for (size_t i = 0; i + 1 < shape.size(); i++) items *= shape[i];
        shape.back() = rows_;
        const float* bias = bias_of(op_, context, rows_);
        const auto run = [&](const float* added, Activation activation, float* y) {
            product_->run(x.as<float>(), items, bias, added, activation, y, context.threads());
        };
        if (!op_.added) return run(nullptr, op_.activation, context.output(0, shape));
        const Tensor added = ort::tensor(context.input(op_.added));
        if (added.shape == shape) return run(added.as<float>(), op_.activation, context.output(0, shape));
        Buffer<float> alone(size_t(items * rows_));
        run(nullptr, Activation::none, alone.data());
        const std::vector<int64_t> both = joint(shape, added.shape);
        add(alone.data(), shape, added.as<float>(), added.shape, op_.activation, context.output(0, both), both);
    }

  private:
    const Op& op_;
    int64_t rows_, columns_;
    std::unique_ptr<Product> product_;
};

}  // namespace

std::unique_ptr<Node> make_linear(const Op& op, const Info& info) { return std::make_unique<LinearNode>(op, info); }

}  // namespace emp
