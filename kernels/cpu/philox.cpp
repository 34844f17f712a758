#include "philox.h"

#include "instruction_set.h"

namespace fastcond::cpu {

#define DECLARE(set)                         \
    namespace set {                          \
    void philox_bits(const Draw&, int64_t*); \
    void philox_normal(const Draw&, float*); \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

void philox_bits(const Draw& draw, int64_t* out) { FASTCOND_DISPATCH(philox_bits, draw, out) }
void philox_normal(const Draw& draw, float* out) { FASTCOND_DISPATCH(philox_normal, draw, out) }

}  // namespace fastcond::cpu
