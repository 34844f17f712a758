// The products of norm_conv: [tiles x C] [C x features] with the sums in registers.
#pragma once

#include "lanes.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t register_lanes = lanes / registers;
constexpr int64_t panel = 32;  // features of a block of the packed weight

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

// A register tile is `rows` tiles by `vectors` registers of features: 28 sums of AVX-512's 32 registers, 12 of the others' 16.
#if defined(__AVX512F__)
constexpr int most_rows = 14;
#else
constexpr int most_rows = 6;
#endif

// What one product reads and writes. Channels come in chunks of 16: v is [chunks][tiles][16].
struct Product {
    const float* v;
    const float* u;        // [C][width]
    float* m;              // [tiles][panel]
    int64_t chunk_stride;  // from a chunk of v to the next
    int64_t channels;
    int64_t width;         // features in a row of u, a panel's or 16
};

template <int rows, int vectors>
FASTCOND_INLINE void add_channel(FloatRegister (&sums)[rows][vectors], const float* v, const float* u, int64_t ahead) {
    FloatRegister right[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) std::memcpy(&right[j], u + j * register_lanes, sizeof right[j]);
#if defined(__GNUC__)
    // The weights of the next product: the processor's own prefetching stops at each page.
#pragma GCC unroll 2
    for (int64_t j = 0; j < vectors * register_lanes; j += 16) __builtin_prefetch(u + ahead + j);
#endif
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r) {
        const FloatRegister left = v[r * lanes] - FloatRegister{};  // in all lanes: x - 0 is x, -0 too
#pragma GCC unroll 2
        for (int j = 0; j < vectors; ++j) sums[r][j] = fused(left, right[j], sums[r][j]);
    }
}

template <int rows, int vectors>
void multiply(const Product& p) {
    FloatRegister sums[rows][vectors];
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; ++j) sums[r][j] = FloatRegister{};
    const float *v = p.v, *u = p.u;
    const int64_t ahead = p.channels * p.width, width = p.width;
    int64_t left = p.channels;
    for (; left >= lanes; left -= lanes, v += p.chunk_stride) {
#pragma GCC unroll 4
        for (int64_t c = 0; c < lanes; ++c, u += width) add_channel<rows, vectors>(sums, v + c, u, ahead);
    }
#pragma GCC unroll 1
    for (int64_t c = 0; c < left; ++c, u += width) add_channel<rows, vectors>(sums, v + c, u, ahead);
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; ++j) std::memcpy(p.m + r * panel + j * register_lanes, &sums[r][j], sizeof sums[r][j]);
}

template <int vectors>
void multiply_rows(int64_t rows, const Product& p) {
    switch (rows) {
#define FASTCOND_ROWS(n) \
    case n: return multiply<n, vectors>(p);
#if defined(__AVX512F__)
        FASTCOND_ROWS(14) FASTCOND_ROWS(13) FASTCOND_ROWS(12) FASTCOND_ROWS(11) FASTCOND_ROWS(10) FASTCOND_ROWS(9)
        FASTCOND_ROWS(8) FASTCOND_ROWS(7)
#endif
        FASTCOND_ROWS(6) FASTCOND_ROWS(5) FASTCOND_ROWS(4) FASTCOND_ROWS(3) FASTCOND_ROWS(2) FASTCOND_ROWS(1)
#undef FASTCOND_ROWS
    }
}

// `columns` features (16 or 32) of all tiles. The tiles are divided evenly: 8 and 8 rather than 14 and 2.
FASTCOND_INLINE void multiply_tiles(Product p, int64_t tiles, int64_t columns) {
    const int64_t passes = (tiles + most_rows - 1) / most_rows;
    const int64_t rows = tiles / passes, longer = tiles % passes;
    constexpr int64_t pair = 2 * register_lanes;
    for (int64_t column = 0; column < columns; column += pair) {
        Product part = p;
        part.u += column;
        part.m += column;
        for (int64_t pass = 0; pass < passes; ++pass) {
            const int64_t here = rows + (pass < longer);
            if (columns - column >= pair) multiply_rows<2>(here, part);
            else multiply_rows<1>(here, part);
            part.v += here * lanes;
            part.m += here * panel;
        }
    }
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
