// Philox words and normals by the row of counters, for sources that are compiled once for each instruction set. Whole rows
// are computed, whatever part of one is wanted: every element takes the same instructions wherever it lies.
#pragma once

#include <cstdint>

#include "fastcond/philox.h"

namespace fastcond::cpu::FASTCOND_ISA {

// What names the noise of one image at one step.
struct NoiseKey {
    uint32_t run_seed, image_index, step, stream;
};

template <int64_t counters>
struct WordRow {
    uint32_t lane[4][counters];
};

template <int64_t counters>
FASTCOND_INLINE void draw_words(const NoiseKey& key, uint32_t first_counter, WordRow<counters>& row) {
    const NoiseKey k = key;  // a copy, so that no store can be taken for a change of it
    for (uint32_t i = 0; i < counters; ++i) {
        const Words words = philox4x32({{first_counter + i, 0, k.step, k.stream}}, k.image_index, k.run_seed);
        for (int lane = 0; lane < 4; ++lane) row.lane[lane][i] = words.lane[lane];
    }
}

// Normals 4 first_counter to 4 (first_counter + counters) - 1 of the image.
template <int64_t counters>
FASTCOND_INLINE void draw_normals(const NoiseKey& key, uint32_t first_counter, float (&normal)[4 * counters]) {
    WordRow<counters> row;
    draw_words(key, first_counter, row);
    for (int64_t i = 0; i < counters; ++i) {
        float* z = normal + 4 * i;
        box_muller(row.lane[0][i], row.lane[1][i], z[0], z[1]);
        box_muller(row.lane[2][i], row.lane[3][i], z[2], z[3]);
    }
}

}  // namespace fastcond::cpu::FASTCOND_ISA
