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
};

struct AdaGroupNormForward {
    float eps;
    void* y;
    float* mean;  // [2, B, G], the mean and what its rounding left out; null where no backward follows
    float* rstd;  // [B, G]; null with mean
};

struct AdaGroupNormBackward {
    const void* dy;
    const float* mean;  // [2, B, G]
    const float* rstd;  // [B, G]
    void* dx;
    float* A = nullptr;  // [B, C], sum over positions of du xh; ada_group_norm_backward's own
    float* B = nullptr;  // [B, C], sum over positions of du
};

// Null where none is wanted.
struct OperandGradients {
    float* scale;   // [B, C]
    float* shift;   // [B, C]
    float* weight;  // [C]
    float* bias;    // [C]
};

void ada_group_norm(const AdaGroupNorm& call, const AdaGroupNormForward& forward);
void ada_group_norm_backward(const AdaGroupNorm& call, AdaGroupNormBackward backward, const OperandGradients& gradients);

}  // namespace fastcond::cpu
