#include "instruction_set.h"

#include <stdexcept>

#if defined(__linux__)
#include <unistd.h>
#endif

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

int64_t find_largest_cache() {
    // Some processors report the sum of caches of which a core reaches one, so no more than a usual one is believed.
    constexpr int64_t usual = int64_t{32} << 20;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    for (int level : {_SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE})
        if (const long bytes = sysconf(level); bytes > 0) return bytes < usual ? bytes : usual;
#endif
    return usual;
}

int64_t cache = find_largest_cache();

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

int64_t largest_cache() { return cache; }

void use_largest_cache(int64_t bytes) { cache = bytes; }

}  // namespace fastcond::cpu
