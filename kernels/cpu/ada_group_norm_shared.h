// What AdaGN's two layouts share, for sources that are compiled once for each instruction set.
#pragma once

#include <cmath>
#include <cstdlib>

#include "ada_group_norm.h"
#include "lanes.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t rows_a_float = 32;  // elements a float32 lane sums before it is added to a double

FASTCOND_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTCOND_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Memory that a thread keeps from call to call.
template <typename Number>
struct Scratch {
    Number* memory = nullptr;
    int64_t size = 0;

    Number* take(int64_t count) {
        if (count > size) {
            std::free(memory);
            memory = static_cast<Number*>(std::malloc(size_t(count) * sizeof(Number)));
            if (memory == nullptr) std::abort();  // no exception may leave a parallel region
            size = count;
        }
        return memory;
    }
    ~Scratch() { std::free(memory); }
};

// gain = weight (1 + scale) and offset = bias (1 + scale) + shift of one image's channel.
struct Affine {
    float gain, offset;
};

FASTCOND_INLINE Affine affine(const AdaGroupNorm& call, int64_t image, int64_t channel) {
    const float one_plus = call.scale ? 1.0f + call.scale[image * call.scale_stride + channel] : 1.0f;
    const float gain = call.weight ? call.weight[channel] * one_plus : one_plus;
    float offset = call.bias ? call.bias[channel] * one_plus : 0.0f;
    if (call.shift) offset += call.shift[image * call.shift_stride + channel];
    return {gain, offset};
}

FASTCOND_INLINE float reciprocal_root(double sum_of_squares, double count, float eps) {
    return float(1.0 / std::sqrt(sum_of_squares / count + double(eps)));
}

// mean[0] is pivot + centre rounded, mean[1] what the rounding left out: the backward needs no reduction for it.
FASTCOND_INLINE void keep_mean(const AdaGroupNorm& call, float* mean, int64_t group_of_batch, float pivot, float centre) {
    const float rounded = pivot + centre;
    mean[group_of_batch] = rounded;
    mean[call.batch * call.groups + group_of_batch] = (pivot - rounded) + centre;
}

// Of Lanes or FourLanes.
template <bool silu_on, typename V>
FASTCOND_INLINE V activate(const V& u) {
    if constexpr (silu_on) return silu(u);
    return u;
}

// dy times the activation's slope at u.
template <bool silu_on, typename V>
FASTCOND_INLINE V through_activation(const V& dy, const V& u) {
    if constexpr (silu_on) return dy * silu_slope(u);
    return dy;
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
