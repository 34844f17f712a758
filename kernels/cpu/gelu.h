// GELU, sixteen float32 at a time; for sources compiled once for each instruction set.
#pragma once

#include "activation.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

// x Phi(x), Phi the normal distribution: GELU (Hendrycks & Gimpel 2016), within a few roundings everywhere.
// erfc(z) = t Q(t) e^-z^2 with t = 1 / (1 + 0.35 z), Q fitted for the smallest relative error, 2.6e-8, on 0 <= z <= 9.4.
template <int n>
FASTCOND_INLINE Several<n> gelu(const Several<n>& x) {
    const Lanes zero = all_lanes(0.0f), one = all_lanes(1.0f);
    // Where |x| exceeds 30 Phi(-|x|) is 0, and stays so.
    const Several<n> magnitude = several<n>([&](int k) FASTCOND_INLINE_LAMBDA {
        return bounded(larger(x.of[k], zero - x.of[k]), 0.0f, 30.0f);
    });
    const Several<n> t = quotient(one, fused(magnitude, all_lanes(0.35f * 0.707106781186547524f), one));
    Several<n> q = several<n>([](int) FASTCOND_INLINE_LAMBDA { return all_lanes(0.0374337882f); });
    constexpr float coefficients[] = {-0.153487653f,  0.168162629f, -0.00919538923f, 0.0708772317f, 0.155172169f,
                                      0.147842035f, 0.18866615f,  0.197039783f,    0.197489247f};
    for (float coefficient : coefficients) q = fused(q, t, all_lanes(coefficient));
    const Several<n> power = scaled_power(magnitude * magnitude * all_lanes(0.5f * minus_log2_e), 0.5f);
    const Several<n> vanishing = magnitude * (t * q * power);  // |x| Phi(-|x|)
    return several<n>([&](int k) FASTCOND_INLINE_LAMBDA {
        return larger(x.of[k], zero) - vanishing.of[k] + (x.of[k] - x.of[k]);
    });
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
