#include "fingerprint.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace fastcond::cpu {
namespace {

constexpr int64_t block_bytes = 1 << 20;  // read by one thread
constexpr int lanes = 8;                  // independent of each other, so that one multiplication does not wait for another

// Odd, so that multiplying is a bijection: what differs stays different.
constexpr uint64_t first_multiplier = 0x9E3779B97F4A7C15, second_multiplier = 0xD1342543DE82EF95;

// For a given word a bijection of the state, and the other way round. A product's bits depend on the lower bits of its factors
// alone, so the upper ones (of two float32 the sign of the second) have their say about the others between two products. With one
// product, two words that differ in a bit each could make up for each other whatever else there is.
inline uint64_t mixed(uint64_t state, uint64_t word) {
    const uint64_t product = (state ^ word) * first_multiplier;
    return (product ^ (product >> 32)) * second_multiplier;
}

inline uint64_t word_at(const unsigned char* at) {
    uint64_t word;
    std::memcpy(&word, at, sizeof word);
    return word;
}

uint64_t of_block(const unsigned char* at, int64_t bytes) {
    std::array<uint64_t, lanes> state;
    for (int lane = 0; lane < lanes; ++lane) state[lane] = mixed(first_multiplier, lane);
    int64_t done = 0;
    for (; done + 8 * lanes <= bytes; done += 8 * lanes)
        for (int lane = 0; lane < lanes; ++lane) state[lane] = mixed(state[lane], word_at(at + done + 8 * lane));
    uint64_t result = mixed(first_multiplier, uint64_t(bytes));
    for (const uint64_t of_lane : state) result = mixed(result, of_lane);
    for (; done < bytes; done += 8) {
        uint64_t word = 0;
        std::memcpy(&word, at + done, size_t(std::min<int64_t>(8, bytes - done)));
        result = mixed(result, word);
    }
    return result;
}

}  // namespace

uint64_t fingerprint(const std::vector<Piece>& pieces, int threads) {
    std::vector<Piece> blocks;
    for (const Piece& piece : pieces)
        for (int64_t first = 0; first == 0 || first < piece.bytes; first += block_bytes)
            blocks.push_back({piece.at + first, std::min(block_bytes, piece.bytes - first)});
    std::vector<uint64_t> of(blocks.size());
    const int64_t count = int64_t(blocks.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && count > 1)
    for (int64_t i = 0; i < count; ++i) of[i] = of_block(blocks[i].at, blocks[i].bytes);
    uint64_t result = mixed(first_multiplier, uint64_t(count));
    for (const uint64_t of_one : of) result = mixed(result, of_one);
    return result;
}

}  // namespace fastcond::cpu
