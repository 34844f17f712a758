// Whether memory is what it was: a number that changes when a bit of it does. Not against somebody who wants two contents
// to agree.
#pragma once

#include <cstdint>
#include <vector>

namespace fastcond::cpu {

// A dense array in host memory.
struct Piece {
    const unsigned char* at;
    int64_t bytes;
};

// Of the pieces' contents, lengths and order. A change within 8 bytes always gives another number, any other change does but
// for one case in 2^64. threads: how many may run; the result does not depend on it.
uint64_t fingerprint(const std::vector<Piece>& pieces, int threads);

}  // namespace fastcond::cpu
