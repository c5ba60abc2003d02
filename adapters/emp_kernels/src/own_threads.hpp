// Threads for programs without onnxruntime: made for one piece of work, and ended after it.
#pragma once
#include <atomic>
#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

namespace emp {

// `lender` points to an int: how many threads.
inline void run_threads(void* lender, void (*piece)(void*, size_t), size_t count, void* data) {
    std::atomic<size_t> next{0};
    auto work = [&] {
        for (size_t i = next++; i < count; i = next++) piece(data, i);
    };
    std::vector<std::thread> others;
    try {
        for (int t = 1; t < *static_cast<int*>(lender); t++) others.emplace_back(work);
    } catch (const std::exception&) {  // fewer threads do the same
    }
    work();
    for (std::thread& one : others) one.join();
}

}  // namespace emp
