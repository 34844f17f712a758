// AdaGN on the CPU; fastcond/ops/ada_group_norm/reference.py defines what is computed.
#pragma once

#include <cstdint>

#include "fastcond/simd.h"

namespace fastcond::cpu {

// One call. Pointers that a call does not have are null: scale, shift [B, C] by rows of their own stride, weight, bias [C].
struct AdaGroupNorm {
    const void* x;  // [B, C, positions] or, channels_last, [B, positions, C]
    const float* scale;
    const float* shift;
    const float* weight;
    const float* bias;
    int64_t scale_stride;
    int64_t shift_stride;
    int64_t batch;
    int64_t channels;
    int64_t groups;
    int64_t positions;
    bool silu;
    bool channels_last;
    Stored stored;  // x, y, dy and dx; all else is float32
    int threads;
    bool streams = false;  // results go past the caches, which could not hold them
};

struct AdaGroupNormForward {
    float eps;
    void* y;
    float* mean;  // [2, B, G], the mean and what its rounding left out
    float* rstd;  // [B, G]
};

struct AdaGroupNormBackward {
    const void* dy;
    const float* mean;  // [2, B, G]
    const float* rstd;  // [B, G]
    void* dx;
    float* A;  // [B, C], sum over positions of du xh
    float* B;  // [B, C], sum over positions of du
};

void ada_group_norm(AdaGroupNorm call, const AdaGroupNormForward& forward);
void ada_group_norm_backward(AdaGroupNorm call, const AdaGroupNormBackward& backward);

}  // namespace fastcond::cpu
