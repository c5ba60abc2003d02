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
    // The same sorted by heads, without anything else; false: not done.
    virtual bool run_heads(const float*, const float*, const Heads&, float*, const Threads&) const { return false; }
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
    bool run_heads(const float* x, const float* bias, const Heads& heads, float* y, const Threads& threads) const override {
        return linear_.run_heads(kernels(), x, bias, heads, y, threads);
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

// y as Heads says, from plain[sequence, token, head, of the head].
void sort(const float* plain, const Heads& heads, float* y) {
    const int64_t rows = heads.count * heads.size, along = heads.across ? heads.tokens : 1, step = heads.across ? 1 : heads.size;
    for (int64_t s = 0; s < heads.sequences; s++)
        for (int64_t t = 0; t < heads.tokens; t++)
            for (int64_t h = 0; h < heads.count; h++) {
                float* to = y + s * heads.tokens * rows + h * heads.size * heads.tokens + t * step;
                for (int64_t i = 0; i < heads.size; i++) to[i * along] = *plain++;
            }
}

class LinearNode : public Node {
  public:
    LinearNode(const Op& op, const Info& info) : op_(op) {
        const std::vector<int64_t> shape = info.integers("shape");
        if (shape.size() != 2) throw Refusal("must have a shape of two dimensions, got " + text(shape));
        const bool rows_first = op.kind == Kind::gemm && info.integer("transB", 0) != 0;
        rows_ = shape[rows_first ? 0 : 1], columns_ = shape[rows_first ? 1 : 0];
        product_ = product(op, info, rows_, columns_, !rows_first);
        if (op.heads) read_heads(info);
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
        if (op_.heads) {
            const Heads heads = heads_of(shape, items);
            const bool across = heads.across;
            float* y = context.output(0, {heads.sequences, heads.count, across ? heads.size : heads.tokens, across ? heads.tokens : heads.size});
            if (heads.tokens == 1) return run(nullptr, Activation::none, y);
            if (product_->run_heads(x.as<float>(), bias, heads, y, context.threads())) return;
            Buffer<float> plain(size_t(items * rows_));
            run(nullptr, Activation::none, plain.data());
            return sort(plain.data(), heads, y);
        }
        if (!op_.added) return run(nullptr, op_.activation, context.output(0, shape));
        const Tensor added = ort::tensor(context.input(op_.added));
        if (added.shape == shape) return run(added.as<float>(), op_.activation, context.output(0, shape));
        Buffer<float> alone(size_t(items * rows_));
        run(nullptr, Activation::none, alone.data());
        const std::vector<int64_t> both = joint(shape, added.shape);
        add(alone.data(), shape, added.as<float>(), added.shape, op_.activation, context.output(0, both), both);
    }

  private:
    void read_heads(const Info& info) {
        const std::vector<int64_t> order = info.integers("perm");
        heads_ = info.integers("heads");
        across_ = order == std::vector<int64_t>{0, 2, 3, 1};
        if (!across_ && order != std::vector<int64_t>{0, 2, 1, 3}) throw Refusal("must have the perm [0, 2, 1, 3] or [0, 2, 3, 1], got " + text(order));
        if (heads_.size() != 4 || heads_[2] < 1 || heads_[3] < 1 || heads_[2] > rows_ || heads_[3] > rows_ || heads_[2] * heads_[3] != rows_ ||
            heads_[0] < -1 || heads_[1] < -1 || (heads_[0] == -1 && heads_[1] == -1))
            throw Refusal("must have four numbers of heads, the last two of which make its " + std::to_string(rows_) + " outputs, got " + text(heads_));
    }
    // As Reshape has it: 0 is the number of that axis of the product, -1 whatever is left.
    Heads heads_of(const std::vector<int64_t>& made, int64_t items) const {
        int64_t size[2];
        for (size_t i = 0; i < 2; i++) size[i] = heads_[i] != 0 ? heads_[i] : i < made.size() ? made[i] : -2;
        for (size_t i = 0; i < 2; i++)
            if (size[i] == -1) size[i] = size[1 - i] > 0 ? items / size[1 - i] : -2;
        const bool fits = size[0] >= 0 && size[1] >= 0 && (size[1] == 0 ? items == 0 : size[0] <= items / size[1] && size[0] * size[1] == items);
        if (!fits) throw Refusal("the product of shape " + text(made) + " must fit the heads " + text(heads_));
        return {size[0], size[1], heads_[2], heads_[3], across_};
    }

    const Op& op_;
    int64_t rows_, columns_;
    std::unique_ptr<Product> product_;
    std::vector<int64_t> heads_;
    bool across_ = false;
};

}  // namespace

std::unique_ptr<Node> make_linear(const Op& op, const Info& info) { return std::make_unique<LinearNode>(op, info); }

}  // namespace emp
