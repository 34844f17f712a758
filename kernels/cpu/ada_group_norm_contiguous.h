// AdaGN of [B, C, positions]: a unit of work is one group, whose channels lie one after another.
#pragma once

#include "ada_group_norm_shared.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

// Lanes at element i of a row, all of them or the first `count`.
struct Whole {
    int64_t i;
    template <typename T>
    FASTCOND_INLINE Lanes operator()(const T* row) const {
        return load_lanes(row + i);
    }
    FASTCOND_INLINE Lanes only(const Lanes& value) const { return value; }
};
struct Part {
    int64_t i, count;
    template <typename T>
    FASTCOND_INLINE Lanes operator()(const T* row) const {
        return load_lanes(row + i, count);
    }
    // 0 in the lanes that are not there.
    FASTCOND_INLINE Lanes only(const Lanes& value) const {
        float lane[lanes];
        store_lanes(lane, value);
        return load_lanes(lane, count);
    }
};

// Sum over i < count of value(at), in lanes.
template <typename Value>
FASTCOND_INLINE double sum(int64_t count, Value value) {
    constexpr int64_t chains = 4;  // an addition takes longer than the loads that feed it
    Totals totals = {};
    int64_t i = 0;
    while (i + chains * lanes <= count) {
        Lanes a = all_lanes(0.0f), b = a, c = a, d = a;
        const int64_t stop = smaller(count - chains * lanes + 1, i + rows_a_float * lanes);
        for (; i < stop; i += chains * lanes) {
            a = a + value(Whole{i});
            b = b + value(Whole{i + lanes});
            c = c + value(Whole{i + 2 * lanes});
            d = d + value(Whole{i + 3 * lanes});
        }
        add(totals.lane, (a + b) + (c + d));
    }
    if (i < count) {
        Lanes rest = all_lanes(0.0f);
        for (; i + lanes <= count; i += lanes) rest = rest + value(Whole{i});
        if (i < count) {
            const Part part{i, count - i};
            rest = rest + part.only(value(part));
        }
        add(totals.lane, rest);
    }
    return sum_of(totals);
}

// Writes act(value(at)) to out for i < count.
template <bool silu_on, bool streams, typename T, typename Value>
FASTCOND_INLINE void write(int64_t count, T* out, Value value) {
    const auto put = [&](int64_t i, const Lanes& y) FASTCOND_INLINE_LAMBDA {
        if constexpr (streams)
            stream_lanes(out + i, y);
        else
            store_lanes(out + i, y);
    };
    int64_t i = 0;
    for (; i + 4 * lanes <= count; i += 4 * lanes) {
        const FourLanes u{{value(Whole{i}), value(Whole{i + lanes}), value(Whole{i + 2 * lanes}), value(Whole{i + 3 * lanes})}};
        const FourLanes y = activate<silu_on>(u);
        put(i, y.of[0]);
        put(i + lanes, y.of[1]);
        put(i + 2 * lanes, y.of[2]);
        put(i + 3 * lanes, y.of[3]);
    }
    for (; i + lanes <= count; i += lanes) put(i, activate<silu_on>(value(Whole{i})));
    if (i < count) store_lanes(out + i, activate<silu_on>(value(Part{i, count - i})), count - i);
}

template <typename T, bool silu_on, bool streams>
void forward_contiguous(const AdaGroupNorm& call, const AdaGroupNormForward& forward, int64_t unit) {
    const int64_t image = unit / call.groups, group = unit % call.groups;
    const int64_t P = call.positions, width = call.channels / call.groups, count = width * P;
    const T* x = static_cast<const T*>(call.x) + unit * count;
    T* y = static_cast<T*>(forward.y) + unit * count;
    // Distances to one element: a constant group is exactly 0, and large means cost no digits.
    const float pivot = load(x[0]);
    const Lanes pivots = all_lanes(pivot);
    const float centre = float(sum(count, [=](auto at) FASTCOND_INLINE_LAMBDA { return at(x) - pivots; }) / double(count));
    const Lanes centres = all_lanes(centre);
    const double squares = sum(count, [=](auto at) FASTCOND_INLINE_LAMBDA {
        const Lanes d = (at(x) - pivots) - centres;
        return d * d;
    });
    const float rstd = reciprocal_root(squares, double(count), forward.eps);
    keep_mean(call, forward.mean, unit, pivot, centre);
    forward.rstd[unit] = rstd;
    for (int64_t c = 0; c < width; ++c) {
        const Affine a = affine(call, image, group * width + c);
        const Lanes slope = all_lanes(rstd * a.gain), offset = all_lanes(a.offset);
        const T* in = x + c * P;
        write<silu_on, streams>(P, y + c * P, [=](auto at) FASTCOND_INLINE_LAMBDA {
            return ((at(in) - pivots) - centres) * slope + offset;
        });
    }
    if (streams) end_streams();
}

// Sums over a channel.
struct ChannelSums {
    double A, B;
};

// A += du xh and B += du over one channel; du is kept.
template <bool silu_on, typename T>
FASTCOND_INLINE ChannelSums reduce_channel(const T* x, const T* dy, float* du, int64_t P, const Lanes& mean,
                                           const Lanes& left_out, const Lanes& rstd, Affine affine) {
    const Lanes gain = all_lanes(affine.gain), offset = all_lanes(affine.offset);
    const auto normalised = [&](int64_t i) FASTCOND_INLINE_LAMBDA {
        return ((load_lanes(x + i) - mean) - left_out) * rstd;
    };
    Totals A = {}, B = {};
    int64_t i = 0;
    while (i < P) {
        Lanes a = all_lanes(0.0f), b = a;
        const int64_t stop = smaller(P, i + rows_a_float * lanes);
        for (; i + 4 * lanes <= stop; i += 4 * lanes) {
            const FourLanes xh{{normalised(i), normalised(i + lanes), normalised(i + 2 * lanes), normalised(i + 3 * lanes)}};
            const FourLanes upstream{{load_lanes(dy + i), load_lanes(dy + i + lanes), load_lanes(dy + i + 2 * lanes),
                                      load_lanes(dy + i + 3 * lanes)}};
            const FourLanes of_four = through_activation<silu_on>(upstream, xh * gain + offset);
            store_lanes(du + i, of_four.of[0]);
            store_lanes(du + i + lanes, of_four.of[1]);
            store_lanes(du + i + 2 * lanes, of_four.of[2]);
            store_lanes(du + i + 3 * lanes, of_four.of[3]);
            const FourLanes products = of_four * xh;
            a = a + ((products.of[0] + products.of[1]) + (products.of[2] + products.of[3]));
            b = b + ((of_four.of[0] + of_four.of[1]) + (of_four.of[2] + of_four.of[3]));
        }
        for (; i < stop; i += lanes) {
            const Part part{i, smaller(lanes, stop - i)};
            const Lanes xh = ((part(x) - mean) - left_out) * rstd;
            const Lanes of_part = through_activation<silu_on>(part(dy), xh * gain + offset);
            store_lanes(du + i, of_part, part.count);
            a = a + part.only(of_part * xh);
            b = b + part.only(of_part);
        }
        add(A.lane, a);
        add(B.lane, b);
    }
    return {sum_of(A), sum_of(B)};
}

template <typename T, bool silu_on, bool streams>
void backward_contiguous(const AdaGroupNorm& call, const AdaGroupNormBackward& backward, int64_t unit) {
    thread_local Scratch<float> memory;
    const int64_t image = unit / call.groups, group = unit % call.groups;
    const int64_t P = call.positions, width = call.channels / call.groups, count = width * P;
    const T* x = static_cast<const T*>(call.x) + unit * count;
    const T* dy = static_cast<const T*>(backward.dy) + unit * count;
    T* dx = static_cast<T*>(backward.dx) + unit * count;
    const Lanes mean = all_lanes(backward.mean[unit]);
    const Lanes left_out = all_lanes(backward.mean[call.batch * call.groups + unit]);
    const float rstd = backward.rstd[unit];
    const Lanes rstds = all_lanes(rstd);
    float* du = memory.take(count);
    double m1 = 0.0, m2 = 0.0;
    for (int64_t c = 0; c < width; ++c) {
        const int64_t channel = group * width + c;
        const Affine a = affine(call, image, channel);
        const ChannelSums sums = reduce_channel<silu_on>(x + c * P, dy + c * P, du + c * P, P, mean, left_out, rstds, a);
        backward.A[image * call.channels + channel] = float(sums.A);
        backward.B[image * call.channels + channel] = float(sums.B);
        m1 += double(a.gain) * sums.A;
        m2 += double(a.gain) * sums.B;
    }
    // dx = rstd (w du - m2 - xh m1)
    const Lanes of_xh = all_lanes(float(double(rstd) * m1 / double(count)));
    const Lanes constant = all_lanes(float(double(rstd) * m2 / double(count)));
    for (int64_t c = 0; c < width; ++c) {
        const Lanes of_du = all_lanes(rstd * affine(call, image, group * width + c).gain);
        const T* in = x + c * P;
        const float* du_c = du + c * P;
        write<false, streams>(P, dx + c * P, [=](auto at) FASTCOND_INLINE_LAMBDA {
            return (of_du * at(du_c) - constant) - ((at(in) - mean) - left_out) * rstds * of_xh;
        });
    }
    if (streams) end_streams();
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
