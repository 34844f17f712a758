#include "ada_group_norm.h"

#include "instruction_set.h"

namespace fastcond::cpu {

#define DECLARE(set)                                                                     \
    namespace set {                                                                      \
    void ada_group_norm(const AdaGroupNorm&, const AdaGroupNormForward&);                \
    void ada_group_norm_backward(const AdaGroupNorm&, const AdaGroupNormBackward&);      \
    }
DECLARE(baseline)
#if defined(FASTCOND_X86)
DECLARE(avx2)
DECLARE(avx512)
#endif
#undef DECLARE

void ada_group_norm(const AdaGroupNorm& call, const AdaGroupNormForward& forward) {
    FASTCOND_DISPATCH(ada_group_norm, call, forward)
}

void ada_group_norm_backward(const AdaGroupNorm& call, const AdaGroupNormBackward& backward) {
    FASTCOND_DISPATCH(ada_group_norm_backward, call, backward)
}

}  // namespace fastcond::cpu
