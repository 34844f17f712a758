#include "ada_group_norm.h"

#include <memory>

#include "instruction_set.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fastcond::cpu {

#define DECLARE(set)                                                                                             \
    namespace set {                                                                                              \
    void ada_group_norm(const AdaGroupNorm&, const AdaGroupNormForward&);                                        \
    void ada_group_norm_backward(const AdaGroupNorm&, const AdaGroupNormBackward&);                              \
    void differentiate_operands(const AdaGroupNorm&, const AdaGroupNormBackward&, const OperandGradients&);      \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

namespace {

int64_t bytes_of(const AdaGroupNorm& call) {
    return call.batch * call.channels * call.positions * (call.stored == Stored::float32 ? 4 : 2);
}

constexpr int64_t large_page = int64_t{2} << 20;

// A large result is new memory from the system, which hands it over page by page as it is written to: of a copy to such memory
// nine tenths of the time go there. Large pages are fewer; where the system has none, nothing changes.
void ask_for_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
    if (bytes < large_page) return;
    const auto page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes)) / page * page;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

void choose(const AdaGroupNorm& call, const AdaGroupNormBackward& backward) {
    FASTCOND_DISPATCH(ada_group_norm_backward, call, backward)
}

void differentiate(const AdaGroupNorm& call, const AdaGroupNormBackward& backward, const OperandGradients& gradients) {
    FASTCOND_DISPATCH(differentiate_operands, call, backward, gradients)
}

}  // namespace

void ada_group_norm(const AdaGroupNorm& call, const AdaGroupNormForward& forward) {
    ask_for_large_pages(forward.y, bytes_of(call));
    FASTCOND_DISPATCH(ada_group_norm, call, forward)
}

void ada_group_norm_backward(const AdaGroupNorm& call, AdaGroupNormBackward backward, const OperandGradients& gradients) {
    ask_for_large_pages(backward.dx, bytes_of(call));
    const int64_t sums = call.batch * call.channels;
    const std::unique_ptr<float[]> memory(new float[size_t(2 * sums)]);
    backward.A = memory.get();
    backward.B = backward.A + sums;
    choose(call, backward);
    differentiate(call, backward, gradients);
}

}  // namespace fastcond::cpu
