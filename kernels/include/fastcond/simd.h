// What loops over float32 share: elements as they are stored, exp and SiLU without branches, and sums that do not depend
// on the processor.
//
// There are no intrinsics: loops over a fixed number of lanes become vector code of whatever width a source is compiled
// for. Without contraction (CMakeLists.txt) every width computes the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "fastcond/philox.h"

namespace fastcond {

// bfloat16 in memory: the upper half of a float32.
struct BFloat16 {
    uint16_t bits;
};

FASTCOND_INLINE float load(float stored) { return stored; }
FASTCOND_INLINE float load(BFloat16 stored) { return float_of(uint32_t(stored.bits) << 16); }

FASTCOND_INLINE void store(float& target, float value) { target = value; }
FASTCOND_INLINE void store(BFloat16& target, float value) {
    // Round to nearest, ties to even; a NaN stays one, where the carry could make it infinite.
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;
    target.bits = uint16_t(value == value ? rounded : nan);
}

// e^v, relative error below 1e-7, for v in [-87, 87]; clamped outside, but NaN for plus infinity and for NaN.
// v = n ln 2 + r with |r| <= ln(2)/2: the series of e^r up to r^7 leaves out less than 6e-9, and 2^n is an exponent.
FASTCOND_INLINE float exp_clamped(float v) {
    // As integers, magnitudes are ordered alike, and a minimum of them is one instruction; a comparison of floats would be
    // taken apart into cases by the compiler, each computed in full.
    const uint32_t bits = bits_of(v);
    const int32_t magnitude = int32_t(bits & 0x7FFFFFFFu);
    constexpr int32_t largest = 0x42AE0000;  // 87.0f
    v = float_of(uint32_t(magnitude < largest ? magnitude : largest) | (bits & 0x80000000u));
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    constexpr float shifter = 12582912.0f;
    const float shifted = v * 1.44269504088896341f + shifter;
    const float n = shifted - shifter;
    // ln 2 in two parts: the first has few bits, so n times it is exact.
    const float r = (v - n * (22713.0f / 32768)) - n * 1.4286068203094172e-6f;
    const float series =
        1.0f +
        r * (1.0f +
             r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720 + r * (1.0f / 5040)))))));
    const uint32_t exponent = (bits_of(shifted) - bits_of(shifter)) << 23;
    // 0, but NaN where v is plus infinity or NaN: silu(-infinity) is NaN in PyTorch, and so it is here.
    const float positive = float_of(int32_t(bits) > 0 ? bits : 0u);
    return float_of(bits_of(series) + exponent) + (positive - positive);
}

FASTCOND_INLINE float silu(float u) { return u / (1.0f + exp_clamped(-u)); }

// d silu / du = s (1 + u (1 - s)), s = 1 / (1 + e^-u).
FASTCOND_INLINE float silu_slope(float u) {
    const float s = 1.0f / (1.0f + exp_clamped(-u));
    return s * (1.0f + u * (1.0f - s));
}

}  // namespace fastcond
