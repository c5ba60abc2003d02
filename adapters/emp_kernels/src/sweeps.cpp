#include "sweeps.hpp"

namespace emp {
namespace {

// Whether lane p % band can stand for all places p that the outputs of a row need: two that share one must both lie in the padding.
bool wraps(const ConvShape& s, const Layout& at, const std::vector<Sliding::Phase>& phases, int64_t band, int64_t slides) {
    const int64_t needed = at.out_w + slides - 1;
    if (at.out_w > band || needed > 2 * band) return false;
    for (const Sliding::Phase& phase : phases)
        for (int64_t p = band; p < needed; p++)
            for (int64_t place : {p, p - band}) {
                const int64_t x = place * s.stride[1] + phase.x - s.pad_begin[1];
                if (x >= 0 && x < at.width) return false;
            }
    return true;
}

}  // namespace

Sliding::Sliding(const ConvShape& s, const Layout& at) {
    slides = int(std::min<int64_t>((s.kernel[1] - 1) * s.dilation[1] / s.stride[1], 1 << 20)) + 1;
    stride = 0;
    const auto more = [&s](int64_t phase) {
        int64_t most = 0;
        for (int64_t ky = 0; ky < s.kernel[0]; ky++)
            if (ky * s.dilation[0] % s.stride[0] == phase) most = ky * s.dilation[0] / s.stride[0];
        return most;
    };
    std::vector<int64_t> first(size_t(s.stride[0] * s.stride[1]), -1);
    for (int64_t y = 0; y < s.stride[0]; y++)
        for (int64_t x = 0; x < s.stride[1]; x++) {
            if (!at.used[0][size_t(y)] || !at.used[1][size_t(x)]) continue;
            phases.push_back({y, x, stride, more(y)});
            first[size_t(y * s.stride[1] + x)] = stride;
            stride += kMostLines + phases.back().more;
        }
    for (int64_t ky = 0; ky < s.kernel[0]; ky++)
        for (int64_t kx = 0; kx < s.kernel[1]; kx++) {
            const int64_t y = ky * s.dilation[0], x = kx * s.dilation[1];
            taps.push_back({first[size_t(y % s.stride[0] * s.stride[1] + x % s.stride[1])] + y / s.stride[0], int(x / s.stride[1])});
        }
    const bool halves = at.out_w + slides - 1 <= 8 || wraps(s, at, phases, 8, slides);
    band = halves ? 8 : 16;
    valid = halves || wraps(s, at, phases, 16, slides) ? at.out_w : std::max<int64_t>(1, 16 - (slides - 1));
    segments = (at.out_w + valid - 1) / valid;
    lines = halves ? (at.out_h + 1) / 2 : at.out_h;
}

int64_t Sliding::used(int64_t height) const {
    int64_t all = 0;
    for (const Phase& phase : phases) all += height + phase.more;
    return all;
}

double Sliding::efficiency(const Layout& at) const { return double(at.out_h * at.out_w) / double(std::max<int64_t>(1, segments * lines * kLanes)); }

void Sweeps::arrange(const Matrix& weight, const ConvShape& s, const Sliding& sliding, int64_t channels) {
    const View& view = weight.view();
    const int64_t rows = s.outputs / s.group, taps = s.kernel[0] * s.kernel[1];
    block = channels, blocks = (s.channels + block - 1) / std::max<int64_t>(1, block);
    const int64_t pairs = (rows + 511) / 512;  // so that two threads have as many
    chunk_rows = std::max<int64_t>(1, (rows + 2 * pairs - 1) / std::max<int64_t>(1, 2 * pairs)), chunks = (rows + chunk_rows - 1) / chunk_rows;
    sweeps_.clear();
    const size_t lists = size_t(view.rows * blocks * sliding.slides);
    const size_t room = size_t(view.nonzeros) + 3 * lists + 64;  // each list is filled up to fours
    uint16_t *fours = fours_.grow(lists + 64), *place = place_.grow(room);
    float* value = value_.grow(room);
    std::vector<std::vector<std::pair<uint16_t, float>>> list(static_cast<size_t>(sliding.slides));
    std::vector<const float*> next;
    for (int64_t r = 0; r < view.rows; r++) next.push_back(view.values + view.offset[r]);
    for (int64_t group = 0; group < s.group; group++)
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                const int64_t row = chunk * chunk_rows, end = std::min(rows, row + chunk_rows);
                sweeps_.push_back({fours, place, value, end - row, sliding.slides});
                for (int64_t r = group * rows + row; r < group * rows + end; r++) {
                    for (auto& one : list) one.clear();
                    for (int64_t c = b * block; c < std::min(s.channels, (b + 1) * block); c++)
                        for (int64_t t = 0; t < taps; t++) {
                            if (!weight.bit(r, c * taps + t)) continue;
                            const Sliding::Tap& tap = sliding.taps[size_t(t)];
                            const int64_t line = Sliding::kMostLines + (c - b * block) * sliding.stride + tap.line;
                            list[size_t(tap.slide)].push_back({uint16_t(8 * line), *next[size_t(r)]++});
                        }
                    for (size_t i = list.size(); i-- > 0;) {
                        while (list[i].size() % 4) list[i].push_back({0, 0.0f});  // lines of zeros
                        *fours++ = uint16_t(list[i].size() / 4);
                        for (const auto& [at, w] : list[i]) *place++ = at, *value++ = w;
                    }
                }
            }
}

}  // namespace emp
