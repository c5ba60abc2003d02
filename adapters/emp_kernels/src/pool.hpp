// The greatest of each window of an image, as MaxPool has it.
#pragma once
#include <cstdint>

namespace emp {

struct PoolShape {
    int64_t kernel[2], stride[2], pad_begin[2], pad_end[2];  // pads are smaller than kernels, so that no window lies in padding alone

    // Rows, or columns, of the output for an input of `size`; < 0 where the kernel is larger than the padded input.
    int64_t out(int axis, int64_t size) const {
        const int64_t reach = size + pad_begin[axis] + pad_end[axis] - kernel[axis];
        return reach < 0 ? -1 : reach / stride[axis] + 1;
    }
};

}  // namespace emp
