// Plain C++: what every processor runs.
#include "bits.hpp"
#include "kernels.hpp"

namespace emp {
namespace portable {

#include "portable.hpp"

#include "kernels_impl.hpp"

#include "cells_impl.hpp"

bool supported() { return true; }

}  // namespace portable

extern const Kernels kPortable;
const Kernels kPortable = {"portable", portable::kMaxGroups,         portable::supported, 0.33, portable::no_pick, portable::dot,    portable::gather, portable::tile, portable::strip,
                           portable::to_lanes, portable::from_lanes, portable::finish, portable::lay, portable::fill, portable::pool_down, portable::pool_across, portable::lines, portable::slide,
                         portable::kMostTiles, portable::winograd_weights, portable::winograd_pixels, portable::winograd_tiles, portable::finite,
                           {portable::lstm, portable::gru, portable::gru_reset, portable::gru_finish, portable::gelu, portable::gelu_tanh, portable::rnn}};

}  // namespace emp
