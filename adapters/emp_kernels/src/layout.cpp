#include "layout.hpp"

#include <atomic>

namespace emp {
namespace {

// Whether all that was read is finite; what no tap reads is left out.
bool split_channel(const Kernels& kernels, const ConvShape& s, const Layout& at, const float* in, float* out) {
    bool finite = true;
    const int64_t step_y = s.stride[0], step_x = s.stride[1];
    for (int64_t py = 0; py < step_y; py++)
        for (int64_t px = 0; px < step_x; px++) {
            if (!at.used[0][size_t(py)] || !at.used[1][size_t(px)]) continue;
            const auto [top, left, height, width, y, x] = Inside(s, at, py, px);
            float* phase = out + (py * step_x + px) * at.phase;
            std::fill(phase, phase + top * at.row, 0.0f);
            if (!kernels.lay(in + y * at.width + x, height, width, step_y * at.width, step_x, left, at.row, phase + top * at.row)) finite = false;
            std::fill(phase + (top + height) * at.row, phase + at.phase, 0.0f);
        }
    return finite;
}

}  // namespace

bool lay_out(const Kernels& kernels, const ConvShape& shape, const Layout& at, const float* in, float* phases, const Threads& threads) {
    std::atomic<bool> finite{true};
    threads.ranges(shape.channels * shape.group, std::max<int64_t>(1, 8192 / std::max<int64_t>(at.plane, 1)), 16, [&](int64_t from, int64_t to) {
        bool all = true;
        for (int64_t c = from; c < to; c++) all = split_channel(kernels, shape, at, in + c * at.height * at.width, phases + c * at.plane) && all;
        if (!all) finite = false;
    });
    return finite;
}

}  // namespace emp
