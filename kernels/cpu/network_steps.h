// What an evaluation of a network needs beside norm_conv and small_attention, on the CPU: the convolutions that are no 3x3 of
// stride 1, what makes a norm of statistics, and the resampling of maps. fastcond/engine/native_network.py puts them in order.
//
// All float32, maps as [B, H, W, channels]. Pointers that a step does not have are null. What is added up in which order is a function of
// an image's shape, so results depend on neither the batch nor the number of threads.
#pragma once

#include <cstdint>

namespace fastcond::cpu {

// A convolution as one product of its patches with the weight: of 1x1 or 3x3, of any stride, zeros around the map. A side of y is one
// of x over the stride.
struct PatchConv {
    const float* x;       // [B, H, W, first_channels]
    const float* second;  // [B, H, W, C - first_channels], further channels of x, or null
    const float* packed;  // [size * size * C, K] as blocks of 32 features, of which the last is of 16 if no more are left
    const float* bias;    // [K]
    const float* mean;    // [B, C]: (x - mean) gain + offset takes x's place, in the map and not around it
    const float* gain;
    const float* offset;
    const float* residual;  // [B, H', W', K], added to the result
    float* y;               // [B * copies, H', W', K]
    int64_t batch;
    int64_t height;
    int64_t width;
    int64_t first_channels;
    int64_t channels;  // C
    int64_t features;  // K
    int64_t size;      // 1 or 3
    int64_t stride;
    int64_t padding;  // above and left of the map
    int64_t copies;  // y is written this many times, one whole batch after the other
    int threads;
};

// Of each channel of each image over its positions: the mean, and the sum of squared distances to it.
struct ChannelStatistics {
    const float* x;  // [B, positions, C]
    float* mean;     // [B, C]
    float* m2;       // [B, C]
    int64_t batch;
    int64_t positions;
    int64_t channels;
    int threads;
};

// A group norm and its conditioning as one affine map a channel, u = (x - mean) gain + offset, made of the channels' statistics.
struct ChannelNorm {
    const float* first_mean;  // [B, first_channels], and its m2
    const float* first_m2;
    const float* second_mean;  // [B, C - first_channels], of further channels, or null
    const float* second_m2;
    const float* weight;      // [C], 1 without
    const float* bias;        // [C], 0 without
    const float* columns;     // rows of `row` floats: scale [C] and then shift [C] are at `at`; null: no conditioning
    const int64_t* slots;     // [B], the row of each image
    float* mean;              // [B, C]
    float* gain;
    float* offset;
    int64_t row;
    int64_t at;
    int64_t batch;
    int64_t positions;
    int64_t first_channels;
    int64_t channels;  // C
    int64_t groups;
    float eps;
    int threads;
};

// y[image] = bias + columns[slots[image]][at : at + K]
struct RowBias {
    const float* bias;  // [K]
    const float* columns;
    const int64_t* slots;
    float* y;  // [B, K]
    int64_t row;
    int64_t at;
    int64_t batch;
    int64_t features;  // K
};

// Squares of 2x2 averaged, or each position doubled both ways, of silu((x - mean) gain + offset) or, without these, of x. Filtered:
// the average, or the doubling with zeros, weighs its neighbours by [1, 3, 3, 1] both ways, and there are zeros around the map.
struct Resample {
    const float* x;  // [B, H, W, C]
    const float* mean;
    const float* gain;
    const float* offset;
    float* y;
    int64_t batch;
    int64_t height;  // of x
    int64_t width;
    int64_t channels;
    bool silu;
    bool up;
    bool filtered;
    int threads;
};

// Of each position of each image over its channels: (x - mean) / sqrt(variance + eps), a layer norm without its affine map.
struct LayerNorm {
    const float* x;  // [B, positions, C]
    float* y;
    int64_t batch;
    int64_t positions;
    int64_t channels;
    float eps;
    int threads;
};

// y = h gelu(gate), of x = [h, gate].
struct GatedGelu {
    const float* x;  // [B, positions, 2 C]
    float* y;        // [B, positions, C]
    int64_t batch;
    int64_t positions;
    int64_t channels;
    int threads;
};

void patch_conv(const PatchConv& step);
void channel_statistics(const ChannelStatistics& step);
void channel_norm(const ChannelNorm& step);
void row_bias(const RowBias& step);
void resample(const Resample& step);
void layer_norm(const LayerNorm& step);
void gated_gelu(const GatedGelu& step);

}  // namespace fastcond::cpu
