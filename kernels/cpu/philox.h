// The philox op on the CPU. Pointers are to dense arrays in host memory; nothing is allocated.
#pragma once

#include <cstdint>

namespace fastcond::cpu {

// Where an op draws from: seeds [images, 2] = (run seed, image index), each value in [0, 2^32).
struct Draw {
    const int64_t* seeds;
    uint32_t step;
    uint32_t stream;
    int64_t images;
    int64_t count;  // elements an image
    int threads;    // how many may run; the result does not depend on it
};

void philox_bits(const Draw& draw, int64_t* out);   // out [images, count], values in [0, 2^32)
void philox_normal(const Draw& draw, float* out);   // out [images, count]

}  // namespace fastcond::cpu
