#include "instruction_set.h"

#include <stdexcept>

namespace fastcond::cpu {
namespace {

constexpr const char* names[] = {"baseline", "avx2", "avx512"};

bool is_there(InstructionSet set) {
#if defined(FASTCOND_X86)
    // The compiler's builtin asks the operating system too, which has to save the wide registers.
    __builtin_cpu_init();
    if (set == InstructionSet::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (set == InstructionSet::avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
               is_there(InstructionSet::avx2);
#endif
    return set == InstructionSet::baseline;
}

InstructionSet best() {
    for (InstructionSet set : {InstructionSet::avx512, InstructionSet::avx2})
        if (is_there(set)) return set;
    return InstructionSet::baseline;
}

InstructionSet chosen = best();

}  // namespace

InstructionSet instruction_set() { return chosen; }

std::vector<std::string> instruction_sets() {
    std::vector<std::string> found;
    for (InstructionSet set : {InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512})
        if (is_there(set)) found.emplace_back(names[int(set)]);
    return found;
}

void use_instruction_set(const std::string& name) {
    for (InstructionSet set : {InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512})
        if (names[int(set)] == name && is_there(set)) {
            chosen = set;
            return;
        }
    throw std::invalid_argument("instruction set " + name + " is not there");
}

}  // namespace fastcond::cpu
