// The diffusion step on a GPU: one pass over memory, the row's index read on the device. It has never run on one: there was
// none where it was written. tests/ops/test_diffusion_step_cuda.py inspects the machine code and runs the source on the CPU.
//
// A thread draws whole Philox counters, and visits the elements that they belong to in 128-bit accesses where the shape and
// the alignment allow. The arithmetic is step.h's, compiled with --fmad=false, as on the CPU: the bits are the CPU's.
#include "diffusion_step.h"

#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace fastcond::cuda {
namespace {

constexpr int threads = 256;

// How a thread's elements lie in memory.
enum class Reach {
    row,             // contiguous: 8 elements of two counters
    three_channels,  // channels_last, C = 3: 4 positions of all channels, three counters
    four_channels,   // channels_last: 4 positions of 4 channels, four counters
    counter,         // any shape: the 4 elements of one counter, one by one
};

// Two 16-bit elements a word.
template <int words>
using Pairs = std::conditional_t<words == 2, uint2, uint4>;

__device__ __forceinline__ uint32_t word_of(const uint2& pairs, int i) { return i == 0 ? pairs.x : pairs.y; }
__device__ __forceinline__ uint32_t word_of(const uint4& pairs, int i) {
    return i == 0 ? pairs.x : i == 1 ? pairs.y : i == 2 ? pairs.z : pairs.w;
}

// `count` (1, 4 or 8) elements, in accesses as wide as there are; more than one lie at a multiple of their size, or of 16.
template <typename T, int count>
__device__ __forceinline__ void load_run(const T* from, float (&to)[count]) {
    if constexpr (count == 1) {
        to[0] = load(*from);
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < count; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(from + i);
            to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
        }
    } else {
        const auto pairs = *reinterpret_cast<const Pairs<count / 2>*>(from);
#pragma unroll
        for (int i = 0; i < count; ++i) to[i] = load(T{uint16_t(word_of(pairs, i / 2) >> (i % 2 * 16))});
    }
}
// In PTX, because the compiler takes a store of float4 apart where it finds it cheaper.
__device__ __forceinline__ void store_four(float* to, float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__)
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(a), "f"(b), "f"(c),
                 "f"(d)
                 : "memory");
#else
    *reinterpret_cast<float4*>(to) = make_float4(a, b, c, d);
#endif
}
template <int count>
__device__ __forceinline__ void store_run(float* to, const float (&from)[count]) {
    if constexpr (count == 1) {
        *to = from[0];
    } else {
#pragma unroll
        for (int i = 0; i < count; i += 4) store_four(to + i, from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
}

// One image of a call.
struct Image {
    StepRow row;
    int64_t first, size;
    uint32_t step, run_seed, image_index;
    float w;
    bool draws;
};

__device__ __forceinline__ void draw(const Image& image, int64_t counter, float (&z)[4]) {
    four_normals(uint32_t(counter), image.step, step_noise_stream, image.image_index, image.run_seed, z);
}

// `count` elements one after another in memory, from element `offset` of the image; z is their noise. All is read before
// anything is written: x may be x_next and history x_0.
template <typename T, int count>
__device__ __forceinline__ void advance(const DiffusionStep& call, const Image& image, int64_t offset,
                                        const float (&z)[count]) {
    const int64_t at = image.first + offset;
    float x[count], g[count], other[count], x_0[count], x_next[count];
    load_run(call.x + at, x);
    load_run(static_cast<const T*>(call.out_cond) + at, g);
    if (call.out_uncond) {
        load_run(static_cast<const T*>(call.out_uncond) + at, other);
#pragma unroll
        for (int i = 0; i < count; ++i) g[i] = guided(g[i], other[i], image.w);
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
        x_0[i] = predict_x_0(image.row, x[i], g[i]);
        x_next[i] = next_x(image.row, x[i], x_0[i], g[i]);
    }
    if (call.history) {
        load_run(call.history + at, other);
#pragma unroll
        for (int i = 0; i < count; ++i) x_next[i] = add_term(x_next[i], image.row.k_h, other[i]);
    }
    if (image.draws) {
#pragma unroll
        for (int i = 0; i < count; ++i) x_next[i] = add_term(x_next[i], image.row.k_n, z[i]);
    }
    store_run(call.x_next + at, x_next);
    if (call.halves == 2) store_run(call.x_next + call.batch * image.size + at, x_next);
    store_run(call.x_0 + at, x_0);
}

template <typename T>
__device__ __forceinline__ void advance_row(const DiffusionStep& call, const Image& image, int64_t unit) {
    float z[8];
    if (image.draws) {
        float four[4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            draw(image, 2 * unit + half, four);
#pragma unroll
            for (int i = 0; i < 4; ++i) z[4 * half + i] = four[i];
        }
    }
    advance<T>(call, image, 8 * unit, z);
}

// 4 positions of `channels` channels, of which a position has `blocks` times as many.
template <typename T, int channels>
__device__ __forceinline__ void advance_channels(const DiffusionStep& call, const Image& image, int64_t unit) {
    const int64_t blocks = call.channels / channels;
    const int64_t position = unit / blocks * 4, channel = unit % blocks * channels;
    float z[channels][4];
    if (image.draws) {
#pragma unroll
        for (int c = 0; c < channels; ++c) draw(image, ((channel + c) * call.positions + position) / 4, z[c]);
    }
    // In memory the 4 positions follow each other at once if a position has three channels, else `call.channels` apart.
    const int64_t pitch = channels == 3 ? 4 : call.channels;
    const int64_t start = position * call.channels + channel;
#pragma unroll
    for (int run = 0; run < channels; ++run) {
        float of_run[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) of_run[i] = z[(4 * run + i) % channels][(4 * run + i) / channels];
        advance<T>(call, image, start + run * pitch, of_run);
    }
}

template <typename T>
__device__ __forceinline__ void advance_counter(const DiffusionStep& call, const Image& image, int64_t unit) {
    float z[4];
    if (image.draws) draw(image, unit, z);
    int64_t channel = 4 * unit / call.positions, position = 4 * unit - channel * call.positions;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (4 * unit + i >= image.size) return;
        const int64_t offset = call.channels_last ? position * call.channels + channel : 4 * unit + i;
        const float one[1] = {z[i]};
        advance<T>(call, image, offset, one);
        if (++position == call.positions) {
            position = 0;
            ++channel;
        }
    }
}

// Two blocks a multiprocessor leave 128 registers a thread; asked for none or for three, ptxas spills on sm_100 and sm_120.
template <typename T, Reach reach>
__global__ void __launch_bounds__(threads, 2) diffusion_step(const DiffusionStep call, int64_t units) {
    const int64_t index = *call.row;
    if (index < 0 || index >= call.rows) __trap();
    Image image;
    image.row = step_row(call.coefficients + index * step_columns);
    image.step = uint32_t(index);
    image.size = call.channels * call.positions;
    // Noise is finite, so where k_n is 0 it adds exactly nothing.
    image.draws = call.draws_noise && image.row.k_n != 0.0f;
    for (int64_t b = blockIdx.y; b < call.batch; b += gridDim.y) {
        image.first = b * image.size;
        image.run_seed = uint32_t(call.seeds[2 * b]);
        image.image_index = uint32_t(call.seeds[2 * b + 1]);
        image.w = call.guidance ? call.guidance[b] : 1.0f;
        const int64_t stride = int64_t(gridDim.x) * threads;
        for (int64_t unit = int64_t(blockIdx.x) * threads + threadIdx.x; unit < units; unit += stride) {
            if constexpr (reach == Reach::row) advance_row<T>(call, image, unit);
            if constexpr (reach == Reach::three_channels) advance_channels<T, 3>(call, image, unit);
            if constexpr (reach == Reach::four_channels) advance_channels<T, 4>(call, image, unit);
            if constexpr (reach == Reach::counter) advance_counter<T>(call, image, unit);
        }
    }
}

// Whether all arrays begin at a multiple of 16 bytes; with `size` elements an image a multiple of 8, so does each image.
bool is_aligned(const DiffusionStep& call) {
    const void* arrays[] = {call.x, call.out_cond, call.out_uncond, call.history, call.x_next, call.x_0};
    for (const void* array : arrays)
        if (reinterpret_cast<std::uintptr_t>(array) % 16) return false;
    return true;
}

Reach reach_of(const DiffusionStep& call) {
    const int64_t C = call.channels, P = call.positions;
    if (!is_aligned(call)) return Reach::counter;
    if (!call.channels_last) return C * P % 8 == 0 ? Reach::row : Reach::counter;
    if (P % 4) return Reach::counter;
    return C == 3 ? Reach::three_channels : C % 4 == 0 ? Reach::four_channels : Reach::counter;
}

template <typename T, Reach reach>
const char* launch(const DiffusionStep& call, int64_t elements_a_thread, cudaStream_t stream) {
    const int64_t units = (call.channels * call.positions + elements_a_thread - 1) / elements_a_thread;
    const int64_t blocks = (units + threads - 1) / threads;
    constexpr int64_t most_blocks = 0x7FFFFFFF, most_rows = 65535;
    const dim3 grid(unsigned(blocks < most_blocks ? blocks : most_blocks),
                    unsigned(call.batch < most_rows ? call.batch : most_rows));
#if defined(__CUDACC__)
    diffusion_step<T, reach><<<grid, threads, 0, stream>>>(call, units);
#else
    run_on_the_cpu(grid, threads, diffusion_step<T, reach>, call, units);
#endif
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template <typename T>
const char* launch(const DiffusionStep& call, cudaStream_t stream) {
    switch (reach_of(call)) {
        case Reach::row: return launch<T, Reach::row>(call, 8, stream);
        case Reach::three_channels: return launch<T, Reach::three_channels>(call, 12, stream);
        case Reach::four_channels: return launch<T, Reach::four_channels>(call, 16, stream);
        default: return launch<T, Reach::counter>(call, 4, stream);
    }
}

}  // namespace
}  // namespace fastcond::cuda

extern "C" const char* fastcond_diffusion_step_cuda(const fastcond::DiffusionStep* call, void* stream) {
    if (call->batch * call->channels * call->positions == 0) return nullptr;
    const auto on = static_cast<cudaStream_t>(stream);
    switch (call->stored) {
        case fastcond::Stored::bfloat16: return fastcond::cuda::launch<fastcond::BFloat16>(*call, on);
        case fastcond::Stored::float16: return fastcond::cuda::launch<fastcond::Float16>(*call, on);
        default: return fastcond::cuda::launch<float>(*call, on);
    }
}
