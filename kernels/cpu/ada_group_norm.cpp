#include "ada_group_norm.h"

#include <algorithm>
#include <memory>
#include <vector>

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

// dscale = weight A + bias B and dshift = B, of each image; dweight and dbias are the sums over images of (1 + scale) A and
// (1 + scale) B. All of it is little beside x.
void differentiate_operands(const AdaGroupNorm& call, const AdaGroupNormBackward& backward, const OperandGradients& gradients) {
    const int64_t C = call.channels;
    const bool of_channels = gradients.weight || gradients.bias;
    std::vector<double> of_weight(of_channels ? size_t(C) : 0), of_bias(of_weight);
    for (int64_t b = 0; b < call.batch; ++b) {
        const float *A = backward.A + b * C, *B = backward.B + b * C;
        if (gradients.scale)
            for (int64_t c = 0; c < C; ++c)
                gradients.scale[b * C + c] =
                    (call.weight ? call.weight[c] * A[c] : A[c]) + (call.bias ? call.bias[c] * B[c] : 0.0f);
        if (gradients.shift) std::copy(B, B + C, gradients.shift + b * C);
        for (int64_t c = 0; of_channels && c < C; ++c) {
            const float one_plus = call.scale ? 1.0f + call.scale[b * call.scale_stride + c] : 1.0f;
            of_weight[size_t(c)] += double(one_plus * A[c]);
            of_bias[size_t(c)] += double(one_plus * B[c]);
        }
    }
    for (int64_t c = 0; gradients.weight && c < C; ++c) gradients.weight[c] = float(of_weight[size_t(c)]);
    for (int64_t c = 0; gradients.bias && c < C; ++c) gradients.bias[c] = float(of_bias[size_t(c)]);
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
    differentiate_operands(call, backward, gradients);
}

}  // namespace fastcond::cpu
