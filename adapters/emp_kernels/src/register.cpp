// The entry point that onnxruntime calls: `RegisterCustomOps`, of the name and type that it prescribes.
#include <cstdlib>
#include <cstring>
#include <string>

#include "api.hpp"
#include "ops.hpp"

using namespace emp;

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    // The first entries of the table are the same in every version, so that even one too old can be told so.
    const char* found = base->GetVersionString();
    const OrtApi* api = base->GetApi(ort::kVersion);
    if (!api) {
        api = base->GetApi(1);
        if (!api) std::abort();  // not an onnxruntime
        ort::table = reinterpret_cast<const void* const*>(api);
        return ort::status("the kernels for packed weights need onnxruntime >= 1." + std::to_string(ort::kVersion) + ", got " + found);
    }
    ort::table = reinterpret_cast<const void* const*>(api);
    // One domain for the whole process: it must outlive every session, and onnxruntime does not say when the last one ends.
    static OrtCustomOpDomain* domain = nullptr;
    static OrtStatus* failed = [] {
        OrtStatus* status = ort::raw<ort::kCreateCustomOpDomain>(kDomain, &domain);
        for (const ort::CustomOp* op : operations())
            if (!status) status = ort::raw<ort::kCustomOpDomainAdd>(domain, op);
        return status;
    }();
    if (failed) return ort::status("the kernels for packed weights could not be registered");
    return ort::raw<ort::kAddCustomOpDomain>(options, domain);
}
