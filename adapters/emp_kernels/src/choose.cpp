// Which instruction set: the best that the processor has, unless EMP_KERNELS_ISA names another one that it has.
#include <cstdlib>
#include <cstring>

#include "kernels.hpp"

namespace emp {

#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels kAvx512, kAvx2;
#elif defined(__aarch64__) || defined(_M_ARM64)
extern const Kernels kNeon;
#endif
extern const Kernels kPortable;

namespace {
const Kernels* const kAll[] = {
#if defined(__x86_64__) || defined(_M_X64)
    &kAvx512, &kAvx2,
#elif defined(__aarch64__) || defined(_M_ARM64)
    &kNeon,
#endif
    &kPortable};
}  // namespace

const Kernels* kernels(const char* name) {
    for (const Kernels* one : kAll)
        if (std::strcmp(one->name, name) == 0 && one->supported()) return one;
    return nullptr;
}

const Kernels& kernels() {
    static const Kernels& chosen = []() -> const Kernels& {
        const char* wanted = std::getenv("EMP_KERNELS_ISA");
        if (const Kernels* named = wanted ? kernels(wanted) : nullptr) return *named;
        for (const Kernels* one : kAll)
            if (one->supported()) return *one;
        return kPortable;
    }();
    return chosen;
}

}  // namespace emp
