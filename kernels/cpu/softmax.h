// The softmax of attention, for sources compiled once for each instruction set. Scores are held as [keys][32 queries], so that no
// register's own lanes are added up; with `factor` they become those of powers of two.
#pragma once

#include "activation.h"
#include "products.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

// 2^(factor (score - largest)) of a few keys, and their sum: NaN where a score is no number.
template <int n>
FASTCOND_INLINE Lanes soften(float* scores, const Lanes& largest, const Lanes& factor) {
    const Several<n> distance = several<n>([&](int k) FASTCOND_INLINE_LAMBDA { return load_lanes(scores + k * panel) - largest; });
    const Several<n> power = scaled_power(distance * factor, 1.0f);
    store_several(scores, panel, power);
#if defined(__AVX512F__)
    return folded(power);
#else
    return folded(power + (distance - distance));  // where what is no number has been bounded away
#endif
}

// Of sixteen queries. share: 1 over the sum of the powers.
struct Softmax {
    Lanes largest, share;
};

// Scores become 2^(factor (score - largest)).
FASTCOND_INLINE Softmax soften(float* scores, int64_t keys, float of_powers) {
    constexpr int together = 4;
    const Lanes factor = all_lanes(of_powers);
    Lanes largest = load_lanes(scores), sum = all_lanes(0.0f);
    for (int64_t key = 1; key < keys; ++key) largest = larger(load_lanes(scores + key * panel), largest);
    int64_t key = 0;
    for (; key + together <= keys; key += together) sum = sum + soften<together>(scores + key * panel, largest, factor);
    for (; key < keys; ++key) sum = sum + soften<1>(scores + key * panel, largest, factor);
    return {largest, all_lanes(1.0f) / sum};
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
