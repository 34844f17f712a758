// Sixteen float32 at a time, for sources that are compiled once for each instruction set: in one, two or four vector
// registers. A lane is computed alike in all of them, and nothing is contracted into a fused multiply-add
// (CMakeLists.txt): where a source asks for none, nor for an approximation, every build gives the same bits.
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

FASTCOND_INLINE Lanes operator-(const Lanes& a) {
    Lanes result;
    FASTCOND_EACH_REGISTER(result.part[i] = -a.part[i])
    return result;
}

// a b + c, with one rounding where the processor can.
FASTCOND_INLINE FloatRegister fused(FloatRegister a, FloatRegister b, FloatRegister c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}
FASTCOND_INLINE Lanes fused(const Lanes& a, const Lanes& b, const Lanes& c) {
    Lanes result;
    FASTCOND_EACH_REGISTER(result.part[i] = fused(a.part[i], b.part[i], c.part[i]))
    return result;
}

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
FASTCOND_INLINE Lanes larger(const Lanes& a, const Lanes& b) {
    Lanes result;
    FASTCOND_EACH_REGISTER(result.part[i] = maximum(a.part[i], b.part[i]))
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

// The compiler does not make vector code of the conversions above, nor of the first few lanes: it takes them apart, one number at a
// time.
#if defined(__AVX512F__)
FASTCOND_INLINE __mmask16 first_lanes(int64_t count) { return __mmask16((1u << count) - 1); }
FASTCOND_INLINE Lanes load_lanes(const float* from, int64_t count) { return {{_mm512_maskz_loadu_ps(first_lanes(count), from)}}; }
FASTCOND_INLINE void store_lanes(float* to, const Lanes& value, int64_t count) {
    _mm512_mask_storeu_ps(to, first_lanes(count), value.part[0]);
}
FASTCOND_INLINE Lanes load_lanes(const BFloat16* from) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))}};
}
FASTCOND_INLINE void store_lanes(BFloat16* to, const Lanes& value) {
    // What is rounded away is added up to half a unit, or one less where the last bit that stays is even.
    const __m512i bits = _mm512_castps_si512(value.part[0]);
    const __mmask16 nan = _mm512_cmp_ps_mask(value.part[0], value.part[0], _CMP_UNORD_Q);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i even = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
    const __m512i rounded = _mm512_mask_add_epi32(even, odd, bits, _mm512_set1_epi32(0x8000));
    const __m512i sum = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    // The upper halves, one after another.
    const __m256i first = _mm256_setr_epi16(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    const __m512i halves = _mm512_maskz_permutexvar_epi16(0xFFFFFFFFu, _mm512_castsi256_si512(first), sum);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(halves));
}
FASTCOND_INLINE Lanes load_lanes(const Float16* from) {
    return {{_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))}};
}
FASTCOND_INLINE void store_lanes(Float16* to, const Lanes& value) {
    const __m256i rounded = _mm512_cvtps_ph(value.part[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded);
}
#elif defined(__AVX2__)
// Of register i, the lanes below `count`.
FASTCOND_INLINE __m256i first_lanes(int64_t count, int i) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count) - 8 * i), lane);
}
FASTCOND_INLINE Lanes load_lanes(const float* from, int64_t count) {
    Lanes result;
    FASTCOND_EACH_REGISTER(result.part[i] = _mm256_maskload_ps(from + 8 * i, first_lanes(count, i)))
    return result;
}
FASTCOND_INLINE void store_lanes(float* to, const Lanes& value, int64_t count) {
    FASTCOND_EACH_REGISTER(_mm256_maskstore_ps(to + 8 * i, first_lanes(count, i), value.part[i]))
}
FASTCOND_INLINE Lanes load_lanes(const BFloat16* from) {
    Lanes result;
    FASTCOND_EACH_REGISTER(
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8 * i));
        result.part[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)))
    return result;
}
FASTCOND_INLINE void store_lanes(BFloat16* to, const Lanes& value) {
    __m256i half[registers];
    FASTCOND_EACH_REGISTER(
        const __m256i bits = _mm256_castps_si256(value.part[i]); const __m256i upper = _mm256_srli_epi32(bits, 16);
        const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
        const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value.part[i], value.part[i], _CMP_UNORD_Q));
        half[i] = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_or_si256(upper, _mm256_set1_epi32(0x40)), nan))
    // Packing works within halves of 128 bits; the permutation puts their quarters in order.
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(half[0], half[1]), 0xD8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
}
#endif

// Asks for a cache line before it is needed. Of a place that is not there nothing comes, but where the system has given it no page
// the processor looks for one each time, which can take longer than a line from memory: ask for what is there.
FASTCOND_INLINE void fetch([[maybe_unused]] const void* place) {
#if defined(__GNUC__)
    __builtin_prefetch(place);
#endif
}
FASTCOND_INLINE void fetch_to_write([[maybe_unused]] const void* place) {
#if defined(__GNUC__)
    __builtin_prefetch(place, 1);
#endif
}

// For what is too large for the caches: a store that reads no line first and drives none out. `to` is at the start of a cache
// line. The thread that wrote so calls let_be_seen before another may read.
FASTCOND_INLINE void store_past_caches(float* to, const Lanes& value) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, value.part[0]);
#elif defined(__AVX2__)
    FASTCOND_EACH_REGISTER(_mm256_stream_ps(to + i * lanes / registers, value.part[i]))
#elif defined(__SSE2__)
    FASTCOND_EACH_REGISTER(_mm_stream_ps(to + i * lanes / registers, value.part[i]))
#else
    store_lanes(to, value);
#endif
}
FASTCOND_INLINE void let_be_seen() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// 2^n where n + 1.5 * 2^23 is given: the nearest integers to float32 below 2^22 lie in the low bits of such sums.
FASTCOND_INLINE Lanes power_of_two(const Lanes& shifted) {
    return float_of((bits_of(shifted) << all_lanes(int32_t{23})) + all_lanes(int32_t{0x3F800000}));
}

}  // namespace fastcond::cpu::FASTCOND_ISA
