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
typedef uint64_t WideRegister __attribute__((vector_size(FASTCOND_REGISTER_BYTES)));
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
// Of one register: a > b ? a : b and a < b ? a : b, as the instructions are defined, so b where a is NaN. The compiler would
// take the expressions apart into comparisons and blends. (The masks, of all lanes, silence a false warning of GCC 12.)
#if defined(__AVX512F__)
FASTCOND_INLINE FloatRegister maximum(FloatRegister a, FloatRegister b) { return _mm512_maskz_max_ps(0xFFFF, a, b); }
FASTCOND_INLINE FloatRegister minimum(FloatRegister a, FloatRegister b) { return _mm512_maskz_min_ps(0xFFFF, a, b); }
#elif defined(__AVX2__)
FASTCOND_INLINE FloatRegister maximum(FloatRegister a, FloatRegister b) { return _mm256_max_ps(a, b); }
FASTCOND_INLINE FloatRegister minimum(FloatRegister a, FloatRegister b) { return _mm256_min_ps(a, b); }
#elif defined(__SSE2__)
FASTCOND_INLINE FloatRegister maximum(FloatRegister a, FloatRegister b) { return _mm_max_ps(a, b); }
FASTCOND_INLINE FloatRegister minimum(FloatRegister a, FloatRegister b) { return _mm_min_ps(a, b); }
#else
FASTCOND_INLINE FloatRegister maximum(FloatRegister a, FloatRegister b) { return a > b ? a : b; }
FASTCOND_INLINE FloatRegister minimum(FloatRegister a, FloatRegister b) { return a < b ? a : b; }
#endif

// least <= value <= most; `least` for NaN.
FASTCOND_INLINE Lanes bounded(const Lanes& value, float least, float most) {
    const Lanes low = all_lanes(least), high = all_lanes(most);
    Lanes result;
    FASTCOND_EACH_REGISTER(result.part[i] = minimum(maximum(value.part[i], low.part[i]), high.part[i]))
    return result;
}
// Copies go register by register: the compiler moves a whole structure in pieces of its own size, through memory.
FASTCOND_INLINE IntLanes bits_of(const Lanes& value) {
    IntLanes bits;
    FASTCOND_EACH_REGISTER(std::memcpy(&bits.part[i], &value.part[i], FASTCOND_REGISTER_BYTES))
    return bits;
}
FASTCOND_INLINE Lanes float_of(const IntLanes& bits) {
    Lanes value;
    FASTCOND_EACH_REGISTER(std::memcpy(&value.part[i], &bits.part[i], FASTCOND_REGISTER_BYTES))
    return value;
}

FASTCOND_INLINE Lanes load_lanes(const float* from) {
    Lanes result;
    FASTCOND_EACH_REGISTER(std::memcpy(&result.part[i], from + i * lanes / registers, FASTCOND_REGISTER_BYTES))
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

FASTCOND_INLINE void store_lanes(float* to, const Lanes& value) {
    FASTCOND_EACH_REGISTER(std::memcpy(to + i * lanes / registers, &value.part[i], FASTCOND_REGISTER_BYTES))
}
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

// 1 / (1 + e^-u) within a few roundings: 1 where e^-u is below 2^-127, 0 where it is above 2^127.5, and 1/2 for NaN.
// -u = n ln 2 + r with |r| <= ln(2)/2; e^r = P / Q with Q(r) = P(-r), the Pade approximant of order [3/3], is within 6e-9,
// relatively; so the result is Q / (Q + 2^n P), with one division, and 2^128 is infinity, as it should be.
FASTCOND_INLINE Lanes sigmoid(const Lanes& u) {
    const Lanes v = bounded(u, -89.0f, 88.0f);
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const Lanes shifter = all_lanes(12582912.0f);
    const Lanes shifted = v * all_lanes(-1.44269504088896341f) + shifter;
    const Lanes n = shifted - shifter;
    // ln 2 in two parts: the first has few bits, so n times it is exact. s = -r.
    const Lanes s = (v + n * all_lanes(22713.0f / 32768)) + n * all_lanes(1.4286068203094172e-6f);
    const Lanes square = s * s;
    const Lanes even = square * all_lanes(12.0f) + all_lanes(120.0f);
    const Lanes odd = (square + all_lanes(60.0f)) * s;
    const Lanes power = float_of((bits_of(shifted) << all_lanes(int32_t{23})) + all_lanes(int32_t{0x3F800000}));
    const Lanes q = even + odd;
    return q / (q + (even - odd) * power);
}

// silu(-infinity) is -infinity times 0, NaN, as in PyTorch.
FASTCOND_INLINE Lanes silu(const Lanes& u) { return u * sigmoid(u); }

// d silu / du = s (1 + u (1 - s)), s = sigmoid(u).
FASTCOND_INLINE Lanes silu_slope(const Lanes& u) {
    const Lanes one = all_lanes(1.0f);
    const Lanes s = sigmoid(u);
    return s * (one + u * (one - s));
}

}  // namespace fastcond::cpu::FASTCOND_ISA
