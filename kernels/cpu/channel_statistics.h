// Mean and sum of squared distances to it, gathered piece by piece, of sixteen channels at a time; for sources compiled once for
// each instruction set.
#pragma once

#include "products.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

// Of sixteen features over the positions seen so far.
struct Statistics {
    Lanes mean, m2;
};

// (mean, m2) of `count` values and of `more` others become those of all (Chan, Golub & LeVeque 1979).
FASTCOND_INLINE void merge(Statistics& all, int64_t count, const Statistics& others, int64_t more) {
    const float share = float(more) / float(count + more);
    const Lanes distance = others.mean - all.mean;
    all.mean = fused(distance, all_lanes(share), all.mean);
    all.m2 = fused(distance * distance, all_lanes(share * float(count)), all.m2 + others.m2);
}

// Of the first `count` of some rows.
template <int64_t most>
FASTCOND_INLINE Statistics statistics_of_rows(const Lanes (&row)[most], int64_t count) {
    Lanes sum = all_lanes(0.0f), m2 = all_lanes(0.0f);
    for (int64_t r = 0; r < count; ++r) sum = sum + row[r];
    const Lanes mean = sum * all_lanes(1.0f / float(count));
    for (int64_t r = 0; r < count; ++r) {
        const Lanes distance = row[r] - mean;
        m2 = fused(distance, distance, m2);
    }
    return {mean, m2};
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
