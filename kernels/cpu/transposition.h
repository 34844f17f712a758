// Sixteen by sixteen floats, rows for columns; for sources compiled once for each instruction set.
#pragma once

#include "lanes.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

#if defined(__GNUC__) && !defined(__clang__)
typedef float Sixteen __attribute__((vector_size(64)));
typedef int32_t Choice __attribute__((vector_size(64)));

// The blocks of `size` beside the diagonal change places, in all pairs of rows that far apart: a step of a transposition.
template <int size>
FASTCOND_INLINE void exchange(Sixteen (&rows)[lanes]) {
    Choice left{}, right{};
    for (int lane = 0; lane < lanes; ++lane) {
        left[lane] = lane & size ? lanes + lane - size : lane;
        right[lane] = lane & size ? lanes + lane : lane + size;
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
        if (i & size) continue;
        const Sixteen above = rows[i], below = rows[i + size];
        rows[i] = __builtin_shuffle(above, below, left);
        rows[i + size] = __builtin_shuffle(above, below, right);
    }
}
#endif

// Sixteen rows of sixteen, `stride` floats apart, to their columns, `to_stride` floats apart.
FASTCOND_INLINE void transpose(const float* from, int64_t stride, float* to, int64_t to_stride) {
#if defined(__GNUC__) && !defined(__clang__)
    Sixteen rows[lanes];
    for (int64_t i = 0; i < lanes; ++i) std::memcpy(&rows[i], from + i * stride, sizeof rows[i]);
    exchange<8>(rows);
    exchange<4>(rows);
    exchange<2>(rows);
    exchange<1>(rows);
    for (int64_t i = 0; i < lanes; ++i) std::memcpy(to + i * to_stride, &rows[i], sizeof rows[i]);
#else
    for (int64_t i = 0; i < lanes; ++i)
        for (int64_t j = 0; j < lanes; ++j) to[j * to_stride + i] = from[i * stride + j];
#endif
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
