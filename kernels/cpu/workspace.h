// Memory that a thread keeps from call to call; for sources compiled once for each instruction set.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

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

// Floats, from the start of a cache line.
struct Workspace {
    static constexpr int64_t line = 64;
    Kept<unsigned char> memory;

    float* take(int64_t count) {
        const auto first = reinterpret_cast<std::uintptr_t>(memory.take(count * int64_t(sizeof(float)) + line - 1));
        return reinterpret_cast<float*>((first + line - 1) / line * line);
    }
};

// Floats of whole cache lines.
inline int64_t whole_lines(int64_t count) { return (count + 15) / 16 * 16; }

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
