// Sixteen doubles, to which sums of a few float32 are added; for sources that are compiled once for each instruction set.
#pragma once

#include "lanes.h"

namespace fastcond::cpu::FASTCOND_ISA {

#if defined(__GNUC__)
typedef double DoubleRegister __attribute__((vector_size(FASTCOND_REGISTER_BYTES)));
constexpr int double_registers = 2 * registers;
#else
typedef double DoubleRegister;
constexpr int double_registers = int(lanes);
#endif

struct Doubles {
    DoubleRegister part[double_registers];
};

#define FASTCOND_DOUBLES(symbol)                                                                        \
    FASTCOND_INLINE Doubles operator symbol(const Doubles& a, const Doubles& b) {                       \
        Doubles result;                                                                                 \
        for (int i = 0; i < double_registers; ++i) result.part[i] = a.part[i] symbol b.part[i];         \
        return result;                                                                                  \
    }
FASTCOND_DOUBLES(+)
FASTCOND_DOUBLES(-)
FASTCOND_DOUBLES(*)
#undef FASTCOND_DOUBLES

FASTCOND_INLINE Doubles all_doubles(double value) {
    Doubles result;
    for (int i = 0; i < double_registers; ++i) result.part[i] = DoubleRegister{} + value;
    return result;
}

FASTCOND_INLINE Doubles load_doubles(const double* from) {
    Doubles result;
    for (int i = 0; i < double_registers; ++i)
        std::memcpy(&result.part[i], from + i * lanes / double_registers, sizeof(DoubleRegister));
    return result;
}
FASTCOND_INLINE void store_doubles(double* to, const Doubles& value) {
    for (int i = 0; i < double_registers; ++i)
        std::memcpy(to + i * lanes / double_registers, &value.part[i], sizeof(DoubleRegister));
}

// The compiler makes no conversions of registers of the loop below. (The masks silence a false warning of GCC 12.)
FASTCOND_INLINE Doubles widened(const Lanes& value) {
#if defined(__AVX512F__)
    const __m256 low = _mm512_maskz_extractf32x8_ps(0xFF, value.part[0], 0);
    const __m256 high = _mm512_maskz_extractf32x8_ps(0xFF, value.part[0], 1);
    return {{_mm512_maskz_cvtps_pd(0xFF, low), _mm512_maskz_cvtps_pd(0xFF, high)}};
#elif defined(__AVX2__)
    return {{_mm256_cvtps_pd(_mm256_castps256_ps128(value.part[0])), _mm256_cvtps_pd(_mm256_extractf128_ps(value.part[0], 1)),
             _mm256_cvtps_pd(_mm256_castps256_ps128(value.part[1])), _mm256_cvtps_pd(_mm256_extractf128_ps(value.part[1], 1))}};
#else
    float narrow[lanes];
    double wide[lanes];
    store_lanes(narrow, value);
    for (int64_t lane = 0; lane < lanes; ++lane) wide[lane] = double(narrow[lane]);
    return load_doubles(wide);
#endif
}

FASTCOND_INLINE Lanes narrowed(const Doubles& value) {
    double wide[lanes];
    float narrow[lanes];
    store_doubles(wide, value);
    for (int64_t lane = 0; lane < lanes; ++lane) narrow[lane] = float(wide[lane]);
    return load_lanes(narrow);
}

// The sum of all lanes.
FASTCOND_INLINE double sum_of(Doubles wide) {
    for (int half = double_registers / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) wide.part[i] = wide.part[i] + wide.part[i + half];
#if defined(__AVX512F__)
    const __m256d four = _mm256_add_pd(_mm512_maskz_extractf64x4_pd(0xF, wide.part[0], 0),
                                       _mm512_maskz_extractf64x4_pd(0xF, wide.part[0], 1));
#elif defined(__AVX2__)
    const __m256d four = wide.part[0];
#endif
#if defined(__AVX2__)
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
#elif defined(__GNUC__)
    return wide.part[0][0] + wide.part[0][1];
#else
    return wide.part[0];
#endif
}
FASTCOND_INLINE double sum_of(const Lanes& value) { return sum_of(widened(value)); }

}  // namespace fastcond::cpu::FASTCOND_ISA
