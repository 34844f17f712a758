// Sixteen float32 at a time, for sources that are compiled once for each instruction set: in one, two or four vector
// registers. A lane is computed alike in all of them, and nothing is contracted into a fused multiply-add
// (CMakeLists.txt), so every build gives the same bits.
//
// The registers are the compiler's vector extension, not intrinsics; a compiler without one gets arrays of floats.
#pragma once

#include <cstdint>
#include <cstring>

#include "fastcond/simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastcond::cpu::FASTCOND_ISA {

constexpr int64_t lanes = 16;

#if defined(__GNUC__)
#if defined(__AVX512F__)
#define FASTCOND_REGISTER_BYTES 64
#define FASTCOND_EACH_REGISTER(...) { constexpr int i = 0; __VA_ARGS__; }
#elif defined(__AVX2__)
#define FASTCOND_REGISTER_BYTES 32
#define FASTCOND_EACH_REGISTER(...) { constexpr int i = 0; __VA_ARGS__; } { constexpr int i = 1; __VA_ARGS__; }
#else
#define FASTCOND_REGISTER_BYTES 16
#define FASTCOND_EACH_REGISTER(...)                                                         \
    { constexpr int i = 0; __VA_ARGS__; } { constexpr int i = 1; __VA_ARGS__; }             \
    { constexpr int i = 2; __VA_ARGS__; } { constexpr int i = 3; __VA_ARGS__; }
#endif
typedef float FloatRegister __attribute__((vector_size(FASTCOND_REGISTER_BYTES)));
typedef int32_t IntRegister __attribute__((vector_size(FASTCOND_REGISTER_BYTES)));
#else
#define FASTCOND_REGISTER_BYTES 4
#define FASTCOND_EACH_REGISTER(...) for (int i = 0; i < lanes; ++i) { __VA_ARGS__; }
typedef float FloatRegister;
typedef int32_t IntRegister;
#endif

constexpr int registers = int(lanes) * 4 / FASTCOND_REGISTER_BYTES;

struct Lanes {
    FloatRegister part[registers];
};
struct IntLanes {
    IntRegister part[registers];
};

#define FASTCOND_LANEWISE(Type, symbol)                                         \
    FASTCOND_INLINE Type operator symbol(const Type& a, const Type& b) {        \
        Type result;                                                            \
        FASTCOND_EACH_REGISTER(result.part[i] = a.part[i] symbol b.part[i])     \
        return result;                                                          \
    }
FASTCOND_LANEWISE(Lanes, +)
FASTCOND_LANEWISE(Lanes, -)
FASTCOND_LANEWISE(Lanes, *)
FASTCOND_LANEWISE(Lanes, /)
FASTCOND_LANEWISE(IntLanes, +)
FASTCOND_LANEWISE(IntLanes, &)
FASTCOND_LANEWISE(IntLanes, |)
FASTCOND_LANEWISE(IntLanes, <<)
#undef FASTCOND_LANEWISE

FASTCOND_INLINE Lanes all_lanes(float value) {
    Lanes result;
    FASTCOND_EACH_REGISTER(result.part[i] = FloatRegister{} + value)
    return result;
}
FASTCOND_INLINE IntLanes all_lanes(int32_t value) {
    IntLanes result;
    FASTCOND_EACH_REGISTER(result.part[i] = IntRegister{} + value)
    return result;
}
FASTCOND_INLINE IntLanes smaller(const IntLanes& a, const IntLanes& b) {
    IntLanes result;
    FASTCOND_EACH_REGISTER(result.part[i] = a.part[i] < b.part[i] ? a.part[i] : b.part[i])
    return result;
}
FASTCOND_INLINE IntLanes bits_of(const Lanes& value) {
    IntLanes bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
FASTCOND_INLINE Lanes float_of(const IntLanes& bits) {
    Lanes value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

FASTCOND_INLINE Lanes load_lanes(const float* from) {
    Lanes result;
    std::memcpy(&result, from, sizeof result);
    return result;
}
template <typename T>
FASTCOND_INLINE Lanes load_lanes(const T* from) {
    float wide[lanes];
    for (int64_t lane = 0; lane < lanes; ++lane) wide[lane] = load(from[lane]);
    return load_lanes(wide);
}
// The first `count` lanes; the others are 0.
template <typename T>
FASTCOND_INLINE Lanes load_lanes(const T* from, int64_t count) {
    float wide[lanes] = {};
    for (int64_t lane = 0; lane < count; ++lane) wide[lane] = load(from[lane]);
    return load_lanes(wide);
}

FASTCOND_INLINE void store_lanes(float* to, const Lanes& value) { std::memcpy(to, &value, sizeof value); }
template <typename T>
FASTCOND_INLINE void store_lanes(T* to, const Lanes& value) {
    float wide[lanes];
    store_lanes(wide, value);
    for (int64_t lane = 0; lane < lanes; ++lane) store(to[lane], wide[lane]);
}
template <typename T>
FASTCOND_INLINE void store_lanes(T* to, const Lanes& value, int64_t count) {
    float wide[lanes];
    store_lanes(wide, value);
    for (int64_t lane = 0; lane < count; ++lane) store(to[lane], wide[lane]);
}

// A store past the caches, for a result that they could not hold: it spares reading the lines that it replaces.
template <typename T>
FASTCOND_INLINE void stream_lanes(T* to, const Lanes& value) {
    store_lanes(to, value);
}
#if defined(__SSE2__)
FASTCOND_INLINE void stream_lanes(float* to, const Lanes& value) {
    if (reinterpret_cast<std::uintptr_t>(to) % sizeof value) return store_lanes(to, value);
#if defined(__AVX512F__)
    FASTCOND_EACH_REGISTER(_mm512_stream_ps(to + i * 16, value.part[i]))
#elif defined(__AVX2__)
    FASTCOND_EACH_REGISTER(_mm256_stream_ps(to + i * 8, value.part[i]))
#else
    FASTCOND_EACH_REGISTER(_mm_stream_ps(to + i * 4, value.part[i]))
#endif
}
#endif

// After the last stream_lanes of a thread, before another may read.
FASTCOND_INLINE void end_streams() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// Sixteen sums in double, to which sums of a few float32 are added.
struct Totals {
    double lane[lanes];
};

FASTCOND_INLINE void add(double* totals, const Lanes& sums) {
    float narrow[lanes];
    store_lanes(narrow, sums);
    for (int64_t lane = 0; lane < lanes; ++lane) totals[lane] += double(narrow[lane]);
}

FASTCOND_INLINE double sum_of(Totals totals) {
    for (int64_t half = lanes / 2; half; half /= 2)
        for (int64_t lane = 0; lane < half; ++lane) totals.lane[lane] += totals.lane[lane + half];
    return totals.lane[0];
}

// e^-u, relative error below 1e-7, for u in [-87, 87]; clamped outside, but NaN where u is minus infinity.
// -u = n ln 2 + r with |r| <= ln(2)/2: the polynomial is within 3.2e-9 of e^r, relatively (minimax, 1 and r fixed, the
// other coefficients rounded to float32 one after another), and 2^n is an exponent.
FASTCOND_INLINE Lanes exp_minus(const Lanes& u) {
    // As integers, magnitudes are ordered alike, and a minimum of them is one instruction; a comparison of floats would be
    // taken apart into cases by the compiler, each computed in full.
    const IntLanes bits = bits_of(u);
    const IntLanes largest = all_lanes(int32_t{0x42AE0000});  // 87.0f
    const Lanes v = float_of(smaller(bits & all_lanes(INT32_MAX), largest) | (bits & all_lanes(INT32_MIN)));
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const Lanes shifter = all_lanes(12582912.0f);
    const Lanes shifted = v * all_lanes(-1.44269504088896341f) + shifter;
    const Lanes n = shifted - shifter;
    // ln 2 in two parts: the first has few bits, so n times it is exact. s = -r.
    const Lanes s = (v + n * all_lanes(22713.0f / 32768)) + n * all_lanes(1.4286068203094172e-6f);
    Lanes series = all_lanes(0x1.6a4cb4p-10f) * s - all_lanes(0x1.123986p-7f);
    series = series * s + all_lanes(0x1.5558bp-5f);
    series = series * s - all_lanes(0x1.555492p-3f);
    series = series * s + all_lanes(0x1.fffffcp-2f);
    series = series * s - all_lanes(1.0f);
    series = series * s + all_lanes(1.0f);
    const Lanes power = float_of(bits_of(series) + (bits_of(shifted) << all_lanes(int32_t{23})));
    // 0, but NaN where u is minus infinity: silu(-infinity) is NaN in PyTorch, and so it is here.
    const Lanes negative = float_of(smaller(bits, all_lanes(int32_t{0})));
    return power + (negative - negative);
}

FASTCOND_INLINE Lanes silu(const Lanes& u) { return u / (all_lanes(1.0f) + exp_minus(u)); }

// d silu / du = s (1 + u (1 - s)), s = 1 / (1 + e^-u).
FASTCOND_INLINE Lanes silu_slope(const Lanes& u) {
    const Lanes one = all_lanes(1.0f);
    const Lanes s = one / (one + exp_minus(u));
    return s * (one + u * (one - s));
}

}  // namespace fastcond::cpu::FASTCOND_ISA
