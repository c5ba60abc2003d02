// Work in pieces, done by whoever lends threads: onnxruntime's own pool, or a test.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <type_traits>

#include "matrix.hpp"

namespace emp {

struct Threads {
    void* lender;
    void (*run)(void* lender, void (*piece)(void*, size_t), size_t count, void* data);

    // work(i) for i < count, in any order, at the same time where there are threads. What one throws is thrown here: the threads are not ours, and whoever
    // lends them may not know of exceptions.
    template <typename Work>
    void each(int64_t count, Work&& work) const {
        using Plain = std::remove_reference_t<Work>;
        if (count == 1) return work(0);
        if (count < 1) return;
        struct Job {
            Plain& work;
            std::atomic<bool> failed;
            std::exception_ptr error;
        } job{work, {false}, nullptr};
        const auto piece = [](void* data, size_t i) noexcept {
            Job& job = *static_cast<Job*>(data);
            if (job.failed) return;
            try {
                job.work(int64_t(i));
            } catch (...) {
                if (!job.failed.exchange(true)) job.error = std::current_exception();
            }
        };
        run(lender, piece, size_t(count), &job);
        if (job.failed) std::rethrow_exception(job.error);
    }

    // work(from, to) over [0, total) in pieces of at least `least`, at most `most` of them.
    template <typename Work>
    void ranges(int64_t total, int64_t least, int64_t most, Work&& work) const {
        const int64_t pieces = std::clamp<int64_t>(total / std::max<int64_t>(least, 1), 1, most);
        const int64_t size = (total + pieces - 1) / pieces, rounded = pieces > 1 ? (size + 15) / 16 * 16 : size;
        const int64_t count = rounded ? (total + rounded - 1) / rounded : 0;
        each(count, [&](int64_t i) { work(i * rounded, std::min(total, (i + 1) * rounded)); });
    }
};

// Scratch memory of the calling thread, kept from call to call. One buffer per purpose, since a thread may hold several at once.
enum class Scratch { input, block, sums, steps, state, count };
inline float* scratch(Scratch purpose, size_t size) {
    thread_local Buffer<float> buffers[size_t(Scratch::count)];
    return buffers[size_t(purpose)].grow(size);
}

// Zeros there.
inline float* zeros(Scratch purpose, int64_t size) {
    float* made = scratch(purpose, size_t(size));
    std::fill(made, made + size, 0.0f);
    return made;
}

}  // namespace emp
