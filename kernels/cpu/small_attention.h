// Self-attention over the positions of a small map on the CPU; fastcond/ops/small_attention/reference.py defines what is computed.
//
// Products use fused multiply-adds where there are any, so the bits of a result differ between instruction sets, but not with the
// batch, the number of threads or the run.
#pragma once

#include <cstdint>

namespace fastcond::cpu {

// One call, all float32. Pointers that a call does not have are null.
struct SmallAttention {
    const float* x;         // [B, tokens, C]
    const float* mean;      // [B, C]: u = (x - mean) gain + offset; none of the three: u = x
    const float* gain;      // [B, C]
    const float* offset;    // [B, C]
    const float* packed;    // [3C, C] of queries, keys, values, then [C, C] of the output, each as blocks [C][32] of 32 features, of
                            // which the last is [C][16] if no more than 16 are left
    const float* qkv_bias;  // [3C]
    const float* out_bias;  // [C], or [B, C] where out_bias_stride is C and not 0
    const float* residual;  // [B, tokens, C], added to the result
    float* y;               // [B, tokens, C]
    int64_t batch;
    int64_t tokens;
    int64_t channels;  // C
    int64_t heads;     // a divisor of C
    int threads;
    int64_t out_bias_stride = 0;
    float scale = 1.0f;  // of y, the residual with it
};

void small_attention(const SmallAttention& call);

}  // namespace fastcond::cpu
