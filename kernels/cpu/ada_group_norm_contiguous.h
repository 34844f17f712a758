// AdaGN of [B, C, positions]: a unit of work is a few groups of one image, each of them channels that lie one after another.
//
// What is computed of a group does not depend on the unit that it is in. A group's sums are waited for before its next pass:
// a few groups in turn keep the processor busy meanwhile, and lie in the first cache from pass to pass.
#pragma once

#include "ada_group_norm_shared.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

// n Lanes at element i of a row, all of them or the first `count`.
template <int n>
struct Whole {
    int64_t i;
    template <typename T>
    FASTCOND_INLINE Several<n> operator()(const T* row) const {
        return load_several<n>(row + i, lanes);
    }
    template <typename T>
    FASTCOND_INLINE void put(T* row, const Several<n>& value) const {
        store_several(row + i, lanes, value);
    }
    template <typename T>
    FASTCOND_INLINE void put_result(T* row, const Several<n>& value, [[maybe_unused]] bool past_caches) const {
        if constexpr (sizeof(T) == sizeof(float)) {
            if (past_caches) return store_several_past_caches(row + i, lanes, value);
        }
        put(row, value);
    }
    FASTCOND_INLINE Several<n> only(const Several<n>& value) const { return value; }
    // What the next unit will read, or write: it comes while this one is computed.
    template <typename T>
    FASTCOND_INLINE void fetch_ahead(const T* row, bool to_write = false) const {
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
        for (int k = 0; k < n; ++k) to_write ? fetch_to_write(row + i + k * lanes) : fetch(row + i + k * lanes);
    }
};
struct Part {
    int64_t i, count;
    template <typename T>
    FASTCOND_INLINE Several<1> operator()(const T* row) const {
        return {{load_lanes(row + i, count)}};
    }
    template <typename T>
    FASTCOND_INLINE void put(T* row, const Several<1>& value) const {
        store_lanes(row + i, value.of[0], count);
    }
    template <typename T>
    FASTCOND_INLINE void put_result(T* row, const Several<1>& value, bool) const {
        put(row, value);
    }
    template <typename T>
    FASTCOND_INLINE void fetch_ahead(const T*, bool = false) const {}
    // 0 in the lanes that are not there.
    FASTCOND_INLINE Several<1> only(const Several<1>& value) const {
        float lane[lanes];
        store_lanes(lane, value.of[0]);
        return {{load_lanes(lane, count)}};
    }
};

constexpr int64_t most_groups = 16;

// Groups [first, first + groups) of one image.
struct Unit {
    int64_t image, first, groups, width, positions, count;
    int64_t ahead;  // from an element to what is asked for meanwhile: the next unit's, or itself where nothing is behind it

    static int64_t groups_of(const AdaGroupNorm& call, int64_t elements) {
        const int64_t count = call.channels / call.groups * call.positions;
        return larger(1, smaller(smaller(elements / count, most_groups), call.groups));
    }
    static int64_t units_of(const AdaGroupNorm& call, int64_t elements) {
        const int64_t groups = groups_of(call, elements);
        return call.batch * ((call.groups + groups - 1) / groups);
    }
    Unit(const AdaGroupNorm& call, int64_t elements, int64_t index) {
        const int64_t most = groups_of(call, elements), of_image = (call.groups + most - 1) / most;
        image = index / of_image;
        first = index % of_image * most;
        groups = smaller(most, call.groups - first);
        width = call.channels / call.groups;
        positions = call.positions;
        count = width * positions;
        const int64_t behind = (call.batch - image) * call.channels - (first + groups) * width;
        ahead = smaller(groups * width, behind) * positions;
    }
};

constexpr int64_t elements_of_forward = 4096, elements_of_backward = 2048;

// Sums over i < count of what add(at, sums) adds to several Lanes of sums: sixteen of them, whose sum is the sum.
template <typename Add>
FASTCOND_INLINE Doubles sums(int64_t count, Add add) {
    constexpr int chains = registers < 8 ? 8 / registers : 1;  // an addition takes longer than the loads that feed it
    Doubles total = all_doubles(0.0);
    int64_t i = 0;
    while (i + chains * lanes <= count) {
        Several<chains> here = several<chains>([](int) FASTCOND_INLINE_LAMBDA { return all_lanes(0.0f); });
        const int64_t stop = smaller(count - chains * lanes + 1, i + rows_a_float * chains * lanes);
        for (; i < stop; i += chains * lanes) here = add(Whole<chains>{i}, here);
        total = total + widened(folded(here));
    }
    if (i < count) {
        const Several<1> zero = {{all_lanes(0.0f)}};
        Several<1> rest = zero;
        for (; i + lanes <= count; i += lanes) rest = add(Whole<1>{i}, rest);
        if (i < count) {
            const Part part{i, count - i};
            rest = rest + part.only(add(part, zero));
        }
        total = total + widened(rest.of[0]);
    }
    return total;
}

// Calls run(at) for all lanes of i < count.
template <typename Run>
FASTCOND_INLINE void for_each_lanes(int64_t count, Run run) {
    int64_t i = 0;
    if constexpr (registers == 1)  // of thirty-two registers twice as many are to spare
        for (; i + 2 * in_step * lanes <= count; i += 2 * in_step * lanes) run(Whole<2 * in_step>{i});
    for (; i + in_step * lanes <= count; i += in_step * lanes) run(Whole<in_step>{i});
    if constexpr (in_step > 1)
        for (; i + lanes <= count; i += lanes) run(Whole<1>{i});
    if (i < count) run(Part{i, count - i});
}

template <typename T, bool silu_on>
void forward_contiguous(const AdaGroupNorm& call, const AdaGroupNormForward& forward, int64_t index) {
    const Unit unit(call, elements_of_forward, index);
    const int64_t count = unit.count, start = (unit.image * call.groups + unit.first) * count;
    const T* x = static_cast<const T*>(call.x) + start;
    T* y = static_cast<T*>(forward.y) + start;
    Mean mean[most_groups];
    float rstd[most_groups];
    Doubles total[most_groups];  // added up last, of all groups one after another: none waits for another
    for (int64_t g = 0; g < unit.groups; ++g) {
        const T* from = x + g * count;
        // Distances to one element: a constant group is exactly 0, and large means cost no digits.
        const Lanes pivots = all_lanes(load(from[0]));
        total[g] = sums(count, [=](auto at, const auto& sums) FASTCOND_INLINE_LAMBDA { return sums + (at(from) - pivots); });
    }
    for (int64_t g = 0; g < unit.groups; ++g)
        mean[g] = mean_of(load(x[g * count]), float(sum_of(total[g]) / double(count)));
    for (int64_t g = 0; g < unit.groups; ++g) {
        const T* from = x + g * count;
        const Lanes means = all_lanes(mean[g].rounded);
        total[g] = sums(count, [=](auto at, const auto& sums) FASTCOND_INLINE_LAMBDA {
            const auto d = at(from) - means;
            return fused(d, d, sums);
        });
    }
    for (int64_t g = 0; g < unit.groups; ++g)
        rstd[g] = reciprocal_root(about_mean(sum_of(total[g]), mean[g], double(count)), double(count), forward.eps);
    thread_local Kept<float> memory;
    Channels channels(unit.image, unit.first * unit.width, unit.groups * unit.width, memory);
    for (int64_t g = 0; g < unit.groups; ++g) {
        channels.set_group(g * unit.width, (g + 1) * unit.width, mean[g], rstd[g]);
        if (forward.rstd != nullptr) {
            keep_mean(call, forward.mean, unit.image * call.groups + unit.first + g, mean[g]);
            forward.rstd[unit.image * call.groups + unit.first + g] = rstd[g];
        }
    }
    set_lines<silu_on>(call, channels);
    const int64_t next = unit.ahead;
    const bool past_caches = goes_past_caches(call, y, unit.positions);
    for (int64_t c = 0; c < channels.count; ++c) {
        const Lanes means = all_lanes(channels.mean[c]), slope = all_lanes(channels.slope[c]);
        const Lanes offset = all_lanes(channels.offset[c]);
        const T* from = x + c * unit.positions;
        T* to = y + c * unit.positions;
        for_each_lanes(unit.positions, [=](auto at) FASTCOND_INLINE_LAMBDA {
            if constexpr (silu_on) {
                at.fetch_ahead(from + next);
                if (!past_caches) at.fetch_ahead(to + next, true);
            }
            at.put_result(to, activated<silu_on>(fused(at(from) - means, slope, offset)), past_caches);
        });
    }
    if (past_caches) let_be_seen();
}

// Sums over a channel of du (x - mean) and of du, sixteen of each.
struct ChannelSums {
    Doubles of_distance, of_du;
};

constexpr int64_t channels_in_turn = registers == 1 ? 8 : 1;  // with more registers a sum, all at once take longer than the waits

// Stores du of one channel too. `next` is the distance to what the next unit will read, and write where there is a `dx`.
template <bool silu_on, typename T>
FASTCOND_INLINE void reduce_channel(const T* x, const T* dy, float* du, const T* dx, int64_t positions, int64_t next,
                                    const Lanes& mean, const Lanes& slope, const Lanes& offset, ChannelSums& total) {
    for (int64_t begin = 0; begin < positions; begin += rows_a_float * lanes) {
        Lanes of_distance = all_lanes(0.0f), of_du = of_distance;
        const T *from = x + begin, *upstream = dy + begin;
        float* to = du + begin;
        for_each_lanes(smaller(rows_a_float * lanes, positions - begin), [&](auto at) FASTCOND_INLINE_LAMBDA {
            if constexpr (silu_on) {
                at.fetch_ahead(from + next);
                at.fetch_ahead(upstream + next);
                if (dx) at.fetch_ahead(dx + begin + next, true);
            }
            const auto d = at(from) - mean;
            const auto here = at.only(through_activation<silu_on>(at(upstream), fused(d, slope, offset)));
            at.put(to, here);
            of_distance = dot(here, d, of_distance);
            of_du = sum(here, of_du);
        });
        const Doubles zero = all_doubles(0.0);
        total.of_distance = (begin ? total.of_distance : zero) + widened(of_distance);
        total.of_du = (begin ? total.of_du : zero) + widened(of_du);
    }
}

template <typename T, bool silu_on>
void backward_contiguous(const AdaGroupNorm& call, const AdaGroupNormBackward& backward, int64_t index) {
    thread_local Kept<float> memory, numbers;
    thread_local Kept<double> sums;
    const Unit unit(call, elements_of_backward, index);
    const int64_t P = unit.positions, count = unit.count, first_group = unit.image * call.groups + unit.first;
    const T* x = static_cast<const T*>(call.x) + first_group * count;
    const T* dy = static_cast<const T*>(backward.dy) + first_group * count;
    T* dx = static_cast<T*>(backward.dx) + first_group * count;
    const bool past_caches = goes_past_caches(call, dx, P);
    float* du = du_of(dx, past_caches, unit.groups * count, memory);
    Channels channels(unit.image, unit.first * unit.width, unit.groups * unit.width, numbers);
    for (int64_t g = 0; g < unit.groups; ++g)
        channels.set_group(g * unit.width, (g + 1) * unit.width, kept_mean(call, backward.mean, first_group + g),
                           backward.rstd[first_group + g]);
    set_lines<silu_on>(call, channels);
    float* A = backward.A + unit.image * call.channels + channels.first;
    float* B = backward.B + unit.image * call.channels + channels.first;
    double* of_xh = sums.take(2 * channels.count);
    double* of_du = of_xh + channels.count;
    for (int64_t first = 0; first < channels.count; first += channels_in_turn) {
        // Added up last, of all channels one after another: none waits for another.
        ChannelSums total[channels_in_turn];
        const int64_t end = smaller(first + channels_in_turn, channels.count);
        for (int64_t c = first; c < end; ++c)
            reduce_channel<silu_on>(x + c * P, dy + c * P, du + c * P, past_caches ? nullptr : dx + c * P, P, unit.ahead,
                                    all_lanes(channels.mean[c]), all_lanes(channels.slope[c]), all_lanes(channels.offset[c]),
                                    total[c - first]);
        for (int64_t c = first; c < end; ++c) {
            of_du[c] = sum_of(total[c - first].of_du);
            of_xh[c] = sum_of(total[c - first].of_distance);
        }
    }
    GradientOfGroup gradient[most_groups];
    for (int64_t g = 0; g < unit.groups; ++g) {
        const Mean mean = kept_mean(call, backward.mean, first_group + g);
        const float rstd = backward.rstd[first_group + g];
        double sum_A = 0.0, sum_B = 0.0;
        for (int64_t c = g * unit.width; c < (g + 1) * unit.width; ++c) {
            of_xh[c] = double(rstd) * (of_xh[c] - double(mean.left_out) * of_du[c]);
            A[c] = float(of_xh[c]);
            B[c] = float(of_du[c]);
            sum_A += double(channels.gain[c]) * of_xh[c];
            sum_B += double(channels.gain[c]) * of_du[c];
        }
        gradient[g] = gradient_of_group(mean, rstd, sum_A, sum_B, double(count));
    }
    for (int64_t g = 0; g < unit.groups; ++g) {
        const Lanes of_distance = all_lanes(gradient[g].of_distance), constant = all_lanes(gradient[g].constant);
        for (int64_t c = g * unit.width; c < (g + 1) * unit.width; ++c) {
            const Lanes mean = all_lanes(channels.mean[c]), of_du = all_lanes(gradient[g].rstd * channels.gain[c]);
            const T* from = x + c * P;
            const float* du_c = du + c * P;
            T* to = dx + c * P;
            for_each_lanes(P, [=](auto at) FASTCOND_INLINE_LAMBDA {
                at.put_result(to, fused(at(du_c), of_du, fused(at(from) - mean, of_distance, constant)), past_caches);
            });
        }
    }
    if (past_caches) let_be_seen();
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
