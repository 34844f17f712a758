#include "small_attention.h"

#include "instruction_set.h"

namespace fastcond::cpu {

#define DECLARE(set)                             \
    namespace set {                              \
    void small_attention(const SmallAttention&); \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

void small_attention(const SmallAttention& call) { FASTCOND_DISPATCH(small_attention, call) }

}  // namespace fastcond::cpu
