#include "ada_group_norm.h"

#include "instruction_set.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fastcond::cpu {

#define DECLARE(set)                                                                     \
    namespace set {                                                                      \
    void ada_group_norm(const AdaGroupNorm&, const AdaGroupNormForward&);                \
    void ada_group_norm_backward(const AdaGroupNorm&, const AdaGroupNormBackward&);      \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

namespace {

int64_t bytes_of(const AdaGroupNorm& call) {
    return call.batch * call.channels * call.positions * (call.stored == Stored::float32 ? 4 : 2);
}

// A result that is larger than the caches is new memory from the system, which hands it over page by page as it is written to:
// of a copy to such memory four fifths of the time go there. Large pages are fewer; where the system has none, nothing changes.
void ask_for_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
    const auto page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes)) / page * page;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

void ada_group_norm(AdaGroupNorm call, const AdaGroupNormForward& forward) {
    call.streams = bytes_of(call) > largest_cache();
    if (call.streams) ask_for_large_pages(forward.y, bytes_of(call));
    FASTCOND_DISPATCH(ada_group_norm, call, forward)
}

void ada_group_norm_backward(AdaGroupNorm call, const AdaGroupNormBackward& backward) {
    call.streams = bytes_of(call) > largest_cache();
    if (call.streams) ask_for_large_pages(backward.dx, bytes_of(call));
    FASTCOND_DISPATCH(ada_group_norm_backward, call, backward)
}

}  // namespace fastcond::cpu
