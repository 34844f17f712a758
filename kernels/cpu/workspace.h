// Memory that a thread keeps from call to call; for sources compiled once for each instruction set.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

// Floats, from the start of a cache line.
struct Workspace {
    void* memory = nullptr;
    int64_t size = 0;

    float* take(int64_t count) {
        if (count > size) {
            std::free(memory);
            memory = std::malloc(size_t(count) * sizeof(float) + 63);
            if (memory == nullptr) std::abort();  // no exception may leave a parallel region
            size = count;
        }
        return reinterpret_cast<float*>((reinterpret_cast<std::uintptr_t>(memory) + 63) & ~std::uintptr_t{63});
    }
    ~Workspace() { std::free(memory); }
};

// Numbers of any kind, wherever they lie.
template <typename Number>
struct Kept {
    Number* memory = nullptr;
    int64_t size = 0;

    Number* take(int64_t count) {
        if (count > size) {
            std::free(memory);
            memory = static_cast<Number*>(std::malloc(size_t(count) * sizeof(Number)));
            if (memory == nullptr) std::abort();  // no exception may leave a parallel region
            size = count;
        }
        return memory;
    }
    ~Kept() { std::free(memory); }
};

// Floats of whole cache lines.
inline int64_t whole_lines(int64_t count) { return (count + 15) / 16 * 16; }

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
