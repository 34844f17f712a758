// What norm_conv does before and after its products, sixteen channels at a time: Winograd's transforms of a tile, the norm and the
// activation on the way in, bias, residual and statistics on the way out.
#pragma once

#include "activation.h"
#include "channel_statistics.h"
#include "norm_conv.h"
#include "norm_conv_points.h"
#include "products.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

using winograd::inputs;
using winograd::outputs;
using winograd::products;

// Channels [first, first + count) of one image's norm. Where SiLU follows, gain and offset are those of the argument of
// silu_of_power.
template <bool silu_on>
struct Norm {
    Lanes mean, gain, offset;

    Norm(const NormConv& call, int64_t image, int64_t first, int64_t count) {
        const int64_t at = image * call.channels + first;
        mean = call.mean ? load_lanes(call.mean + at, count) : all_lanes(0.0f);
        gain = call.mean ? load_lanes(call.gain + at, count) : all_lanes(1.0f);
        offset = call.mean ? load_lanes(call.offset + at, count) : all_lanes(0.0f);
        if constexpr (silu_on) {
            gain = gain * all_lanes(minus_log2_e);
            offset = offset * all_lanes(minus_log2_e);
        }
    }
};

// The mean is taken off first, not folded into the offset: x and its mean may be large beside what remains.
template <bool normed, bool silu_on>
FASTCOND_INLINE FourLanes activated(FourLanes x, const Norm<silu_on>& norm) {
    if constexpr (normed)
        for (Lanes& part : x.of) part = fused(part - norm.mean, norm.gain, norm.offset);
    else if constexpr (silu_on)
        for (Lanes& part : x.of) part = part * norm.gain;
    if constexpr (silu_on) return silu_of_power(x);
    return x;
}

constexpr int64_t positions_ahead = 32;  // at which x is asked for: the processor's own prefetching stops at each page

// Where sixteen channels of x lie: in the first part, in the second, or the last of the one and the first of the other.
struct Source {
    const float* x;
    int64_t channels;  // of a position of x: the distance to the next
    int64_t count;     // of the sixteen that are there
    int64_t last;      // position that x has, of all the batch's
    const float* rest = nullptr;  // the channels that the second part has
    int64_t rest_channels = 0, rest_count = 0;

    Source(const NormConv& call, int64_t first, int64_t wanted) {
        const int64_t shrink = call.upsampled ? 2 : 1;
        last = call.batch * (call.height / shrink) * (call.width / shrink) - 1;
        const int64_t here = call.second ? call.first_channels : call.channels, behind = call.channels - here;
        if (first < here) {
            x = call.x + first;
            channels = here;
            count = smaller(wanted, here - first);
            if (count < wanted) rest = call.second, rest_channels = behind, rest_count = wanted - count;
        } else {
            x = call.second + (first - here);
            channels = behind;
            count = wanted;
        }
    }
    // Of the position `i`, of all the batch's.
    FASTCOND_INLINE Lanes load(int64_t i) const {
        fetch(x + smaller(i + positions_ahead, last) * channels);
        if (rest) return load_both(i);
        return count == lanes ? load_lanes(x + i * channels) : load_lanes(x + i * channels, count);
    }

private:
    Lanes load_both(int64_t i) const {
        float both[lanes] = {};
        for (int64_t c = 0; c < count; ++c) both[c] = x[i * channels + c];
        for (int64_t c = 0; c < rest_count; ++c) both[count + c] = rest[i * rest_channels + c];
        return load_lanes(both);
    }
};

// Positions from `i`, as they enter the convolution, to `count` places side by side in `to`.
template <bool normed, bool silu_on>
FASTCOND_INLINE void load_run(const Source& source, int64_t position, int64_t count, const Norm<silu_on>& norm, float* to) {
    const auto load = [&](int64_t i) FASTCOND_INLINE_LAMBDA { return source.load(position + i); };
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const FourLanes of_four = activated<normed, silu_on>({{load(i), load(i + 1), load(i + 2), load(i + 3)}}, norm);
        for (int64_t j = 0; j < 4; ++j) store_lanes(to + (i + j) * lanes, of_four.of[j]);
    }
    for (; i < count; ++i) store_lanes(to + i * lanes, activated<normed, silu_on>({{load(i)}}, norm).of[0]);
}

// The same where each position of x stands for two columns, the first of them an odd one if `odd`.
template <bool normed, bool silu_on>
FASTCOND_INLINE void load_doubled(const Source& source, int64_t position, bool odd, int64_t count, const Norm<silu_on>& norm, float* to) {
    for (int64_t i = 0; i < count; ++position) {
        const Lanes value = activated<normed, silu_on>({{source.load(position)}}, norm).of[0];
        for (int64_t copies = odd ? 1 : 2; copies > 0 && i < count; --copies, ++i) store_lanes(to + i * lanes, value);
        odd = false;
    }
}

FASTCOND_INLINE void fill_zero(float* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) store_lanes(to + i * lanes, all_lanes(0.0f));
}

// A rectangle of an image, in positions; it may reach over the image's edge, where the convolution sees zeros.
struct Rectangle {
    int64_t top, left, rows, columns;
};

// Rows of a rectangle of an image's sixteen channels, as they enter the convolution.
template <bool normed, bool silu_on>
struct Rows {
    const NormConv& call;
    const int64_t image;
    const Rectangle& of;
    const Norm<silu_on> norm;
    const Source source;

    Rows(const NormConv& call, int64_t image, const Rectangle& of, int64_t first, int64_t channels)
        : call(call), image(image), of(of), norm(call, image, first, channels), source(call, first, channels) {}

    // Rows [first, end) to their places in `to`, which is the whole rectangle's.
    FASTCOND_INLINE void load(int64_t first, int64_t end, float* to) const {
        const int64_t left = larger(0, -of.left), right = smaller(of.columns, call.width - of.left);
        const int64_t shrink = call.upsampled ? 2 : 1, rows = call.height / shrink, columns = call.width / shrink;
        to += first * of.columns * lanes;
        for (int64_t row = first; row < end; ++row, to += of.columns * lanes) {
            const int64_t y = of.top + row, x = of.left + left;
            if (y < 0 || y >= call.height) {
                fill_zero(to, of.columns);
                continue;
            }
            const int64_t position = (image * rows + y / shrink) * columns + x / shrink;
            fill_zero(to, left);
            if (call.upsampled)
                load_doubled<normed, silu_on>(source, position, x % 2 == 1, right - left, norm, to + left * lanes);
            else
                load_run<normed, silu_on>(source, position, right - left, norm, to + left * lanes);
            fill_zero(to + right * lanes, of.columns - right);
        }
    }
};

// B^T d
FASTCOND_INLINE void transform_inputs(const Lanes (&d)[inputs], Lanes (&t)[inputs]) {
    using namespace winograd;
    const Lanes minus_a2 = all_lanes(float(-a2)), minus_b2 = all_lanes(float(-b2)), both = all_lanes(float(a2 * b2));
    const Lanes minus_sum = all_lanes(float(-(a2 + b2)));
    const Lanes even_a = fused(minus_b2, d[2], d[4]), odd_a = fused(minus_b2, d[1], d[3]);
    const Lanes even_b = fused(minus_a2, d[2], d[4]), odd_b = fused(minus_a2, d[1], d[3]);
    t[0] = fused(both, d[0], fused(minus_sum, d[2], d[4]));
    const Lanes by_a = odd_a * all_lanes(float(a)), by_b = odd_b * all_lanes(float(b));
    t[1] = even_a + by_a;
    t[2] = even_a - by_a;
    t[3] = even_b + by_b;
    t[4] = even_b - by_b;
    t[5] = fused(both, d[1], fused(minus_sum, d[3], d[5]));
}

// A^T m
FASTCOND_INLINE void transform_outputs(const Lanes (&m)[inputs], Lanes (&y)[outputs]) {
    using namespace winograd;
    const Lanes sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = m[0] + sum_a + sum_b;
    y[1] = fused(all_lanes(float(a)), difference_a, all_lanes(float(b)) * difference_b);
    y[2] = fused(all_lanes(float(a2)), sum_a, all_lanes(float(b2)) * sum_b);
    y[3] = fused(all_lanes(float(a2 * a)), difference_a, fused(all_lanes(float(b2 * b)), difference_b, m[5]));
}

// A tile's 6x6 inputs, whose rows are `row` floats apart, to its 36 places of v, `place` floats apart: B^T d B.
FASTCOND_INLINE void transform_tile(const float* d, int64_t row, float* v, int64_t place) {
    Lanes half[inputs][inputs], in[inputs], out[inputs];
#pragma GCC unroll 6
    for (int j = 0; j < inputs; ++j) {
        for (int i = 0; i < inputs; ++i) in[i] = load_lanes(d + i * row + j * lanes);
        transform_inputs(in, out);
        for (int i = 0; i < inputs; ++i) half[i][j] = out[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < inputs; ++i) {
        transform_inputs(half[i], out);
        for (int j = 0; j < inputs; ++j) store_lanes(v + (i * inputs + j) * place, out[j]);
    }
}

// Of a tile's outputs inside the image: its rows of 4, of which `columns` count.
FASTCOND_INLINE Statistics statistics_of(const Lanes (&y)[outputs][outputs], int64_t rows, int64_t columns) {
    const auto each = [&](auto step) FASTCOND_INLINE_LAMBDA {
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j) step(y[i][j]);
    };
    Lanes sum = all_lanes(0.0f), m2 = all_lanes(0.0f);
    each([&](const Lanes& value) FASTCOND_INLINE_LAMBDA { sum = sum + value; });
    const Lanes mean = sum * all_lanes(1.0f / float(rows * columns));
    each([&](const Lanes& value) FASTCOND_INLINE_LAMBDA {
        const Lanes distance = value - mean;
        m2 = fused(distance, distance, m2);
    });
    return {mean, m2};
}

// Where a tile's outputs go, and what is added to them.
struct Target {
    float* y;  // of the tile's first position; the residual likewise
    const float* residual;
    int64_t row, column;    // floats from a position to the one below, and to the next
    int64_t rows, columns;  // of the tile inside the image
    int64_t features;       // of sixteen
    float scale;            // of the sum
};

// (A^T m A + bias + residual) scale of sixteen features. `edge`: the tile reaches over the image's edge, or there are fewer features.
template <bool edge>
FASTCOND_INLINE void finish_tile(const float* m, int64_t place, const Lanes& bias, const Target& to, Lanes (&y)[outputs][outputs]) {
    const Lanes scale = all_lanes(to.scale);
    Lanes half[outputs][inputs], in[inputs], out[outputs];
#pragma GCC unroll 6
    for (int j = 0; j < inputs; ++j) {
        for (int i = 0; i < inputs; ++i) in[i] = load_lanes(m + (i * inputs + j) * place);
        transform_outputs(in, out);
        for (int i = 0; i < outputs; ++i) half[i][j] = out[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < outputs; ++i) {
        transform_outputs(half[i], out);
#pragma GCC unroll 4
        for (int j = 0; j < outputs; ++j) {
            y[i][j] = out[j] + bias;
            if (edge && (i >= to.rows || j >= to.columns)) continue;
            const int64_t at = i * to.row + j * to.column;
            if (edge && to.features < lanes) {
                if (to.residual) y[i][j] = y[i][j] + load_lanes(to.residual + at, to.features);
                y[i][j] = y[i][j] * scale;
                store_lanes(to.y + at, y[i][j], to.features);
            } else {
                if (to.residual) y[i][j] = y[i][j] + load_lanes(to.residual + at);
                y[i][j] = y[i][j] * scale;
                store_lanes(to.y + at, y[i][j]);
            }
        }
    }
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
