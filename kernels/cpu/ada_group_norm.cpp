#include "ada_group_norm.h"

#include "instruction_set.h"

namespace fastcond::cpu {

#define DECLARE(set)                                                                     \
    namespace set {                                                                      \
    void ada_group_norm(const AdaGroupNorm&, const AdaGroupNormForward&);                \
    void ada_group_norm_backward(const AdaGroupNorm&, const AdaGroupNormBackward&);      \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

namespace {

bool exceeds_the_caches(const AdaGroupNorm& call) {
    const int64_t bytes = call.stored == Stored::float32 ? 4 : 2;
    return call.batch * call.channels * call.positions * bytes > largest_cache();
}

}  // namespace

void ada_group_norm(AdaGroupNorm call, const AdaGroupNormForward& forward) {
    call.streams = exceeds_the_caches(call);
    FASTCOND_DISPATCH(ada_group_norm, call, forward)
}

void ada_group_norm_backward(AdaGroupNorm call, const AdaGroupNormBackward& backward) {
    call.streams = exceeds_the_caches(call);
    FASTCOND_DISPATCH(ada_group_norm_backward, call, backward)
}

}  // namespace fastcond::cpu
