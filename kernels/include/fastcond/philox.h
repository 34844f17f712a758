// Philox4x32-10 and Box-Muller: the arithmetic, shared by every native kernel. fastcond/ops/philox/reference.py
// defines what is computed; the words are bit-equal to it, the normals differ by a few float32 roundings.
//
// Nothing here branches or calls a library beyond sqrt, so a loop over these functions becomes vector code on a CPU,
// and a GPU needs neither local memory nor fp64.
//
// Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3; Box & Muller 1958.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTCOND_INLINE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define FASTCOND_INLINE __forceinline
#else
#define FASTCOND_INLINE inline __attribute__((always_inline))
#endif
#if defined(__GNUC__)
#define FASTCOND_INLINE_LAMBDA __attribute__((always_inline))
#else
#define FASTCOND_INLINE_LAMBDA
#endif

namespace fastcond {

struct Words {
    uint32_t lane[4];
};

FASTCOND_INLINE Words philox4x32(Words counter, uint32_t key0, uint32_t key1) {
    constexpr int rounds = 10;
    for (int round = 0; round < rounds; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53u} * counter.lane[0];
        const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.lane[2];
        counter = {{uint32_t(product1 >> 32) ^ counter.lane[1] ^ key0, uint32_t(product1),
                    uint32_t(product0 >> 32) ^ counter.lane[3] ^ key1, uint32_t(product0)}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

FASTCOND_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

FASTCOND_INLINE float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// u = (float32(word) + 1/2) 2^-32, in [2^-33, 1].
FASTCOND_INLINE float uniform(uint32_t word) {
    // Vector units convert signed integers only. The halves are exact, so the sum rounds once, as the conversion would.
    const float rounded = float(int32_t(word >> 16)) * 65536.0f + float(int32_t(word & 0xFFFFu));
    return (rounded + 0.5f) * 0x1p-32f;
}

// ln u for a normal positive u: u = 2^e m with m in [sqrt 1/2, sqrt 2), ln m = 2 atanh(s), s = (m - 1) / (m + 1).
// m - 1 is exact, so the relative error stays small where u is near 1 and ln u near 0.
FASTCOND_INLINE float log_positive(float u) {
    constexpr uint32_t sqrt_half = 0x3F3504F3u;
    const uint32_t bits = bits_of(u);
    const int32_t exponent = int32_t(bits - sqrt_half) >> 23;
    const float f = float_of(bits - (uint32_t(exponent) << 23)) - 1.0f;
    const float s = f / (f + 2.0f);
    const float t = s * s;  // at most 0.0295: the first term left out is below 2e-9 of the sum
    const float series = t * (1.0f / 3 + t * (1.0f / 5 + t * (1.0f / 7 + t * (1.0f / 9))));
    // ln 2 in two parts: the first has 15 bits, so its product with the exponent is exact.
    const float e = float(exponent);
    return e * (22713.0f / 32768) + (e * 1.4286068203094172e-6f + 2.0f * (s + s * series));
}

// cos and sin of 2 pi u for u in [0, 1]: the nearest quarter turn, and Taylor series over the eighth turn that is left.
// The reduction is exact, which makes a small sine or cosine as accurate as a large one.
FASTCOND_INLINE void cos_sin_turns(float u, float& cosine, float& sine) {
    const float quarters = 4.0f * u;
    const int32_t quadrant = int32_t(quarters + 0.5f);
    const float x = (quarters - float(quadrant)) * 1.57079632679489662f;
    const float t = x * x;
    const float s = x + x * (t * (-1.0f / 6 + t * (1.0f / 120 + t * (-1.0f / 5040 + t * (1.0f / 362880)))));
    const float c =
        1.0f + t * (-1.0f / 2 + t * (1.0f / 24 + t * (-1.0f / 720 + t * (1.0f / 40320 + t * (-1.0f / 3628800)))));
    // Odd quarters exchange the two; the cosine is negative in quarters 1 and 2, the sine in 2 and 3.
    const uint32_t exchange = 0u - (uint32_t(quadrant) & 1u);
    const uint32_t sine_bits = (bits_of(c) & exchange) | (bits_of(s) & ~exchange);
    const uint32_t cosine_bits = (bits_of(s) & exchange) | (bits_of(c) & ~exchange);
    cosine = float_of(cosine_bits ^ ((uint32_t(quadrant + 1) & 2u) << 30));
    sine = float_of(sine_bits ^ ((uint32_t(quadrant) & 2u) << 30));
}

FASTCOND_INLINE void box_muller(uint32_t word0, uint32_t word1, float& z0, float& z1) {
    const float radius = std::sqrt(-2.0f * log_positive(uniform(word0)));
    float cosine, sine;
    cos_sin_turns(uniform(word1), cosine, sine);
    z0 = radius * cosine;
    z1 = radius * sine;
}

}  // namespace fastcond
