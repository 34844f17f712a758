// A normalised and activated 3x3 convolution on the CPU; fastcond/ops/norm_conv/reference.py defines what is computed.
//
// Winograd's F(4x4, 3x3) (Lavin & Gray 2015, section 4): 36 products of matrices take the place of a convolution's nine, for
// a quarter of the multiplications. These use fused multiply-adds where there are any, so the bits of a result
// differ between instruction sets. They do not differ with the batch, the number of threads or the run: an output adds its channels one
// after another however the work is divided.
#pragma once

#include <cstdint>

namespace fastcond::cpu {

// One call, all float32, maps as [B, H, W, channels]. Pointers that a call does not have are null.
struct NormConv {
    const float* x;         // [B, H, W, C]
    const float* mean;      // [B, C]: u = (x - mean) gain + offset; none of the three: u = x
    const float* gain;      // [B, C]
    const float* offset;    // [B, C]
    const float* packed;    // see pack_conv_weight
    const float* bias;      // [K], or [B, K] where bias_stride is K and not 0
    const float* residual;  // [B, H, W, K], added to the result
    float* y;               // [B, H, W, K]
    float* y_mean;          // [B, K], of y over the positions of an image; null: not wanted
    float* y_m2;            // [B, K], sum over an image's positions of (y - y_mean)^2
    int64_t bias_stride;
    int64_t batch;
    int64_t height;
    int64_t width;
    int64_t channels;  // C
    int64_t features;  // K
    bool silu;         // of u
    int threads;
    // x in two parts, as channels of one after those of the other: x has `first_channels` of them, [B, H, W, first_channels].
    const float* second = nullptr;  // [B, H, W, C - first_channels]; null: x has all channels
    int64_t first_channels = 0;
    bool upsampled = false;  // x is [B, H / 2, W / 2, C], each position of which stands for four
    // With `upsampled`: `packed` is of four convolutions of x, blocks [4][25][C][32], as fastcond/ops/norm_conv/upsampled.py writes
    // them. Fewer products and transforms than of the doubled map; nearly three times the weights.
    bool phased = false;
    float scale = 1.0f;      // of y, the residual with it
};

void norm_conv(const NormConv& call);

// Tiles of 4x4 outputs that a thread works on together, by the instruction set.
int64_t tiles_together(int64_t channels);

// weight [K, C, 3, 3] -> packed, the same for every instruction set: blocks of 32 features, of which the last is of 16 if no
// more are left; each is [36][C][32], G g G^T of each filter, zero where there is no feature.
void pack_conv_weight(const float* weight, float* packed, int64_t channels, int64_t features, int threads);

}  // namespace fastcond::cpu
