// One row of a sampler's table, applied to one element: the arithmetic that the CPU's and the GPU's kernel share.
// fastcond/ops/diffusion_step/reference.py defines what is computed; in its order and without contraction into fused
// multiply-adds, so the bits are the reference's.
#pragma once

#include <cstdint>

#include "fastcond/philox.h"
#include "fastcond/simd.h"

namespace fastcond {

// One call. x, history, x_0 and both outputs are [batch, channels, positions] or, channels_last, [batch, positions,
// channels]; x_next is that once or twice, one after another. All pointers are of one device.
struct DiffusionStep {
    const float* x;
    const void* out_cond;
    const void* out_uncond;     // null: no guidance
    const float* history;       // null: none
    const float* coefficients;  // [rows, step_columns]
    const int64_t* row;         // one number in [0, rows)
    const float* guidance;      // [batch], with out_uncond
    const int64_t* seeds;       // [batch, 2] = (run seed, image index), of which 32 bits are used
    float* x_next;
    float* x_0;
    int64_t batch;
    int64_t channels;
    int64_t positions;
    int64_t rows;
    int64_t halves;  // of x_next: 1 or 2
    bool channels_last;
    bool draws_noise;
    Stored stored;  // out_cond and out_uncond
};

// Which of philox's streams a step draws from: STEP_NOISE of fastcond/ops/philox.
constexpr uint32_t step_noise_stream = 1;

// A row of StepTable.coefficients, in the order of its columns.
struct StepRow {
    float p_x, p_o, clip, k_x, k_0, k_o, k_h, k_n;
};
constexpr int64_t step_columns = 8;

FASTCOND_INLINE StepRow step_row(const float* columns) {
    return {columns[0], columns[1], columns[2], columns[3], columns[4], columns[5], columns[6], columns[7]};
}

// u + w (c - u): classifier-free guidance.
FASTCOND_INLINE float guided(float cond, float uncond, float w) { return uncond + w * (cond - uncond); }

// x_0 = clamp(p_x x + p_o g, -c, c). A NaN fails both comparisons and passes through, as in torch.clamp.
FASTCOND_INLINE float predict_x_0(const StepRow& row, float x, float g) {
    const float free = row.p_x * x + row.p_o * g;
    const float above = free < -row.clip ? -row.clip : free;
    return above > row.clip ? row.clip : above;
}

// x' without history and noise, which are added by `add_term` in this order.
FASTCOND_INLINE float next_x(const StepRow& row, float x, float x_0, float g) {
    return row.k_x * x + row.k_0 * x_0 + row.k_o * g;
}

FASTCOND_INLINE float add_term(float sum, float coefficient, float value) { return sum + coefficient * value; }

// Normals 4 counter to 4 counter + 3 of an image, in logical [C, H, W] order.
FASTCOND_INLINE void four_normals(uint32_t counter, uint32_t step, uint32_t stream, uint32_t image_index, uint32_t run_seed,
                                  float (&z)[4]) {
    const Words words = philox4x32({{counter, 0, step, stream}}, image_index, run_seed);
    box_muller(words.lane[0], words.lane[1], z[0], z[1]);
    box_muller(words.lane[2], words.lane[3], z[2], z[3]);
}

}  // namespace fastcond
