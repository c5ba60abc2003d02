// An image laid out for a convolution that copies it once: padded, and split into the phases of its stride (image.hpp).
#pragma once
#include "image.hpp"
#include "parallel.hpp"

namespace emp {

// in[channels of all groups, height, width] -> phases[channels, at.plane]; whether all that some tap reads is finite.
bool lay_out(const Kernels&, const ConvShape&, const Layout&, const float* in, float* phases, const Threads&);

}  // namespace emp
