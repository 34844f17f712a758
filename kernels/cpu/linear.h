// A linear layer of training on the CPU; fastcond/ops/linear/reference.py defines what is computed.
//
// y and dx are products of rows with a packed weight (network_steps.h's convolution of 1x1), the weight gradient is one over
// the rows. An element adds its terms in an order that follows from the shape: no bit depends on the number of threads, and none of a
// row's on the other rows.
#pragma once

#include <cstdint>

namespace fastcond::cpu {

// A matrix, float32, anywhere in memory: feature k of term d at weight + k feature_stride + d term_stride.
struct MatrixPack {
    const float* weight;
    float* packed;  // blocks [terms][32 features], of which the last is of 16 if no more are left, zero where there is no feature
    int64_t terms;
    int64_t features;
    int64_t term_stride;
    int64_t feature_stride;
    int threads;
};

void pack_matrix(const MatrixPack& call);

// One call, all float32.
struct LinearGradient {
    const float* x;   // [rows, C], C a multiple of 16
    const float* dy;  // [rows, K]
    float* dweight;   // [K, C], or null
    float* dbias;     // [K], or null
    int64_t rows;
    int64_t channels;  // C
    int64_t features;  // K
    int threads;
};

void linear_gradient(const LinearGradient& call);

}  // namespace fastcond::cpu
