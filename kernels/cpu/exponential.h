// e^x and what is made of it, sixteen at a time; for sources compiled once for each instruction set.
#pragma once

#include "products.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

FASTCOND_INLINE Lanes larger(const Lanes& a, const Lanes& b) {
    Lanes result;
    FASTCOND_EACH_REGISTER(result.part[i] = maximum(a.part[i], b.part[i]))
    return result;
}

// e^x within two roundings for -87 <= x <= 0; e^-87 below, and for NaN.
FASTCOND_INLINE Lanes exponential(const Lanes& x) {
    const Lanes shifter = all_lanes(12582912.0f);
    const Lanes bounded_x = bounded(x, -87.0f, 0.0f);
    const Lanes shifted = fused(bounded_x, all_lanes(1.44269504088896341f), shifter);
    const Lanes n = shifted - shifter;
    // x = n ln 2 + r; ln 2 in two parts, the first with few bits. The polynomial is Cephes's for e^r, |r| <= ln(2) / 2.
    const Lanes r = fused(n, all_lanes(-1.4286068203094172e-6f), fused(n, all_lanes(-22713.0f / 32768), bounded_x));
    Lanes p = all_lanes(1.9875691500e-4f);
    constexpr float coefficients[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    for (float coefficient : coefficients) p = fused(p, r, all_lanes(coefficient));
    return (fused(p * r, r, r) + all_lanes(1.0f)) * power_of_two(shifted);
}

// x Phi(x), Phi the normal distribution: GELU (Hendrycks & Gimpel 2016), within a few roundings everywhere.
// erfc(z) = t Q(t) e^-z^2 with t = 1 / (1 + 0.35 z), Q fitted for the smallest relative error, 2.6e-8, on 0 <= z <= 9.4.
FASTCOND_INLINE Lanes gelu(const Lanes& x) {
    const Lanes zero = all_lanes(0.0f), one = all_lanes(1.0f), magnitude = larger(x, zero - x);
    const Lanes t = one / fused(magnitude, all_lanes(0.35f * 0.707106781186547524f), one);
    Lanes q = all_lanes(0.0374337882f);
    constexpr float coefficients[] = {-0.153487653f,  0.168162629f, -0.00919538923f, 0.0708772317f, 0.155172169f,
                                      0.147842035f, 0.18866615f,  0.197039783f,    0.197489247f};
    for (float coefficient : coefficients) q = fused(q, t, all_lanes(coefficient));
    const Lanes tail = all_lanes(0.5f) * t * q * exponential(x * x * all_lanes(-0.5f));  // Phi(-|x|)
    // x Phi(x) is max(x, 0) - |x| Phi(-|x|); for a large |x|, infinity included, the second term is 0.
    const Lanes vanishing = bounded(magnitude, 0.0f, 30.0f) * tail;
    return larger(x, zero) - vanishing + (x - x);
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
