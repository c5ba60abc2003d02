// Narrow weights in plain C++.
#include "bits.hpp"
#include "narrow_convert.hpp"
#include "narrow_kernels.hpp"

namespace emp {
namespace narrow_portable {

#include "portable.hpp"

template <typename T>
F8 decode(uint8_t mask, const T* packed) {
    F8 r = F8::zero();
    for (unsigned m = mask; m; m &= m - 1) r.v[first_bit(m)] = to_float(*packed++);
    return r;
}

#include "narrow_impl.hpp"

bool supported() { return true; }

}  // namespace narrow_portable

extern const NarrowKernels kNarrowPortable;
const NarrowKernels kNarrowPortable = {"portable", narrow_portable::supported, narrow_portable::dot<Half>, narrow_portable::dot<Bfloat>,
                                       narrow_portable::dot<int8_t>};

}  // namespace emp
