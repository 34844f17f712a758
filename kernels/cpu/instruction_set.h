// Which build of a kernel runs: sources named *_kernel.cpp are compiled once for each instruction set (CMakeLists.txt),
// each into a namespace of its own, and one is chosen when the library is loaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastcond::cpu {

enum class InstructionSet { baseline, avx2, avx512 };

// The best that was built and that this processor has; what `use_instruction_set` chose, after it was called.
InstructionSet instruction_set();

// Names of those that were built and that this processor has, the best last.
std::vector<std::string> instruction_sets();

// For tests: run another build. Throws std::invalid_argument for a name that is not among instruction_sets().
void use_instruction_set(const std::string& name);

}  // namespace fastcond::cpu

// Declares a kernel's builds, and calls the chosen build of `function`.
#if defined(FASTCOND_X86)
#define FASTCOND_FOR_EACH_INSTRUCTION_SET(declare) declare(baseline) declare(avx2) declare(avx512)
#define FASTCOND_DISPATCH(function, ...)                                                    \
    switch (::fastcond::cpu::instruction_set()) {                                           \
        case ::fastcond::cpu::InstructionSet::avx512: return avx512::function(__VA_ARGS__); \
        case ::fastcond::cpu::InstructionSet::avx2: return avx2::function(__VA_ARGS__);     \
        default: return baseline::function(__VA_ARGS__);                                    \
    }
#else
#define FASTCOND_FOR_EACH_INSTRUCTION_SET(declare) declare(baseline)
#define FASTCOND_DISPATCH(function, ...) return baseline::function(__VA_ARGS__);
#endif
