// A few Lanes in step, for sources that are compiled once for each instruction set. The operations of a sigmoid wait for one
// another: several of them in turn keep a processor busy.
#pragma once

#include "lanes.h"

namespace fastcond::cpu::FASTCOND_ISA {

// Four registers in step: more would not fit where there are sixteen in all.
constexpr int in_step = registers < 4 ? 4 / registers : 1;

template <int n>
struct Several {
    Lanes of[n];
};

// result.of[k] = value(k).
template <int n, typename Value>
FASTCOND_INLINE Several<n> several(Value value) {
    Several<n> result;
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
    for (int k = 0; k < n; ++k) result.of[k] = value(k);
    return result;
}

#define FASTCOND_SEVERAL(symbol)                                                                           \
    template <int n>                                                                                       \
    FASTCOND_INLINE Several<n> operator symbol(const Several<n>& a, const Several<n>& b) {                 \
        return several<n>([&](int k) FASTCOND_INLINE_LAMBDA { return a.of[k] symbol b.of[k]; });           \
    }                                                                                                      \
    template <int n>                                                                                       \
    FASTCOND_INLINE Several<n> operator symbol(const Several<n>& a, const Lanes& b) {                      \
        return several<n>([&](int k) FASTCOND_INLINE_LAMBDA { return a.of[k] symbol b; });                 \
    }
FASTCOND_SEVERAL(+)
FASTCOND_SEVERAL(-)
FASTCOND_SEVERAL(*)
#undef FASTCOND_SEVERAL

// One of Several, or what all of them share.
template <int n>
FASTCOND_INLINE const Lanes& nth(const Several<n>& a, int k) { return a.of[k]; }
FASTCOND_INLINE const Lanes& nth(const Lanes& a, int) { return a; }

// a b + c, where b and c may be shared.
template <int n, typename B, typename C>
FASTCOND_INLINE Several<n> fused(const Several<n>& a, const B& b, const C& c) {
    return several<n>([&](int k) FASTCOND_INLINE_LAMBDA { return fused(a.of[k], nth(b, k), nth(c, k)); });
}

// The sum of several Lanes, two by two.
template <int n>
FASTCOND_INLINE Lanes folded(Several<n> sums) {
    for (int half = n / 2; half; half /= 2)
        for (int k = 0; k < half; ++k) sums.of[k] = sums.of[k] + sums.of[k + half];
    return sums.of[0];
}

// c + the sum of a's Lanes, and of a's times b's, one after another.
template <int n>
FASTCOND_INLINE Lanes sum(const Several<n>& a, Lanes c) {
    for (int k = 0; k < n; ++k) c = c + a.of[k];
    return c;
}
template <int n>
FASTCOND_INLINE Lanes dot(const Several<n>& a, const Several<n>& b, Lanes c) {
    for (int k = 0; k < n; ++k) c = fused(a.of[k], b.of[k], c);
    return c;
}

// From memory and to it: n Lanes that are `stride` elements apart.
template <int n, typename T>
FASTCOND_INLINE Several<n> load_several(const T* from, int64_t stride) {
    return several<n>([&](int k) FASTCOND_INLINE_LAMBDA { return load_lanes(from + k * stride); });
}
template <int n, typename T>
FASTCOND_INLINE void store_several(T* to, int64_t stride, const Several<n>& value) {
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
    for (int k = 0; k < n; ++k) store_lanes(to + k * stride, value.of[k]);
}
template <int n>
FASTCOND_INLINE void store_several_past_caches(float* to, int64_t stride, const Several<n>& value) {
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
    for (int k = 0; k < n; ++k) store_past_caches(to + k * stride, value.of[k]);
}

}  // namespace fastcond::cpu::FASTCOND_ISA
