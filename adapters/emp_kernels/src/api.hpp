// onnxruntime's table of functions behind functions with types; a failure becomes an exception, which the border turns back.
#pragma once
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ort.hpp"
#include "parallel.hpp"

namespace emp::ort {

// What is wrong, in a sentence for the user.
struct Refusal : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline const void* const* table = nullptr;  // set once, when the library is registered

template <Slot slot, typename... Arguments>
OrtStatus* raw(Arguments... arguments) {
    return reinterpret_cast<OrtStatus* (*)(Arguments...) noexcept>(const_cast<void*>(table[slot]))(arguments...);
}

inline OrtStatus* status(const std::string& message) { return raw<kCreateStatus>(int(kInvalidArgument), message.c_str()); }

inline void release(OrtStatus* failed) {
    reinterpret_cast<void (*)(OrtStatus*) noexcept>(const_cast<void*>(table[kReleaseStatus]))(failed);
}

inline void check(OrtStatus* done) {
    if (!done) return;
    const auto text = reinterpret_cast<const char* (*)(const OrtStatus*) noexcept>(const_cast<void*>(table[kGetErrorMessage]));
    const std::string message = text(done);
    release(done);
    throw Refusal(message);
}

struct Tensor {
    const void* data;
    int type;
    std::vector<int64_t> shape;
    int64_t size() const {
        int64_t n = 1;
        for (int64_t d : shape) n *= d;
        return n;
    }
    template <typename T>
    const T* as() const {
        return static_cast<const T*>(data);
    }
};

inline Tensor tensor(const OrtValue* value) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(raw<kGetTensorTypeAndShape>(value, &info));
    Tensor found = {};
    size_t rank = 0;
    void* data = nullptr;
    OrtStatus* failed = raw<kGetTensorElementType>(static_cast<const OrtTensorTypeAndShapeInfo*>(info), &found.type);
    if (!failed) failed = raw<kGetDimensionsCount>(static_cast<const OrtTensorTypeAndShapeInfo*>(info), &rank);
    found.shape.resize(rank);
    if (!failed) failed = raw<kGetDimensions>(static_cast<const OrtTensorTypeAndShapeInfo*>(info), found.shape.data(), rank);
    reinterpret_cast<void (*)(OrtTensorTypeAndShapeInfo*) noexcept>(const_cast<void*>(table[kReleaseTensorTypeAndShapeInfo]))(info);
    check(failed);
    check(raw<kGetTensorMutableData>(const_cast<OrtValue*>(value), &data));
    found.data = data;
    return found;
}

// A node, while its kernel is made.
class Info {
  public:
    explicit Info(const OrtKernelInfo* info) : info_(info) {}

    std::string name() const {
        size_t size = 0;
        check(raw<kKernelInfoGetNodeName>(info_, static_cast<char*>(nullptr), &size));
        std::string found(size, '\0');
        check(raw<kKernelInfoGetNodeName>(info_, found.data(), &size));
        found.resize(size ? size - 1 : 0);
        return found;
    }
    // An attribute of whole numbers, whether a list or an int64 tensor.
    std::vector<int64_t> integers(const char* attribute, std::vector<int64_t> otherwise = {}) const {
        size_t size = 0;
        // an attribute of another type is an error in some versions of onnxruntime, and an empty list in others
        if (OrtStatus* other = raw<kKernelInfoGetAttributeArrayInt64>(info_, attribute, static_cast<int64_t*>(nullptr), &size)) release(other);
        if (!size) return in_tensor<int64_t>(attribute, kInt64, std::move(otherwise));
        std::vector<int64_t> found(size);
        check(raw<kKernelInfoGetAttributeArrayInt64>(info_, attribute, found.data(), &size));
        return found;
    }
    // An attribute of text.
    std::string text(const char* attribute, const std::string& otherwise) const {
        size_t size = 0;
        if (OrtStatus* absent = raw<kKernelInfoGetAttributeString>(info_, attribute, static_cast<char*>(nullptr), &size)) {
            release(absent);
            return otherwise;
        }
        std::string found(size, '\0');
        check(raw<kKernelInfoGetAttributeString>(info_, attribute, found.data(), &size));
        found.resize(size ? size - 1 : 0);
        return found;
    }
    int64_t integer(const char* attribute, int64_t otherwise) const {
        int64_t found = 0;
        if (OrtStatus* absent = raw<kKernelInfoGetAttributeInt64>(info_, attribute, &found)) {
            release(absent);
            return otherwise;
        }
        return found;
    }
    // An attribute of one number, itself or as a float32 tensor.
    float number(const char* attribute, float otherwise) const {
        float found = 0;
        if (OrtStatus* other = raw<kKernelInfoGetAttributeFloat>(info_, attribute, &found)) {
            release(other);
            const std::vector<float> numbers = in_tensor<float>(attribute, kFloat, {otherwise});
            return numbers.empty() ? otherwise : numbers[0];
        }
        return found;
    }
    // Whether there is a constant at that place; an input that was left out is none.
    bool has_input(size_t input) const {
        int is_constant = 0;
        const OrtValue* value = nullptr;
        if (OrtStatus* absent = raw<kKernelInfoGetConstantInputTensor>(info_, input, &is_constant, &value)) {
            release(absent);
            return false;
        }
        return is_constant && value;
    }
    Tensor constant(size_t input, const char* what) const {
        int is_constant = 0;
        const OrtValue* value = nullptr;
        check(raw<kKernelInfoGetConstantInputTensor>(info_, input, &is_constant, &value));
        if (!is_constant || !value) throw Refusal(std::string("its ") + what + " must be an initializer");
        return tensor(value);
    }

  private:
    // What a tensor of this type holds that is an attribute; nothing if it is of another type.
    template <typename T>
    std::vector<T> in_tensor(const char* attribute, ElementType type, std::vector<T> otherwise) const {
        OrtAllocator* allocator = nullptr;
        OrtValue* value = nullptr;
        check(raw<kGetAllocatorWithDefaultOptions>(&allocator));
        if (OrtStatus* absent = raw<kKernelInfoGetAttributeTensor>(info_, attribute, allocator, &value)) {
            release(absent);
            return otherwise;
        }
        const Tensor found = tensor(value);
        std::vector<T> numbers;
        if (found.type == type) numbers.assign(found.as<T>(), found.as<T>() + found.size());
        reinterpret_cast<void (*)(OrtValue*) noexcept>(const_cast<void*>(table[kReleaseValue]))(value);
        return numbers;
    }

    const OrtKernelInfo* info_;
};

// A node, while it runs.
class Context {
  public:
    explicit Context(OrtKernelContext* context) : context_(context) {}

    const OrtValue* input(size_t index) const {
        const OrtValue* found = nullptr;
        check(raw<kKernelContextGetInput>(static_cast<const OrtKernelContext*>(context_), index, &found));
        return found;
    }
    // Null where nothing asks for this output.
    float* output(size_t index, const std::vector<int64_t>& shape) const {
        OrtValue* found = nullptr;
        void* data = nullptr;
        check(raw<kKernelContextGetOutput>(context_, index, shape.data(), shape.size(), &found));
        if (!found) return nullptr;
        check(raw<kGetTensorMutableData>(found, &data));
        return static_cast<float*>(data);
    }
    // onnxruntime's own pool; as many threads as the session was given.
    Threads threads() const {
        return {context_, [](void* context, void (*piece)(void*, size_t), size_t count, void* data) {
                    check(raw<kKernelContextParallelFor>(static_cast<const OrtKernelContext*>(static_cast<OrtKernelContext*>(context)),
                                                         piece, count, size_t(0), data));
                }};
    }

  private:
    OrtKernelContext* context_;
};

}  // namespace emp::ort
