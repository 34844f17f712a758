// SiLU and its slope, sixteen float32 at a time. The argument of the inner functions is t = -u log2(e), so that
// e^-u = 2^t: a norm has its slope and offset multiplied by -log2(e) beforehand, and u itself is never needed.
//
// Where e^-u is beyond float32's range sigmoid(u) is 0 or 1; silu(-infinity) is -infinity times 0, NaN, as in PyTorch.
#pragma once

#include "several.h"

namespace fastcond::cpu::FASTCOND_ISA {

constexpr float minus_log2_e = -1.44269504088896341f, minus_ln_2 = -0.693147180559945309f;

// k 2^t, within two roundings and what t's own rounding makes of it. The polynomials are minimax, relatively, of 2^f:
// on [0, 1] with the error 8.2e-8, and on [-1/2, 1/2] with 7.5e-8.
template <int n>
FASTCOND_INLINE Several<n> scaled_power(const Several<n>& t, float k) {
#if defined(__AVX512F__)
    // The instructions take care of infinity and NaN: f is 0 for an infinite t. (The masks, of all lanes, silence a false
    // warning of GCC 12.)
    constexpr float last = 1.86713021195e-3f;
    constexpr float others[] = {9.01702996253e-3f, 5.57999134252e-2f, 0.240164450039f, 0.693151311818f, 1.0f};
    const Several<n> f = several<n>([&](int j) FASTCOND_INLINE_LAMBDA -> Lanes {
        return {{_mm512_maskz_reduce_ps(0xFFFF, t.of[j].part[0], _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}};
    });
#else
    constexpr float last = 1.3276472632e-3f;
    constexpr float others[] = {9.67554134312e-3f, 5.55071327186e-2f, 0.240221197237f, 0.693146967065f, 1.00000007165f};
    const Lanes shifter = all_lanes(12582912.0f);
    const Several<n> inside = several<n>([&](int j) FASTCOND_INLINE_LAMBDA { return bounded(t.of[j], -127.0f, 128.0f); });
    const Several<n> shifted = inside + shifter, f = inside - (shifted - shifter);
#endif
    Several<n> p = fused(f, all_lanes(k * last), all_lanes(k * others[0]));
    for (int i = 1; i < 5; ++i) p = fused(p, f, all_lanes(k * others[i]));
    return several<n>([&](int j) FASTCOND_INLINE_LAMBDA -> Lanes {
#if defined(__AVX512F__)
        // Rounded towards 0, what is too large is the largest float32, so that `quotient` meets no infinity.
        return {{_mm512_maskz_scalef_round_ps(0xFFFF, p.of[j].part[0], t.of[j].part[0],
                                              _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)}};
#else
        return p.of[j] * power_of_two(shifted.of[j]);
#endif
    });
}

// a / x. With AVX-512 by an approximation of 1 / x and a step of Newton's, within a rounding or two. AVX2's approximation would need
// one step more, and the divider works beside the multiply-adds.
template <int n, typename A>
FASTCOND_INLINE Several<n> quotient(const A& a, const Several<n>& x) {
#if defined(__AVX512F__)
    const Several<n> near = several<n>([&](int k) FASTCOND_INLINE_LAMBDA -> Lanes {
        return {{_mm512_maskz_rcp14_ps(0xFFFF, x.of[k].part[0])}};
    });
    const Several<n> found = several<n>([&](int k) FASTCOND_INLINE_LAMBDA { return fused(-x.of[k], near.of[k], all_lanes(1.0f)); });
    const Several<n> inverse = fused(near, found, near);
    return several<n>([&](int k) FASTCOND_INLINE_LAMBDA { return inverse.of[k] * nth(a, k); });
#else
    return several<n>([&](int k) FASTCOND_INLINE_LAMBDA { return nth(a, k) / x.of[k]; });
#endif
}

// k (1 + e^-u).
template <int n>
FASTCOND_INLINE Several<n> scaled_inverse_sigmoid(const Several<n>& t, float k) {
    return scaled_power(t, k) + all_lanes(k);
}

template <int n>
FASTCOND_INLINE Several<n> silu_of_power(const Several<n>& t) {
    return quotient(t, scaled_inverse_sigmoid(t, minus_log2_e));
}

// d silu / du = s (1 + u (1 - s)), s = sigmoid(u), which is exactly 0 or 1 where u is large.
template <int n>
FASTCOND_INLINE Several<n> silu_slope_of_power(const Several<n>& t) {
    const Several<n> s = quotient(all_lanes(1.0f), scaled_inverse_sigmoid(t, 1.0f));
    return fused(t * s, fused(s, all_lanes(-minus_ln_2), all_lanes(minus_ln_2)), s);
}

using FourLanes = Several<4>;

template <int n>
FASTCOND_INLINE Several<n> silu(const Several<n>& u) {
    return silu_of_power(u * all_lanes(minus_log2_e));
}
FASTCOND_INLINE Lanes silu(const Lanes& u) { return silu(Several<1>{{u}}).of[0]; }

}  // namespace fastcond::cpu::FASTCOND_ISA
