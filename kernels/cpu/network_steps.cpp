#include "network_steps.h"

#include "instruction_set.h"

namespace fastcond::cpu {

#define DECLARE(set)                                   \
    namespace set {                                    \
    void patch_conv(const PatchConv&);                 \
    void channel_statistics(const ChannelStatistics&); \
    void channel_norm(const ChannelNorm&);             \
    void row_bias(const RowBias&);                     \
    void resample(const Resample&);                    \
    void layer_norm(const LayerNorm&);                 \
    void gated_gelu(const GatedGelu&);                 \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

void patch_conv(const PatchConv& step) { FASTCOND_DISPATCH(patch_conv, step) }
void channel_statistics(const ChannelStatistics& step) { FASTCOND_DISPATCH(channel_statistics, step) }
void channel_norm(const ChannelNorm& step) { FASTCOND_DISPATCH(channel_norm, step) }
void row_bias(const RowBias& step) { FASTCOND_DISPATCH(row_bias, step) }
void resample(const Resample& step) { FASTCOND_DISPATCH(resample, step) }
void layer_norm(const LayerNorm& step) { FASTCOND_DISPATCH(layer_norm, step) }
void gated_gelu(const GatedGelu& step) { FASTCOND_DISPATCH(gated_gelu, step) }

}  // namespace fastcond::cpu
