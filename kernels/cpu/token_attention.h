// Multi-head attention between the tokens of an image on the CPU, with its gradients; fastcond/ops/token_attention/reference.py
// defines what is computed.
//
// Products use fused multiply-adds where there are any, so the bits of a result differ between instruction sets, but not with the
// batch, the number of threads or the run.
#pragma once

#include <cstdint>

namespace fastcond::cpu {

// Both directions, all float32. Queries, keys and values are [B, tokens, C], whose tokens are `stride` floats apart and images
// tokens * stride; the channels are heads one after another. What is written lies without gaps.
struct TokenAttention {
    const float* q;
    const float* k;
    const float* v;
    int64_t q_stride;
    int64_t k_stride;
    int64_t v_stride;
    int64_t batch;
    int64_t tokens;
    int64_t channels;  // C
    int64_t heads;     // a divisor of C
    int threads;
    float* y;          // [B, tokens, C], read backward
    float* softmax;    // [B, heads, 2, tokens], read backward: a query's largest score, and 1 over its sum of exponentials
    const float* dy;   // [B, tokens, C], or null: forward
    float* dq;         // [B, tokens, C], as the next two
    float* dk;
    float* dv;
};

void token_attention(const TokenAttention& call);
void token_attention_backward(const TokenAttention& call);

}  // namespace fastcond::cpu
