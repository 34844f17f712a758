// What a CUDA source needs of CUDA to be compiled as C++ and run block by block on the CPU: its indices, its arithmetic and
// its accesses are tested where there is no GPU. For kernels without barriers and shared memory.
#pragma once

#include <cstdint>
#include <cstdlib>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct float4 {
    float x, y, z, w;
};
struct uint2 {
    uint32_t x, y;
};
struct uint4 {
    uint32_t x, y, z, w;
};
struct dim3 {
    unsigned x, y;
    dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline void __trap() { std::abort(); }

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

inline dim3 gridDim, blockIdx, threadIdx;

template <typename Kernel, typename... Arguments>
void run_on_the_cpu(dim3 grid, int threads, Kernel kernel, const Arguments&... arguments) {
    gridDim = grid;
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
            for (threadIdx.x = 0; threadIdx.x < unsigned(threads); ++threadIdx.x) kernel(arguments...);
}
