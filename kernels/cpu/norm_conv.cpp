#include "norm_conv.h"

#include "conv3x3.h"
#include "instruction_set.h"

namespace fastcond::cpu {

#define DECLARE(set)                  \
    namespace set {                   \
    void norm_conv(const NormConv&);  \
    int64_t tiles_together(int64_t);  \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

void norm_conv(const NormConv& call) { FASTCOND_DISPATCH(norm_conv, call) }
int64_t tiles_together(int64_t channels) { FASTCOND_DISPATCH(tiles_together, channels) }

void pack_conv_weight(const float* weight, float* packed, int64_t channels, int64_t features, int threads) {
    pack_filters({weight, packed, channels, features, 9, 9 * channels, 1, false, threads});
}

}  // namespace fastcond::cpu
