// What training adds to norm_conv's 3x3 convolution on the CPU: weights packed at every step, also turned, and the weight
// gradient; fastcond/ops/conv3x3/reference.py defines what is computed.
//
// The weight gradient is Winograd's too (Lavin & Gray 2015, section 4): with V = B^T d B of an input's tile and Z = A dy A^T of
// the output's, it is G^T [ sum over tiles of V . Z ] G, 36 products of matrices [K x tiles] [tiles x C]. An element adds its
// tiles in an order that follows from the shape, so its bits do not depend on the number of threads or the run.
#pragma once

#include <cstdint>

namespace fastcond::cpu {

// Filters of 3x3 taps, float32, anywhere in memory: feature k of channel c at weight + k feature_stride + c channel_stride, its
// taps tap_stride apart.
struct FilterPack {
    const float* weight;
    float* packed;  // as norm_conv's pack_conv_weight gives it
    int64_t channels;
    int64_t features;
    int64_t channel_stride;
    int64_t feature_stride;
    int64_t tap_stride;
    bool turned;  // the taps from the last to the first
    int threads;
};

void pack_filters(const FilterPack& call);

// One call, all float32.
struct ConvWeightGradient {
    const float* x;   // [B, H, W, C]
    const float* dy;  // [B, H, W, K]
    float* dweight;   // [K, 3, 3, C], or null
    float* dbias;     // [K], or null
    int64_t batch;
    int64_t height;
    int64_t width;
    int64_t channels;  // C
    int64_t features;  // K
    int threads;
};

void conv_weight_gradient(const ConvWeightGradient& call);

}  // namespace fastcond::cpu
