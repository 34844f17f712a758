// The diffusion step's loops, compiled once for each instruction set (FASTCOND_ISA names it).
//
// A unit of work is a tile of one image. Noise is keyed by the logical element whatever the layout, so nothing depends on
// the batch, the number of threads or how the memory is walked.
#include <cstring>

#include "diffusion_step.h"
#include "fastcond/simd.h"
#include "noise.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t tile_counters = 64;
constexpr int64_t tile_elements = 4 * tile_counters;
// channels_last: positions and channels of a tile. A row of counters covers the positions of one channel; where an image
// has channels that do not begin with a counter, up to three of its normals belong to the neighbours.
constexpr int64_t row_counters = 32;
constexpr int64_t row_channels = 16;
// Fewer elements are done before a second thread has woken up.
constexpr int64_t noisy_elements_worth_a_thread = 4096;
constexpr int64_t elements_worth_a_thread = 16384;

FASTCOND_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// One call as an image sees it.
struct Image {
    int64_t first;  // the image's first element in every array
    float w;
    NoiseKey key;
};

Image image_of(const DiffusionStep& call, int64_t image) {
    return {image * call.channels * call.positions, call.guidance ? call.guidance[image] : 1.0f,
            {uint32_t(call.seeds[2 * image]), uint32_t(call.seeds[2 * image + 1]), uint32_t(*call.row), step_noise_stream}};
}

// `count` elements one after another in memory, from element `first` of all arrays; z is their noise.
template <typename T, bool guides, bool keeps, bool draws>
void advance(const DiffusionStep& call, const StepRow& table_row, float w, int64_t first, int64_t count, const float* z) {
    const StepRow row = table_row;  // a copy, so that no store can be taken for a change of it
    const float* x = call.x + first;
    const T* cond = static_cast<const T*>(call.out_cond) + first;
    const T* uncond = guides ? static_cast<const T*>(call.out_uncond) + first : nullptr;
    const float* history = keeps ? call.history + first : nullptr;
    float *x_next = call.x_next + first, *x_0 = call.x_0 + first;
    // x may be x_next and history x_0, element for element.
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
        const float g = guides ? guided(load(cond[i]), load(uncond[i]), w) : load(cond[i]);
        const float predicted = predict_x_0(row, x[i], g);
        float next = next_x(row, x[i], predicted, g);
        if (keeps) next = add_term(next, row.k_h, history[i]);
        if (draws) next = add_term(next, row.k_n, z[i]);
        x_next[i] = next;
        x_0[i] = predicted;
    }
    if (call.halves == 2)
        std::memcpy(x_next + call.batch * call.channels * call.positions, x_next, size_t(count) * sizeof(float));
}

using Advance = void (*)(const DiffusionStep&, const StepRow&, float, int64_t, int64_t, const float*);

template <typename T>
Advance choose(const DiffusionStep& call, bool draws) {
    if (call.out_uncond) {
        if (call.history) return draws ? advance<T, true, true, true> : advance<T, true, true, false>;
        return draws ? advance<T, true, false, true> : advance<T, true, false, false>;
    }
    if (call.history) return draws ? advance<T, false, true, true> : advance<T, false, true, false>;
    return draws ? advance<T, false, false, true> : advance<T, false, false, false>;
}

Advance choose(const DiffusionStep& call, bool draws) {
    switch (call.stored) {
        case Stored::bfloat16: return choose<BFloat16>(call, draws);
        case Stored::float16: return choose<Float16>(call, draws);
        default: return choose<float>(call, draws);
    }
}

int64_t positions_of_a_tile(const DiffusionStep& call) {
    return 4 * row_counters - (call.positions % 4 == 0 ? 0 : 4);
}

// The noise of a tile in memory order, `channels` of them a position.
void draw_channels(const DiffusionStep& call, const Image& image, int64_t position, int64_t positions, int64_t channel,
                   int64_t channels, float* z) {
    float normal[row_channels][4 * row_counters];
    int64_t skipped[row_channels];  // normals of the first counter that belong to the position before
    for (int64_t c = 0; c < channels; ++c) {
        const int64_t element = (channel + c) * call.positions + position;
        draw_normals<row_counters>(image.key, uint32_t(element / 4), normal[c]);
        skipped[c] = element % 4;
    }
    if (channels == 3) {  // colours: with three known, the compiler merges the rows by shuffles
        const float *red = normal[0] + skipped[0], *green = normal[1] + skipped[1], *blue = normal[2] + skipped[2];
        for (int64_t p = 0; p < positions; ++p) {
            z[3 * p] = red[p];
            z[3 * p + 1] = green[p];
            z[3 * p + 2] = blue[p];
        }
        return;
    }
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t p = 0; p < positions; ++p) z[p * channels + c] = normal[c][skipped[c] + p];
}

void advance_channels_last(const DiffusionStep& call, const StepRow& row, Advance advance, bool draws, int64_t image_index,
                           int64_t tile) {
    const Image image = image_of(call, image_index);
    const int64_t C = call.channels, position = tile * positions_of_a_tile(call);
    const int64_t positions = smaller(positions_of_a_tile(call), call.positions - position);
    for (int64_t channel = 0; channel < C; channel += row_channels) {
        const int64_t channels = smaller(row_channels, C - channel);
        float z[4 * row_counters * row_channels];
        if (draws) draw_channels(call, image, position, positions, channel, channels, z);
        if (channels == C) {
            advance(call, row, image.w, image.first + position * C, positions * C, z);
            continue;
        }
        for (int64_t p = 0; p < positions; ++p)
            advance(call, row, image.w, image.first + (position + p) * C + channel, channels, z + p * channels);
    }
}

void advance_contiguous(const DiffusionStep& call, const StepRow& row, Advance advance, bool draws, int64_t image_index,
                        int64_t tile) {
    const Image image = image_of(call, image_index);
    const int64_t offset = tile * tile_elements;
    float z[tile_elements];
    if (draws) draw_normals<tile_counters>(image.key, uint32_t(tile * tile_counters), z);
    advance(call, row, image.w, image.first + offset, smaller(tile_elements, call.channels * call.positions - offset), z);
}

}  // namespace

void diffusion_step(const DiffusionStep& call, const StepRow& row, bool draws, int most_threads) {
    const Advance advance = choose(call, draws);
    const int64_t per_image = call.channels * call.positions;
    const int64_t per_tile = call.channels_last ? positions_of_a_tile(call) : tile_elements;
    const int64_t tiles = ((call.channels_last ? call.positions : per_image) + per_tile - 1) / per_tile;
    const int64_t worth = draws ? noisy_elements_worth_a_thread : elements_worth_a_thread;
    const int64_t useful = smaller(smaller(most_threads, call.batch * per_image / worth), call.batch * tiles);
    [[maybe_unused]] const int threads = useful < 1 ? 1 : int(useful);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t t = 0; t < call.batch * tiles; ++t) {
        if (call.channels_last)
            advance_channels_last(call, row, advance, draws, t / tiles, t % tiles);
        else
            advance_contiguous(call, row, advance, draws, t / tiles, t % tiles);
    }
}

}  // namespace fastcond::cpu::FASTCOND_ISA
