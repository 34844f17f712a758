// What AdaGN's two layouts share, for sources that are compiled once for each instruction set.
#pragma once

#include <cmath>

#include "activation.h"
#include "ada_group_norm.h"
#include "doubles.h"
#include "workspace.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t rows_a_float = 32;  // elements a float32 lane sums before it is added to a double

FASTCOND_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTCOND_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int64_t bytes_past_caches = int64_t{16} << 20;  // and as many of the input

// Whether x and a result of it are more than caches hold.
template <typename T>
FASTCOND_INLINE bool is_large(const AdaGroupNorm& call) {
    return call.batch * call.channels * call.positions * int64_t(sizeof(T)) >= bytes_past_caches;
}

// Whether a unit's result, whose rows are `row` elements apart, goes past the caches: no next reader would find all of it there.
template <typename T>
FASTCOND_INLINE bool goes_past_caches(const AdaGroupNorm& call, const T* result, int64_t row) {
    return sizeof(T) == sizeof(float) && is_large<T>(call) && row % lanes == 0 &&
           reinterpret_cast<std::uintptr_t>(result) % (lanes * sizeof(T)) == 0;
}

// Where du stands meanwhile: where dx is to be, or in `count` elements of scratch.
template <typename T>
FASTCOND_INLINE float* du_of([[maybe_unused]] T* dx, [[maybe_unused]] bool past_caches, int64_t count, Kept<float>& scratch) {
    if constexpr (sizeof(T) == sizeof(float)) {
        if (!past_caches) return dx;
    }
    return scratch.take(count);
}

FASTCOND_INLINE float reciprocal_root(double sum_of_squares, double count, float eps) {
    return float(1.0 / std::sqrt(sum_of_squares / count + double(eps)));
}

// A group's mean, rounded, and what the rounding left out. Distances are taken to `rounded`; what was left out is less than
// half its last place, and is made up for in sums and offsets.
struct Mean {
    float rounded, left_out;
};

// Of pivot + centre, where centre is the mean distance to the pivot: the backward needs no reduction for it.
FASTCOND_INLINE Mean mean_of(float pivot, float centre) {
    const float rounded = pivot + centre;
    return {rounded, (pivot - rounded) + centre};
}

// The sum of squared distances to the mean, of those to the rounded mean.
FASTCOND_INLINE double about_mean(double squares, Mean mean, double count) {
    return squares - count * double(mean.left_out) * double(mean.left_out);
}

// [2, B, G] in memory.
FASTCOND_INLINE void keep_mean(const AdaGroupNorm& call, float* means, int64_t group_of_batch, Mean mean) {
    means[group_of_batch] = mean.rounded;
    means[call.batch * call.groups + group_of_batch] = mean.left_out;
}
FASTCOND_INLINE Mean kept_mean(const AdaGroupNorm& call, const float* means, int64_t group_of_batch) {
    return {means[group_of_batch], means[call.batch * call.groups + group_of_batch]};
}

// Of the channels of a unit, numbers that lie side by side, filled up to whole Lanes.
struct Channels {
    int64_t image, first, count;
    float *mean, *slope, *offset, *gain;

    static constexpr int64_t rows = 4;
    FASTCOND_INLINE Channels(int64_t image, int64_t first, int64_t count, Kept<float>& scratch)
        : image(image), first(first), count(count) {
        const int64_t row = (count + lanes - 1) / lanes * lanes;
        mean = scratch.take(rows * row);
        slope = mean + row;
        offset = slope + row;
        gain = offset + row;
    }
    // Channels [begin, end) are a group's.
    FASTCOND_INLINE void set_group(int64_t begin, int64_t end, Mean of_group, float rstd) {
        for (int64_t c = begin; c < end; ++c) {
            mean[c] = of_group.rounded;
            slope[c] = rstd;
            offset[c] = of_group.left_out;
        }
    }
};

// After set_group of all groups: u = (x - mean) slope + offset, or t = -u log2(e) where SiLU follows (activation.h), and
// gain = weight (1 + scale).
template <bool silu_on>
FASTCOND_INLINE void set_lines(const AdaGroupNorm& call, const Channels& channels) {
    const Lanes one = all_lanes(1.0f);
    for (int64_t c = 0; c < channels.count; c += lanes) {
        const int64_t channel = channels.first + c, here = smaller(lanes, channels.count - c);
        const auto load = [here](const float* from) FASTCOND_INLINE_LAMBDA {
            return here == lanes ? load_lanes(from) : load_lanes(from, here);
        };
        const Lanes one_plus = call.scale ? load(call.scale + channels.image * call.scale_stride + channel) + one : one;
        const Lanes gain = call.weight ? load(call.weight + channel) * one_plus : one_plus;
        Lanes offset = call.bias ? load(call.bias + channel) * one_plus : all_lanes(0.0f);
        if (call.shift) offset = offset + load(call.shift + channels.image * call.shift_stride + channel);
        const Lanes slope = load(channels.slope + c) * gain;
        // What the mean's rounding left out is small beside what it is added to. Bounded, for of an infinite slope comes
        // infinity or NaN, where it is x that should decide.
        offset = offset - bounded(load(channels.offset + c) * slope, -1e38f, 1e38f);
        const Lanes factor = all_lanes(silu_on ? minus_log2_e : 1.0f);
        store_lanes(channels.gain + c, gain);
        store_lanes(channels.slope + c, slope * factor);
        store_lanes(channels.offset + c, offset * factor);
    }
}

// y of what a line gave.
template <bool silu_on, int n>
FASTCOND_INLINE Several<n> activated(const Several<n>& u) {
    if constexpr (silu_on) return silu_of_power(u);
    return u;
}

// dy times the activation's slope, of what a line gave.
template <bool silu_on, int n>
FASTCOND_INLINE Several<n> through_activation(const Several<n>& dy, const Several<n>& u) {
    if constexpr (silu_on) return dy * silu_slope_of_power(u);
    return dy;
}

// dx = rstd (w du - m2 - xh m1) = of_du du + of_distance (x - mean) + constant, where m1 and m2 are means over the group.
struct GradientOfGroup {
    float rstd, of_distance, constant;
};

// sum_A and sum_B: sums over the group of w du xh and w du.
FASTCOND_INLINE GradientOfGroup gradient_of_group(Mean mean, float rstd, double sum_A, double sum_B, double count) {
    const double of_distance = -double(rstd) * double(rstd) * (sum_A / count);
    return {rstd, float(of_distance), float(-double(rstd) * (sum_B / count) - of_distance * double(mean.left_out))};
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
