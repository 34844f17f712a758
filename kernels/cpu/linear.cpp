#include "linear.h"

#include "instruction_set.h"

namespace fastcond::cpu {

#define DECLARE(set)                               \
    namespace set {                                \
    void pack_matrix(const MatrixPack&);           \
    void linear_gradient(const LinearGradient&);   \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

void pack_matrix(const MatrixPack& call) { FASTCOND_DISPATCH(pack_matrix, call) }
void linear_gradient(const LinearGradient& call) { FASTCOND_DISPATCH(linear_gradient, call) }

}  // namespace fastcond::cpu
