#include "sweeps.hpp"

#include <algorithm>

#include "bits.hpp"

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

Sliding::Sliding(const ConvShape& s, const Layout& at, bool shifted) : shifted(shifted) {
    const auto right = [&](int64_t kx) { return shifted ? 0 : kx * s.dilation[1] / s.stride[1]; };
    slides = int(std::min<int64_t>(right(s.kernel[1] - 1), 1 << 20)) + 1;
    const auto more = [&s](int64_t phase) {
        int64_t most = 0;
        for (int64_t ky = 0; ky < s.kernel[0]; ky++)
            if (ky * s.dilation[0] % s.stride[0] == phase) most = ky * s.dilation[0] / s.stride[0];
        return most;
    };
    std::vector<int64_t> across;  // where phases begin in a row, in order
    for (int64_t kx = 0; kx < s.kernel[1]; kx++) across.push_back(kx * s.dilation[1] - right(kx) * s.stride[1]);
    std::vector<int64_t> distinct = across;
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    for (int64_t y = 0; y < s.stride[0]; y++)
        for (const int64_t x : distinct) {
            if (!at.used[0][size_t(y)]) continue;
            phases.push_back({y, x, stride, more(y)});
            stride += kMostLines + phases.back().more;
        }
    for (int64_t ky = 0; ky < s.kernel[0]; ky++)
        for (int64_t kx = 0; kx < s.kernel[1]; kx++) {
            const int64_t y = ky * s.dilation[0];
            const auto of = std::find_if(phases.begin(), phases.end(), [&](const Phase& p) { return p.y == y % s.stride[0] && p.x == across[size_t(kx)]; });
            taps.push_back({of->first + y / s.stride[0], int(std::min<int64_t>(right(kx), 1 << 20))});
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

namespace {

// Places of values: those of a slide, in a row.
using List = std::vector<std::pair<uint16_t, float>>;

struct Writer {
    uint16_t *fours, *place;
    float* value;
};

// The lists of a row, or of two: of each slide what both have, what one has, what the other has. They come in order of how long they are, so that the
// processor foresees where loops end.
class Lists {
  public:
    Lists(uint16_t row, const std::vector<List>& one, const std::vector<List>& other, bool pairs) : row_(row) {
        for (size_t i = one.size(); i-- > 0;) pairs ? split(one[i], other[i]) : add(one[i]);
    }
    bool operator<(const Lists& other) const { return fours_ != other.fours_ ? fours_ < other.fours_ : row_ < other.row_; }
    void write(Writer& out) const {
        *out.fours++ = row_;
        out.fours = std::copy(fours_.begin(), fours_.end(), out.fours);
        out.place = std::copy(place_.begin(), place_.end(), out.place), out.value = std::copy(value_.begin(), value_.end(), out.value);
    }

  private:
    void add(List list) {
        while (list.size() % 4) list.push_back({0, 0.0f});  // lines of zeros
        fours_.push_back(uint16_t(list.size() / 4));
        for (const auto& [at, w] : list) place_.push_back(at), value_.push_back(w);
    }
    // Each list is in order of places.
    void split(const List& one, const List& two) {
        List left, right, first, second;
        for (size_t i = 0, j = 0; i < one.size() || j < two.size();) {
            if (j == two.size() || (i < one.size() && one[i].first < two[j].first))
                first.push_back(one[i++]);
            else if (i == one.size() || two[j].first < one[i].first)
                second.push_back(two[j++]);
            else
                left.push_back(one[i++]), right.push_back(two[j++]);
        }
        while (left.size() % 4) left.push_back({0, 0.0f}), right.push_back({0, 0.0f});
        fours_.push_back(uint16_t(left.size() / 4));
        for (size_t i = 0; i < left.size(); i += 4) {
            for (size_t k = i; k < i + 4; k++) place_.push_back(left[k].first), value_.push_back(left[k].second);
            for (size_t k = i; k < i + 4; k++) value_.push_back(right[k].second);
        }
        add(first), add(second);
    }

    uint16_t row_;
    std::vector<uint16_t> fours_, place_;
    std::vector<float> value_;
};

}  // namespace

void Sweeps::arrange(const Matrix& weight, int64_t groups, const Places& places, int64_t channels, bool pairs) {
    const View& view = weight.view();
    const int64_t rows = view.rows / groups, taps = int64_t(places.taps.size()), all = view.columns / taps;
    block = channels, blocks = (all + block - 1) / std::max<int64_t>(1, block);
    const int64_t parts = 2 * ((rows + 511) / 512);  // even, so that two threads have as many
    chunk_rows = std::max<int64_t>(1, (rows + parts - 1) / parts), chunk_rows += pairs && chunk_rows % 2;
    chunks = (rows + chunk_rows - 1) / chunk_rows;
    sweeps_.clear();
    const size_t lists = size_t((view.rows + groups * chunks) * blocks * places.slides) * (pairs ? 2 : 1), heads = size_t(view.rows * blocks);
    const size_t room = size_t(view.nonzeros) + 6 * lists + 1024;  // each list is filled up to fours, and kernels fetch ahead
    Writer out = {fours_.grow(lists + heads), place_.grow(room), value_.grow(room)};
    std::vector<Lists> made;
    std::vector<List> list(size_t(places.slides)), other(size_t(places.slides));
    std::vector<Places::Tap> column(size_t(view.columns));  // of the tile that begins with its block
    for (int64_t c = 0; c < view.columns; c++) {
        const Places::Tap& tap = places.taps[size_t(c % taps)];
        column[size_t(c)] = {kMostLines + c / taps % block * places.stride + tap.line, tap.slide};
    }
    std::vector<const float*> next;
    for (int64_t r = 0; r < view.rows; r++) next.push_back(view.values + view.offset[r]);
    const auto take = [&](int64_t r, int64_t b, std::vector<List>& into) {
        for (List& one : into) one.clear();
        const int64_t from = b * block * taps, to = std::min(view.columns, from + block * taps);
        const float*& value = next[size_t(r)];
        for (int64_t c = from; c < to; c += 64)
            for (uint64_t word = weight.bits(r, c) & (to - c < 64 ? (uint64_t(1) << (to - c)) - 1 : ~uint64_t(0)); word; word &= word - 1) {
                const Places::Tap& tap = column[size_t(c + first_bit(word))];
                into[size_t(tap.slide)].push_back({uint16_t(8 * tap.line), *value++});
            }
    };
    for (int64_t group = 0; group < groups; group++)
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                const int64_t row = chunk * chunk_rows, end = std::min(rows, row + chunk_rows);
                sweeps_.push_back({out.fours, out.place, out.value, end - row, places.slides, pairs});
                made.clear();
                for (int64_t r = row; r < end; r += pairs ? 2 : 1) {
                    take(group * rows + r, b, list);
                    if (pairs && r + 1 < end)
                        take(group * rows + r + 1, b, other);
                    else
                        for (List& one : other) one.clear();
                    made.emplace_back(uint16_t(r - row), list, other, pairs);
                }
                std::sort(made.begin(), made.end());
                for (const Lists& one : made) one.write(out);
            }
}

}  // namespace emp
