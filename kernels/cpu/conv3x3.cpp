#include "conv3x3.h"

#include "instruction_set.h"

namespace fastcond::cpu {

#define DECLARE(set)                                       \
    namespace set {                                        \
    void pack_filters(const FilterPack&);                  \
    void conv_weight_gradient(const ConvWeightGradient&);  \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

void pack_filters(const FilterPack& call) { FASTCOND_DISPATCH(pack_filters, call) }
void conv_weight_gradient(const ConvWeightGradient& call) { FASTCOND_DISPATCH(conv_weight_gradient, call) }

}  // namespace fastcond::cpu
