// The philox op's loops, compiled once for each instruction set (FASTCOND_ISA names it).
#include <cstring>

#include "noise.h"
#include "philox.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

// A tile is the unit of work: a fixed number of counters of one image.
constexpr int64_t counters = 64;
constexpr int64_t elements = 4 * counters;
constexpr int64_t tiles_worth_a_thread = 16;  // fewer are done before a second thread has woken up

FASTCOND_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

void draw_tile(const NoiseKey& key, uint32_t first_counter, int64_t* out, int64_t wanted) {
    WordRow<counters> row;
    draw_words(key, first_counter, row);
    for (int64_t e = 0; e < wanted; ++e) out[e] = row.lane[e % 4][e / 4];
}

void draw_tile(const NoiseKey& key, uint32_t first_counter, float* out, int64_t wanted) {
    float normal[elements];
    draw_normals<counters>(key, first_counter, normal);
    std::memcpy(out, normal, size_t(wanted) * sizeof(float));
}

template <typename Element>
void draw_all(const Draw& draw, Element* out) {
    const int64_t tiles_per_image = (draw.count + elements - 1) / elements;
    const int64_t tiles = draw.images * tiles_per_image;
    const int64_t useful = smaller(draw.threads, tiles / tiles_worth_a_thread);
    [[maybe_unused]] const int threads = useful < 1 ? 1 : int(useful);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t image = t / tiles_per_image, tile_of_image = t % tiles_per_image;
        const int64_t offset = tile_of_image * elements;
        const NoiseKey key{uint32_t(draw.seeds[2 * image]), uint32_t(draw.seeds[2 * image + 1]), draw.step, draw.stream};
        draw_tile(key, uint32_t(tile_of_image * counters), out + image * draw.count + offset,
                  smaller(elements, draw.count - offset));
    }
}

}  // namespace

void philox_bits(const Draw& draw, int64_t* out) { draw_all(draw, out); }
void philox_normal(const Draw& draw, float* out) { draw_all(draw, out); }

}  // namespace fastcond::cpu::FASTCOND_ISA
