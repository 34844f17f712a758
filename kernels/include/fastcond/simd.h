// Elements as they lie in memory, and as float32: what loops over any of the three dtypes share. The conversions do not
// branch, so a loop over them becomes vector code on a CPU, and a GPU needs no header of its own for them.
#pragma once

#include <cstdint>

#include "fastcond/philox.h"

namespace fastcond {

// The dtypes that kernels read and write, by the numbers that the launchers of fastcond/ops pass.
enum class Stored { float32, bfloat16, float16 };

// bfloat16 in memory: the upper half of a float32.
struct BFloat16 {
    uint16_t bits;
};

// IEEE binary16 in memory.
struct Float16 {
    uint16_t bits;
};

FASTCOND_INLINE float load(float stored) { return stored; }
FASTCOND_INLINE float load(BFloat16 stored) { return float_of(uint32_t(stored.bits) << 16); }
FASTCOND_INLINE float load(Float16 stored) {
    // The fields in a float32's places give the value times 2^-112, denormals included; infinity and NaN have the largest
    // exponent in either format.
    const uint32_t magnitude = stored.bits & 0x7FFFu;
    const uint32_t scaled = bits_of(float_of(magnitude << 13) * 0x1p112f);
    const uint32_t infinite = magnitude >= 0x7C00u ? 0x7F800000u : 0u;
    return float_of(scaled | infinite | (uint32_t(stored.bits & 0x8000u) << 16));
}

FASTCOND_INLINE void store(float& target, float value) { target = value; }
FASTCOND_INLINE void store(BFloat16& target, float value) {
    // Round to nearest, ties to even; a NaN stays one, where the carry could make it infinite.
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;
    target.bits = uint16_t(value == value ? rounded : nan);
}
FASTCOND_INLINE void store(Float16& target, float value) {
    // Round to nearest, ties to even. Magnitudes as integers, which are ordered as the numbers are.
    const uint32_t bits = bits_of(value);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    // The carry of rounding may pass into the exponent, up to infinity.
    const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    // Below 2^-14 the last place is 2^-24, as it is for float32 numbers from 1/2 to 1.
    const uint32_t denormal = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
    const uint32_t infinite = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
    const uint32_t finite = magnitude < 0x38800000u ? denormal : normal;
    target.bits = uint16_t((magnitude < 0x47800000u ? finite : infinite) | ((bits >> 16) & 0x8000u));
}

}  // namespace fastcond
