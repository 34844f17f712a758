#include "philox.h"

#include <algorithm>

#include "fastcond/philox.h"

namespace fastcond::cpu {
namespace {

// A tile is the unit of work: a fixed number of counters of one image, always computed whole, whatever part of it is
// wanted. So every element takes the same instructions at any count, batch size and number of threads.
constexpr int64_t counters = 64;
constexpr int64_t elements = 4 * counters;
constexpr int64_t tiles_worth_a_thread = 8;  // fewer are done before a second thread has woken up

struct Tile {
    uint32_t lane[4][counters];
};

void fill(Tile& tile, const Draw& draw, int64_t image, int64_t first_counter) {
    const auto run_seed = uint32_t(draw.seeds[2 * image]);
    const auto image_index = uint32_t(draw.seeds[2 * image + 1]);
    const auto first = uint32_t(first_counter);
    const uint32_t step = draw.step, stream = draw.stream;
    for (uint32_t i = 0; i < counters; ++i) {
        const Words words = philox4x32({{first + i, 0, step, stream}}, image_index, run_seed);
        for (int lane = 0; lane < 4; ++lane) tile.lane[lane][i] = words.lane[lane];
    }
}

void store(const Tile& tile, int64_t* out, int64_t wanted) {
    for (int64_t e = 0; e < wanted; ++e) out[e] = tile.lane[e % 4][e / 4];
}

void store(const Tile& tile, float* out, int64_t wanted) {
    float normal[elements];
    for (int64_t i = 0; i < counters; ++i) {
        float* z = normal + 4 * i;
        box_muller(tile.lane[0][i], tile.lane[1][i], z[0], z[1]);
        box_muller(tile.lane[2][i], tile.lane[3][i], z[2], z[3]);
    }
    std::copy(normal, normal + wanted, out);
}

template <typename Element>
void draw_all(const Draw& draw, Element* out) {
    const int64_t tiles_per_image = (draw.count + elements - 1) / elements;
    const int64_t tiles = draw.images * tiles_per_image;
    const int64_t useful = std::max<int64_t>(1, tiles / tiles_worth_a_thread);
    [[maybe_unused]] const int threads = int(std::min<int64_t>(draw.threads, useful));
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t t = 0; t < tiles; ++t) {
        const int64_t image = t / tiles_per_image, tile_of_image = t % tiles_per_image;
        const int64_t offset = tile_of_image * elements;
        Tile tile;
        fill(tile, draw, image, tile_of_image * counters);
        store(tile, out + image * draw.count + offset, std::min(elements, draw.count - offset));
    }
}

}  // namespace

void philox_bits(const Draw& draw, int64_t* out) { draw_all(draw, out); }
void philox_normal(const Draw& draw, float* out) { draw_all(draw, out); }

}  // namespace fastcond::cpu
