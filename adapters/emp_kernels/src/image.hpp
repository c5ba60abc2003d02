// Where the pixels of a convolution lie: the image is copied once, padded and split into phases (pixels that a stride of s takes together lie side by
// side), and after that every tap of the kernel is the same stretches of memory, shifted.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels.hpp"

namespace emp {

struct ConvShape {
    int64_t outputs, channels, group;  // channels of one group
    int64_t kernel[2], stride[2], dilation[2], pad_begin[2], pad_end[2];

    // Rows, or columns, of the output for an input of `size`; < 0 where the kernel is larger than the padded input.
    int64_t out(int axis, int64_t size) const {
        const int64_t reach = size + pad_begin[axis] + pad_end[axis] - dilation[axis] * (kernel[axis] - 1) - 1;
        return reach < 0 ? -1 : reach / stride[axis] + 1;
    }
    // What cannot be, or "": sizes beyond which products overflow.
    const char* wrong() const {
        constexpr int64_t most = int64_t(1) << 20;
        if (group < 1 || outputs < 0 || outputs % group) return "must have a group that divides its outputs";
        for (int i = 0; i < 2; i++) {
            for (int64_t one : {kernel[i], dilation[i]})
                if (one < 1 || one > most) return "must have kernels and dilations ≥ 1 and ≤ 1048576";
            if (stride[i] < 1 || stride[i] > 1024) return "must have strides ≥ 1 and ≤ 1024";
            for (int64_t one : {pad_begin[i], pad_end[i]})
                if (one < 0 || one > most) return "must have pads ≥ 0 and ≤ 1048576";
        }
        if (channels < 0 || channels > (int64_t(1) << 40) / (kernel[0] * kernel[1])) return "must have a shape of at most 2^40 elements";
        return "";
    }
};

// Where the pixels of a channel lie.
struct Layout {
    int64_t height, width, out_h, out_w;
    int64_t row, phase, plane;  // floats of a row of a phase, of a phase, of a channel
    bool direct;                // the image itself is its only phase
    // Along the phase's rows, from the first output to the last; a few of them lie behind the end of a row and are no outputs.
    int64_t positions() const { return (out_h - 1) * row + out_w; }
    std::vector<bool> used[2];  // phases that some tap reads, by axis

    Layout(const ConvShape& s, int64_t height, int64_t width)
        : height(height), width(width), out_h(s.out(0, height)), out_w(s.out(1, width)) {
        direct = true;
        for (int axis = 0; axis < 2; axis++)
            direct = direct && s.stride[axis] == 1 && s.pad_begin[axis] == 0 && s.pad_end[axis] == 0;
        const int64_t padded_h = height + s.pad_begin[0] + s.pad_end[0], padded_w = width + s.pad_begin[1] + s.pad_end[1];
        row = (padded_w + s.stride[1] - 1) / s.stride[1];
        phase = row * ((padded_h + s.stride[0] - 1) / s.stride[0]);
        plane = phase * s.stride[0] * s.stride[1];
        for (int axis = 0; axis < 2; axis++) {
            used[axis].assign(size_t(s.stride[axis]), false);
            for (int64_t k = 0; k < s.kernel[axis]; k++) used[axis][size_t(k * s.dilation[axis] % s.stride[axis])] = true;
        }
    }
};

// Where the stretch of each column begins, relative to that of the output position; columns are channels * taps.
inline std::vector<int64_t> column_offsets(const ConvShape& shape, const Layout& at) {
    std::vector<int64_t> tap, offset(size_t(shape.channels * shape.kernel[0] * shape.kernel[1]));
    for (int64_t ky = 0; ky < shape.kernel[0]; ky++)
        for (int64_t kx = 0; kx < shape.kernel[1]; kx++) {
            const int64_t y = ky * shape.dilation[0], x = kx * shape.dilation[1];
            tap.push_back((y % shape.stride[0] * shape.stride[1] + x % shape.stride[1]) * at.phase + y / shape.stride[0] * at.row +
                          x / shape.stride[1]);
        }
    int64_t* next = offset.data();
    for (int64_t c = 0; c < shape.channels; c++)
        for (const int64_t one : tap) *next++ = c * at.plane + one;
    return offset;
}

// The stretches of output positions [begin, end).
inline std::vector<Piece> pieces_of(const Layout& at, int64_t begin, int64_t end) {
    std::vector<Piece> pieces;
    for (int64_t p = begin, run; p < end; p += run) {
        const int64_t out_y = p / at.out_w, out_x = p % at.out_w;
        run = at.out_w == at.row ? end - p : std::min(at.out_w - out_x, end - p);
        pieces.push_back({out_y * at.row + out_x, run});
    }
    return pieces;
}

// Of a phase that begins with the pixel (py, px): its rows and pixels that lie in the image, not in its padding.
struct Inside {
    int64_t top, left, height, width;  // in the phase
    int64_t y, x;                      // of the first, in the image
    Inside(const ConvShape& s, const Layout& at, int64_t py, int64_t px) {
        const int64_t step_y = s.stride[0], step_x = s.stride[1], rows = at.phase / at.row;
        top = std::min(rows, std::max<int64_t>(0, (s.pad_begin[0] - py + step_y - 1) / step_y));
        left = std::min(at.row, std::max<int64_t>(0, (s.pad_begin[1] - px + step_x - 1) / step_x));
        y = top * step_y + py - s.pad_begin[0], x = left * step_x + px - s.pad_begin[1];
        height = std::clamp<int64_t>((at.height - y + step_y - 1) / step_y, 0, rows - top);
        width = std::clamp<int64_t>((at.width - x + step_x - 1) / step_x, 0, at.row - left);
    }
};

}  // namespace emp
