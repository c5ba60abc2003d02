// The operations that this library offers to onnxruntime.
#pragma once
#include <vector>

#include "ort.hpp"

namespace emp {

inline constexpr const char* kDomain = "effective_pruning.packed";

// They live as long as the library.
std::vector<const ort::CustomOp*> operations();

}  // namespace emp
