#include "parts.hpp"

#include <cstring>

#include "bits.hpp"
#include "narrow_convert.hpp"

namespace emp {

using ort::Info;
using ort::Refusal;
using ort::Tensor;

namespace {

size_t width_of(int type) {
    switch (type) {
        case ort::kFloat: return 4;
        case ort::kFloat16:
        case ort::kBfloat16: return 2;
        case ort::kInt8:
        case ort::kUint8: return 1;
        default: return 0;
    }
}

bool suits(Values values, int type) {
    switch (values) {
        case Values::plain: return type == ort::kFloat;
        case Values::cast: return type == ort::kFloat16 || type == ort::kBfloat16;
        default: return type == ort::kInt8 || type == ort::kUint8;
    }
}

int32_t byte_at(const void* data, int type, size_t at) {
    return type == ort::kInt8 ? int32_t(static_cast<const int8_t*>(data)[at]) : int32_t(static_cast<const uint8_t*>(data)[at]);
}

// The zero point of an integer weight, which must be the fill, so that what is pruned is 0.
int32_t read_zero(const Op& op, const Info& info, const Tensor& values) {
    int32_t zero = 0;
    if (info.has_input(op.zero)) {
        const Tensor given = info.constant(op.zero, "zero point");
        if (given.type != values.type) throw Refusal("must have a zero point of the type of its values");
        for (int64_t i = 0; i < given.size(); i++) {
            const int32_t one = byte_at(given.data, given.type, size_t(i));
            if (i && one != zero) throw Refusal("must have one zero point for all outputs");
            zero = one;
        }
    }
    if (byte_at(values.data, values.type, 0) != zero) throw Refusal("must have its zero point as its fill");
    return zero;
}

// What is wrong with a mask that is filled up to whole groups of 64 bytes, each with a count of what is stored before it; or "". Kernels need no such
// counts, but where they disagree the local function computes something else.
std::string check_early(const uint8_t* mask, size_t bytes, const Tensor& starts, int64_t elements) {
    const size_t groups = (size_t(elements) + 511) / 512;
    if (bytes != 64 * groups) return "must have a mask of " + std::to_string(64 * groups) + " bytes, got " + std::to_string(bytes);
    if (starts.type != ort::kInt32 || size_t(starts.size()) != groups) return "must have " + std::to_string(groups) + " starts, got the shape " + text(starts.shape);
    int64_t before = 0;
    for (size_t group = 0; group < groups; group++) {
        if (starts.as<int32_t>()[group] != before) return "must have starts that agree with its mask";
        for (size_t at = 0; at < 512; at += 64) before += count_bits(read_bits(mask, bytes, 512 * group + at, 64));
    }
    return "";
}

}  // namespace

Parts read_parts(const Op& op, const Stored& stored, const Info& info, int64_t rows, int64_t columns) {
    const Tensor values = info.constant(stored.values, "values");
    if (values.size() < 1) throw Refusal("must have values that begin with the fill, got none");
    if (!suits(op.values_are, values.type)) throw Refusal("must have values of the type that its node is made for, got type " + std::to_string(values.type));
    Parts parts = {};
    const size_t width = width_of(values.type);
    parts.type = values.type, parts.count = size_t(values.size()) - 1;
    parts.values = values.as<uint8_t>() + width;
    if (width == 1) {
        parts.zero = read_zero(op, info, values);
    } else {
        const uint8_t none[4] = {};
        if (std::memcmp(values.data, none, width) != 0) throw Refusal("must have 0 as its fill");
    }
    if (rows < 0 || columns < 0 || (columns && rows > (int64_t(1) << 40) / columns)) throw Refusal("must have a shape of at most 2^40 elements");
    if (stored.form == Form::mask || stored.form == Form::early) {
        const Tensor given = info.constant(stored.packed, "mask");
        parts.mask = given.as<uint8_t>(), parts.bytes = size_t(given.size());
        if (stored.form == Form::early) {
            const std::string wrong = check_early(parts.mask, parts.bytes, info.constant(stored.packed + 1, "starts"), rows * columns);
            if (!wrong.empty()) throw Refusal(wrong);
            parts.bytes = size_t(rows * columns + 7) / 8;
        }
        return parts;
    }
    const Tensor low = info.constant(stored.packed, "codes");
    Codes codes = {low.as<uint8_t>(), nullptr, size_t(low.size()), 0, -1, 8};
    codes.bits = stored.form == Form::gaps4 ? 4 : stored.form == Form::gaps6 ? 6 : 8;
    const std::vector<int64_t> number = info.integers(stored.count);
    if (number.size() == 1) codes.count = number[0];
    if (stored.form == Form::gaps6) {
        const Tensor high = info.constant(stored.packed + 1, "high codes");
        codes.high = high.as<uint8_t>(), codes.high_bytes = size_t(high.size());
    }
    const std::string wrong = mask_of(codes, rows * columns, parts.count, parts.made);
    if (!wrong.empty()) throw Refusal(wrong);
    parts.mask = parts.made.data(), parts.bytes = size_t(rows * columns + 7) / 8;
    return parts;
}

std::vector<float> read_scale(const Op& op, const Info& info, int64_t rows) {
    const Tensor given = info.constant(op.scale, "scale");
    if (given.type != ort::kFloat || (given.size() != 1 && given.size() != rows))
        throw Refusal("must have one scale, or one for each of its " + std::to_string(rows) + " outputs, got the shape " + text(given.shape));
    return {given.as<float>(), given.as<float>() + given.size()};
}

const int8_t* centred(const Parts& parts, Buffer<int8_t>& own) {
    if (parts.zero == 0 && parts.type == ort::kInt8) return static_cast<const int8_t*>(parts.values);
    int8_t* out = own.grow(parts.count + 1);
    for (size_t i = 0; i < parts.count; i++) {
        const int32_t value = byte_at(parts.values, parts.type, i) - parts.zero;
        if (value < -128 || value > 127) return nullptr;
        out[i] = int8_t(value);
    }
    return out;
}

void widened(const Parts& parts, const std::vector<float>& scale, int64_t elements, int64_t per_row, bool transposed, Buffer<float>& out) {
    float* made = out.grow(parts.count + 1);
    const int64_t rows = per_row ? elements / per_row : 0;
    size_t next = 0;
    for (int64_t at = 0; at < elements; at += 64)
        for (uint64_t word = read_bits(parts.mask, parts.bytes, uint64_t(at), int(std::min<int64_t>(64, elements - at))); word; word &= word - 1) {
            if (next == parts.count) return;  // binding says that they disagree
            float value = 0;
            if (parts.type == ort::kFloat16)
                value = to_float(static_cast<const Half*>(parts.values)[next]);
            else if (parts.type == ort::kBfloat16)
                value = to_float(static_cast<const Bfloat*>(parts.values)[next]);
            else
                value = float(byte_at(parts.values, parts.type, next) - parts.zero);
            const int64_t flat = at + first_bit(word);
            if (!scale.empty()) value *= scale[scale.size() == 1 ? 0 : size_t(transposed ? flat % rows : flat / per_row)];
            made[next++] = value;
        }
    while (next < parts.count) made[next++] = 0;
}

}  // namespace emp
