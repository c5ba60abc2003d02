// Which way a convolution is done, by its shape and density, from measurements: docs/kernels.md.
#include "conv.hpp"

namespace emp {

void Conv::run(const Kernels& kernels, const float* x, int64_t images, int64_t height, int64_t width, const float* bias,
               const float* added, const Ending& ending, float* y, const Threads& threads) const {
    const Layout at(shape, height, width);
    if (images == 0 || at.out_h <= 0 || at.out_w <= 0 || shape.outputs == 0) return;
    const Given given = {kernels, at, x, images, bias, added, ending, y, threads};
    if (by_winograd(kernels, at, images) && run_winograd(given)) return;
    if (can_slide(at)) return run_slides(given);
    in_strips(at, x) ? run_strips(given) : run_tiles(given);
}

// The unit is one product of a weight that is there; measured: docs/kernels.md.
bool Conv::by_winograd(const Kernels& kernels, const Layout& at, int64_t images) const {
    for (int i = 0; i < 2; i++)
        if (shape.kernel[i] != 3 || shape.stride[i] != 1 || shape.dilation[i] != 1) return false;
    if (weight.view().columns == 0) return false;
    if (winograd_wherever_it_can) return true;
    const double tiles = double((at.out_h + 1) / 2 * ((at.out_w + 1) / 2) * images), channels = double(shape.channels);
    const double rows = double(shape.outputs / shape.group), filled = double((shape.outputs / shape.group + kWinogradRows - 1) / kWinogradRows * kWinogradRows);
    const double lanes = std::max(0.7, Sliding(shape, at, false).efficiency(at));  // the share of them that are outputs, where weights are skipped
    const double skipping = double(images * at.out_h * at.out_w) * rows * (9 * channels * weight.density() / lanes + 60);
    const double products = 13.8 * tiles * channels * filled, weights = 100 * channels * filled, pixels = 200 * tiles * channels, outputs = 180 * tiles * filled;
    return (products + weights + pixels + outputs) * (kernels.winograd_most > 8 ? 1 : 1.25) < skipping;
}

bool Conv::can_slide(const Layout& at) const {
    const int64_t taps = shape.kernel[0] * shape.kernel[1];
    return taps > 1 && taps <= 1024 && slides(Sliding(shape, at, false), at);
}

// A line holds fewer outputs than lanes, and a row of weights costs a little for each slide; what is saved is gathering the input once for each tap.
bool Conv::slides(const Sliding& sliding, const Layout& at) const {
    const int64_t columns = weight.view().columns;
    if (columns == 0 || sliding.slides > 8 || sliding.stride > 1024) return false;
    const double density = weight.density();
    if (sliding.efficiency(at) < (density < 0.3 ? 0.6 : 0.7) || density * double(columns) < 6) return false;
    return sliding.lines > 4 || density < 0.18;  // four lines alone keep the multipliers less busy than a tile does
}

// Copying a stretch is worth it if it is used often enough, or if it does not begin on a cache line: what is read across two lines takes twice
// as long. Measured: docs/kernels.md.
bool Conv::in_strips(const Layout& at, const float* x) const {
    const int64_t area = at.out_h * at.out_w, rows = shape.outputs / shape.group;
    const bool aligned = at.direct && shape.kernel[0] == 1 && shape.kernel[1] == 1 && at.plane % kLanes == 0 && reinterpret_cast<uintptr_t>(x) % 64 == 0;
    const double uses = weight.density() * double(rows);  // of a stretch, for a tile
    if (at.plane * shape.channels > INT32_MAX / 2 || area < 512 || rows > Strips::kMost) return false;
    return uses <= (aligned ? 18 : 4);
}

}  // namespace emp
