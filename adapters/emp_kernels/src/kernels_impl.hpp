// The kernels, written once over vector types that each instruction set brings:
//   D: kStep floats; zero, load, fma, add, sum, decode(as many bits of a mask, packed values)
//   Q: 4 floats; zero, load, fma, add, sum, gather(x, four columns of 16 bits)
//   F:  as many floats as a register holds (kWidth, which divides 16); zero, load, store, broadcast, fma, add, subtract, multiply, divide, maximum, minimum, relu,
//      decode(as many bits of a mask, packed values)
//      move_down<band>(line): the lanes of each band of a line of 16 one down, the first one behind the last
//   kMaxGroups: registers of 16 columns, or lines, that a tile has at most
//   Four: 4 floats; load, lane<i>() that is one of them in all places of an F
// and transpose8, transpose16.
// Included by one file per instruction set, inside a namespace of its own, so that no code of one leaks into another.

#define EMP_UNROLL _Pragma("GCC unroll 16")  // arrays of registers must not be indexed at run time

// work(a count whose value compilers know), for 1 ≤ count ≤ kMost. Only these are compiled.
template <int kCount>
struct Count {
    static constexpr int value = kCount;
};
template <int kMost, typename Work>
void for_count(int count, const Work& work) {
    if constexpr (kMost > 1)
        if (count < kMost) return for_count<kMost - 1>(count, work);
    work(Count<kMost>());
}

constexpr int kAhead = 2048;  // floats: at 35 GB/s what is fetched now arrives 4 KiB later, and rows end

inline Pick no_pick() { return nullptr; }

static inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

inline float activate(float value, Activation activation) {
    return activation == Activation::relu ? (value < 0.0f ? 0.0f : value) : value;  // NaN stays NaN
}

inline F activate(F value, Activation activation) { return activation == Activation::relu ? relu(value) : value; }

#include "gelu_impl.hpp"
#include "bend_impl.hpp"
#include "few_impl.hpp"
#include "many_impl.hpp"
#include "lanes_impl.hpp"
#include "images_impl.hpp"
#include "slide_impl.hpp"
#include "winograd_impl.hpp"
