// Philox words and normals by the row of counters, for sources that are compiled once for each instruction set. Whole rows
// are computed, whatever part of one is wanted: every element takes the same instructions wherever it lies.
#pragma once

#include <cstdint>

#include "fastcond/philox.h"
#include "lanes.h"

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

// The words of which normals are made: of counter i, lanes 0 and 2 in radius[2i] and radius[2i + 1], lanes 1 and 3 in angle.
template <int64_t counters>
struct NormalWords {
    uint32_t radius[2 * counters];
    uint32_t angle[2 * counters];
};

#if defined(__GNUC__)
// Eight counters at a time, each in the low half of 64 bits: there a product of 32-bit words is one instruction, and what
// stands in the high half is not read. (The compiler, left with the loop above, multiplies 64-bit numbers in full.)
struct WideLanes {
    WideRegister part[registers];
};

FASTCOND_INLINE WideRegister product(WideRegister a, WideRegister b) {
#if defined(__AVX512F__)
    return WideRegister(_mm512_maskz_mul_epu32(0xFF, __m512i(a), __m512i(b)));
#elif defined(__AVX2__)
    return WideRegister(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#elif defined(__SSE2__)
    return WideRegister(_mm_mul_epu32(__m128i(a), __m128i(b)));
#else
    return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

struct EightCounters {
    WideLanes c0, c1, c2, c3;
};

FASTCOND_INLINE WideLanes everywhere(uint64_t value) {
    WideLanes lanes;
    FASTCOND_EACH_REGISTER(lanes.part[i] = WideRegister{} + value)
    return lanes;
}

FASTCOND_INLINE EightCounters eight_counters(const NoiseKey& key, uint32_t first_counter) {
    constexpr uint64_t ascending[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    EightCounters state{{}, everywhere(0), everywhere(key.step), everywhere(key.stream)};
    FASTCOND_EACH_REGISTER(std::memcpy(&state.c0.part[i], ascending + i * 8 / registers, FASTCOND_REGISTER_BYTES);
                           state.c0.part[i] = state.c0.part[i] + uint64_t{first_counter})
    return state;
}

// One round of philox4x32.
FASTCOND_INLINE void advance(EightCounters& state, uint32_t key0, uint32_t key1) {
    const WideLanes m0 = everywhere(0xD2511F53u), m1 = everywhere(0xCD9E8D57u);
    const WideLanes k0 = everywhere(key0), k1 = everywhere(key1);
    FASTCOND_EACH_REGISTER(const WideRegister p0 = product(state.c0.part[i], m0.part[i]);
                           const WideRegister p1 = product(state.c2.part[i], m1.part[i]);
                           state.c0.part[i] = (p1 >> 32) ^ state.c1.part[i] ^ k0.part[i]; state.c1.part[i] = p1;
                           state.c2.part[i] = (p0 >> 32) ^ state.c3.part[i] ^ k1.part[i]; state.c3.part[i] = p0)
}

// The low halves of a and b in turn.
FASTCOND_INLINE void store_pairs(uint32_t* to, const WideLanes& a, const WideLanes& b) {
    FASTCOND_EACH_REGISTER(const WideRegister pairs = (a.part[i] & 0xFFFFFFFFu) | (b.part[i] << 32);
                           std::memcpy(to + i * 16 / registers, &pairs, FASTCOND_REGISTER_BYTES))
}

template <int64_t counters>
FASTCOND_INLINE void store_words(const EightCounters& state, NormalWords<counters>& words, int64_t counter) {
    store_pairs(words.radius + 2 * counter, state.c0, state.c2);
    store_pairs(words.angle + 2 * counter, state.c1, state.c3);
}

template <int64_t counters>
FASTCOND_INLINE void draw_normal_words(const NoiseKey& key, uint32_t first_counter, NormalWords<counters>& words) {
    // A round waits for its products. Where one register holds eight counters, four of them take turns.
    constexpr int64_t at_once = registers == 1 ? 32 : 8;
    static_assert(counters % at_once == 0);
    for (int64_t i = 0; i < counters; i += at_once) {
        const uint32_t first = first_counter + uint32_t(i);
        uint32_t key0 = key.image_index, key1 = key.run_seed;
        EightCounters a = eight_counters(key, first), b = a, c = a, d = a;
        if constexpr (registers == 1) {
            b = eight_counters(key, first + 8);
            c = eight_counters(key, first + 16);
            d = eight_counters(key, first + 24);
        }
        for (int round = 0; round < 10; ++round) {
            advance(a, key0, key1);
            if constexpr (registers == 1) {
                advance(b, key0, key1);
                advance(c, key0, key1);
                advance(d, key0, key1);
            }
            key0 += 0x9E3779B9u;
            key1 += 0xBB67AE85u;
        }
        store_words(a, words, i);
        if constexpr (registers == 1) {
            store_words(b, words, i + 8);
            store_words(c, words, i + 16);
            store_words(d, words, i + 24);
        }
    }
}
#else
template <int64_t counters>
FASTCOND_INLINE void draw_normal_words(const NoiseKey& key, uint32_t first_counter, NormalWords<counters>& words) {
    WordRow<counters> row;
    draw_words(key, first_counter, row);
    for (int64_t i = 0; i < counters; ++i)
        for (int pair = 0; pair < 2; ++pair) {
            words.radius[2 * i + pair] = row.lane[2 * pair][i];
            words.angle[2 * i + pair] = row.lane[2 * pair + 1][i];
        }
}
#endif

// Normals 4 first_counter to 4 (first_counter + counters) - 1 of the image.
template <int64_t counters>
FASTCOND_INLINE void draw_normals(const NoiseKey& key, uint32_t first_counter, float (&normal)[4 * counters]) {
    NormalWords<counters> words;
    draw_normal_words(key, first_counter, words);
    for (int64_t i = 0; i < 2 * counters; ++i)
        box_muller(words.radius[i], words.angle[i], normal[2 * i], normal[2 * i + 1]);
}

}  // namespace fastcond::cpu::FASTCOND_ISA
