// The entry point that onnxruntime calls: `RegisterCustomOps`, of the name and type that it prescribes.
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "api.hpp"
#include "ops.hpp"

using namespace emp;

namespace {

thread_local std::string wanted;

// With the operations wanted; null if onnxruntime refuses one. It must outlive every session, and onnxruntime does not say when the last one ends, so
// one is kept for each choice.
OrtCustomOpDomain* domain_of(const std::string& names) {
    static std::mutex making;
    static std::map<std::string, OrtCustomOpDomain*> made;
    const std::lock_guard<std::mutex> lock(making);
    if (const auto known = made.find(names); known != made.end()) return known->second;
    OrtCustomOpDomain* domain = nullptr;
    OrtStatus* status = ort::raw<ort::kCreateCustomOpDomain>(kDomain, &domain);
    for (const ort::CustomOp* op : operations())
        if (!status && (names.empty() || names.find(" " + std::string(op->GetName(op)) + " ") != std::string::npos))
            status = ort::raw<ort::kCustomOpDomainAdd>(domain, op);
    return made[names] = status ? nullptr : domain;
}

}  // namespace

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
    OrtCustomOpDomain* domain = domain_of(std::exchange(wanted, {}));
    if (!domain) return ort::status("the kernels for packed weights could not be registered");
    return ort::raw<ort::kAddCustomOpDomain>(options, domain);
}

// What the next registration of the calling thread is for: names of operations with spaces between, or null for all. onnxruntime takes an eighth of a
// millisecond for each when it opens a session.
extern "C" __attribute__((visibility("default"))) void emp_kernels_only(const char* names) { wanted = names ? " " + std::string(names) + " " : ""; }
