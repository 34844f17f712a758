// AdaGN's loops, compiled once for each instruction set (FASTCOND_ISA names it, CMakeLists.txt lists them).
//
// A unit of work is one image's groups (channels_last) or one group (contiguous). It is computed by one thread, in an
// order that depends on its own shape alone: the same bits at any batch size and any number of threads. Sums run over a
// fixed number of float32 lanes and few elements, and then in double.
//
// No standard-library templates: the linker would keep one instance for all builds, perhaps the one with the widest
// instructions.
#include <cmath>
#include <cstdlib>

#include "ada_group_norm.h"
#include "fastcond/simd.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t lanes = 32;
constexpr int64_t lane_rows = 32;                // elements a float32 lane sums before it is added to a double
constexpr int64_t elements_worth_a_thread = 8192;  // fewer are done before a second thread has woken up

FASTCOND_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int threads_for(const AdaGroupNorm& call, int64_t units) {
    const int64_t useful = call.batch * call.channels * call.positions / elements_worth_a_thread;
    const int64_t threads = smaller(smaller(call.threads, useful), units);
    return threads < 1 ? 1 : int(threads);
}

// Memory that a thread keeps from call to call.
template <typename Number>
struct Scratch {
    Number* memory = nullptr;
    int64_t size = 0;

    Number* take(int64_t count) {
        if (count > size) {
            std::free(memory);
            memory = static_cast<Number*>(std::malloc(size_t(count) * sizeof(Number)));
            if (memory == nullptr) std::abort();  // no exception may leave a parallel region
            size = count;
        }
        return memory;
    }
    ~Scratch() { std::free(memory); }
};

float* scratch(int64_t count) {
    thread_local Scratch<float> memory;
    return memory.take(count);
}

// `rows` rows of `count` float32.
float* channel_rows(int rows, int64_t count) {
    thread_local Scratch<float> memory;
    return memory.take(rows * count);
}

template <typename Number>
FASTCOND_INLINE void fill(Number* first, int64_t count, Number value) {
    for (int64_t i = 0; i < count; ++i) first[i] = value;
}

// Two rows of `count` zeros.
double* totals(int64_t count) {
    thread_local Scratch<double> memory;
    double* zeros = memory.take(2 * count);
    fill(zeros, 2 * count, 0.0);
    return zeros;
}

// gain = weight (1 + scale) and offset = bias (1 + scale) + shift of one image's channel.
struct Affine {
    float gain, offset;
};

Affine affine(const AdaGroupNorm& call, int64_t image, int64_t channel) {
    const float one_plus = call.scale ? 1.0f + call.scale[image * call.scale_stride + channel] : 1.0f;
    const float gain = call.weight ? call.weight[channel] * one_plus : one_plus;
    float offset = call.bias ? call.bias[channel] * one_plus : 0.0f;
    if (call.shift) offset += call.shift[image * call.shift_stride + channel];
    return {gain, offset};
}

// Sum over i < count of value(i), in lanes.
template <typename Value>
double sum(int64_t count, Value value) {
    double total = 0.0;
    int64_t i = 0;
    while (i + lanes <= count) {
        float partial[lanes] = {};
        const int64_t stop = smaller(count - lanes + 1, i + lanes * lane_rows);
        for (; i < stop; i += lanes)
            for (int64_t lane = 0; lane < lanes; ++lane) partial[lane] += value(i + lane);
        for (int64_t lane = 0; lane < lanes; ++lane) total += partial[lane];
    }
    for (; i < count; ++i) total += value(i);
    return total;
}

// Sums over rows of value(row, column) for each column, added to `total`.
template <typename Value>
void sum_columns(int64_t rows, int64_t columns, double* total, float* partial, Value value) {
    for (int64_t first = 0; first < rows; first += lane_rows) {
        const int64_t stop = smaller(rows, first + lane_rows);
        fill(partial, columns, 0.0f);
        int64_t row = first;
        for (; row + 4 <= stop; row += 4)
            for (int64_t c = 0; c < columns; ++c)
                partial[c] += (value(row, c) + value(row + 1, c)) + (value(row + 2, c) + value(row + 3, c));
        for (; row < stop; ++row)
            for (int64_t c = 0; c < columns; ++c) partial[c] += value(row, c);
        for (int64_t c = 0; c < columns; ++c) total[c] += partial[c];
    }
}

double sum_group(const double* columns, int64_t first, int64_t count) {
    double total = 0.0;
    for (int64_t c = first; c < first + count; ++c) total += columns[c];
    return total;
}

float reciprocal_root(double sum_of_squares, double count, float eps) {
    return float(1.0 / std::sqrt(sum_of_squares / count + double(eps)));
}

// mean[0] is pivot + centre rounded, mean[1] what the rounding left out: the backward needs no reduction for it.
void keep_mean(const AdaGroupNorm& call, float* mean, int64_t group_of_batch, float pivot, float centre) {
    const float rounded = pivot + centre;
    mean[group_of_batch] = rounded;
    mean[call.batch * call.groups + group_of_batch] = (pivot - rounded) + centre;
}

template <bool silu_on>
FASTCOND_INLINE float activate(float u) {
    return silu_on ? silu(u) : u;
}

template <typename T, bool silu_on>
void forward_contiguous(const AdaGroupNorm& call, const AdaGroupNormForward& forward, int64_t unit) {
    const int64_t image = unit / call.groups, group = unit % call.groups;
    const int64_t width = call.channels / call.groups, count = width * call.positions;
    const T* x = static_cast<const T*>(call.x) + unit * count;
    T* y = static_cast<T*>(forward.y) + unit * count;
    // Distances to one element: a constant group is exactly 0, and large means cost no digits.
    const float pivot = load(x[0]);
    const float centre = float(sum(count, [=](int64_t i) { return load(x[i]) - pivot; }) / double(count));
    const double squares = sum(count, [=](int64_t i) {
        const float d = (load(x[i]) - pivot) - centre;
        return d * d;
    });
    const float rstd = reciprocal_root(squares, double(count), forward.eps);
    keep_mean(call, forward.mean, unit, pivot, centre);
    forward.rstd[unit] = rstd;
    for (int64_t c = 0; c < width; ++c) {
        const auto [gain, offset] = affine(call, image, group * width + c);
        const T* in = x + c * call.positions;
        T* out = y + c * call.positions;
        for (int64_t i = 0; i < call.positions; ++i)
            store(out[i], activate<silu_on>(((load(in[i]) - pivot) - centre) * rstd * gain + offset));
    }
}

template <typename T, bool silu_on>
void forward_channels_last(const AdaGroupNorm& call, const AdaGroupNormForward& forward, int64_t image) {
    const int64_t C = call.channels, width = C / call.groups;
    const double count = double(width * call.positions);
    const T* x = static_cast<const T*>(call.x) + image * C * call.positions;
    T* y = static_cast<T*>(forward.y) + image * C * call.positions;
    float* rows = channel_rows(5, C);
    float *pivot = rows, *centre = rows + C, *gain = rows + 2 * C, *offset = rows + 3 * C, *partial = rows + 4 * C;
    for (int64_t c = 0; c < C; ++c) pivot[c] = load(x[c / width * width]);
    double *sums = totals(C), *squares = sums + C;
    sum_columns(call.positions, C, sums, partial, [=](int64_t p, int64_t c) { return load(x[p * C + c]) - pivot[c]; });
    for (int64_t g = 0; g < call.groups; ++g) {
        const float of_group = float(sum_group(sums, g * width, width) / count);
        fill(centre + g * width, width, of_group);
        keep_mean(call, forward.mean, image * call.groups + g, pivot[g * width], of_group);
    }
    sum_columns(call.positions, C, squares, partial, [=](int64_t p, int64_t c) {
        const float d = (load(x[p * C + c]) - pivot[c]) - centre[c];
        return d * d;
    });
    float* rstd = partial;
    for (int64_t g = 0; g < call.groups; ++g) {
        const float of_group = reciprocal_root(sum_group(squares, g * width, width), count, forward.eps);
        fill(rstd + g * width, width, of_group);
        forward.rstd[image * call.groups + g] = of_group;
    }
    for (int64_t c = 0; c < C; ++c) {
        const Affine a = affine(call, image, c);
        gain[c] = a.gain;
        offset[c] = a.offset;
    }
    for (int64_t p = 0; p < call.positions; ++p) {
        const T* in = x + p * C;
        T* out = y + p * C;
#pragma GCC ivdep
        for (int64_t c = 0; c < C; ++c)
            store(out[c], activate<silu_on>(((load(in[c]) - pivot[c]) - centre[c]) * rstd[c] * gain[c] + offset[c]));
    }
}

template <bool silu_on>
FASTCOND_INLINE float slope(float u) {
    return silu_on ? silu_slope(u) : 1.0f;
}

template <typename T, bool silu_on>
void backward_contiguous(const AdaGroupNorm& call, const AdaGroupNormBackward& backward, int64_t unit) {
    const int64_t image = unit / call.groups, group = unit % call.groups;
    const int64_t P = call.positions, width = call.channels / call.groups, count = width * P;
    const T* x = static_cast<const T*>(call.x) + unit * count;
    const T* dy = static_cast<const T*>(backward.dy) + unit * count;
    T* dx = static_cast<T*>(backward.dx) + unit * count;
    const float mean = backward.mean[unit], left = backward.mean[call.batch * call.groups + unit];
    const float rstd = backward.rstd[unit];
    float* du = scratch(count);
    double m1 = 0.0, m2 = 0.0;
    for (int64_t c = 0; c < width; ++c) {
        const auto [gain, offset] = affine(call, image, group * width + c);
        const T *in = x + c * P, *given = dy + c * P;
        float* du_c = du + c * P;
        for (int64_t i = 0; i < P; ++i) {
            const float xh = ((load(in[i]) - mean) - left) * rstd;
            du_c[i] = load(given[i]) * slope<silu_on>(xh * gain + offset);
        }
        const double A = sum(P, [=](int64_t i) { return du_c[i] * (((load(in[i]) - mean) - left) * rstd); });
        const double B = sum(P, [=](int64_t i) { return du_c[i]; });
        backward.A[image * call.channels + group * width + c] = float(A);
        backward.B[image * call.channels + group * width + c] = float(B);
        m1 += double(gain) * A;
        m2 += double(gain) * B;
    }
    const float mean1 = float(m1 / double(count)), mean2 = float(m2 / double(count));
    for (int64_t c = 0; c < width; ++c) {
        const float gain = affine(call, image, group * width + c).gain;
        const T* in = x + c * P;
        const float* du_c = du + c * P;
        T* out = dx + c * P;
#pragma GCC ivdep
        for (int64_t i = 0; i < P; ++i) {
            const float xh = ((load(in[i]) - mean) - left) * rstd;
            store(out[i], rstd * ((gain * du_c[i] - mean2) - xh * mean1));
        }
    }
}

template <typename T, bool silu_on>
void backward_channels_last(const AdaGroupNorm& call, const AdaGroupNormBackward& backward, int64_t image) {
    const int64_t C = call.channels, P = call.positions, width = C / call.groups;
    const double count = double(width * P);
    const T* x = static_cast<const T*>(call.x) + image * C * P;
    const T* dy = static_cast<const T*>(backward.dy) + image * C * P;
    T* dx = static_cast<T*>(backward.dx) + image * C * P;
    float* du = scratch(C * P);
    float* rows = channel_rows(8, C);
    float *mean = rows, *left = rows + C, *rstd = rows + 2 * C, *gain = rows + 3 * C, *offset = rows + 4 * C;
    float *mean1 = rows + 5 * C, *mean2 = rows + 6 * C, *partial = rows + 7 * C;
    for (int64_t c = 0; c < C; ++c) {
        mean[c] = backward.mean[image * call.groups + c / width];
        left[c] = backward.mean[(call.batch + image) * call.groups + c / width];
        rstd[c] = backward.rstd[image * call.groups + c / width];
        const Affine a = affine(call, image, c);
        gain[c] = a.gain;
        offset[c] = a.offset;
    }
    for (int64_t p = 0; p < P; ++p) {
        const T *in = x + p * C, *given = dy + p * C;
        float* out = du + p * C;
#pragma GCC ivdep
        for (int64_t c = 0; c < C; ++c) {
            const float xh = ((load(in[c]) - mean[c]) - left[c]) * rstd[c];
            out[c] = load(given[c]) * slope<silu_on>(xh * gain[c] + offset[c]);
        }
    }
    double *A = totals(C), *B = A + C;
    sum_columns(P, C, A, partial, [=](int64_t p, int64_t c) {
        return du[p * C + c] * (((load(x[p * C + c]) - mean[c]) - left[c]) * rstd[c]);
    });
    sum_columns(P, C, B, partial, [=](int64_t p, int64_t c) { return du[p * C + c]; });
    for (int64_t g = 0; g < call.groups; ++g) {
        double m1 = 0.0, m2 = 0.0;
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
            backward.A[image * C + c] = float(A[c]);
            backward.B[image * C + c] = float(B[c]);
            m1 += double(gain[c]) * A[c];
            m2 += double(gain[c]) * B[c];
        }
        fill(mean1 + g * width, width, float(m1 / count));
        fill(mean2 + g * width, width, float(m2 / count));
    }
    for (int64_t p = 0; p < P; ++p) {
        const T* in = x + p * C;
        const float* du_p = du + p * C;
        T* out = dx + p * C;
#pragma GCC ivdep
        for (int64_t c = 0; c < C; ++c) {
            const float xh = ((load(in[c]) - mean[c]) - left[c]) * rstd[c];
            store(out[c], rstd[c] * ((gain[c] * du_p[c] - mean2[c]) - xh * mean1[c]));
        }
    }
}

template <typename Unit>
void for_each_unit(const AdaGroupNorm& call, int64_t units, Unit unit) {
    [[maybe_unused]] const int threads = threads_for(call, units);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < units; ++i) unit(i);
}

template <typename T, bool silu_on>
void run(const AdaGroupNorm& call, const AdaGroupNormForward& f) {
    if (call.channels_last)
        for_each_unit(call, call.batch, [&](int64_t i) { forward_channels_last<T, silu_on>(call, f, i); });
    else
        for_each_unit(call, call.batch * call.groups, [&](int64_t i) { forward_contiguous<T, silu_on>(call, f, i); });
}

template <typename T, bool silu_on>
void run(const AdaGroupNorm& call, const AdaGroupNormBackward& b) {
    if (call.channels_last)
        for_each_unit(call, call.batch, [&](int64_t i) { backward_channels_last<T, silu_on>(call, b, i); });
    else
        for_each_unit(call, call.batch * call.groups, [&](int64_t i) { backward_contiguous<T, silu_on>(call, b, i); });
}

template <typename Pass>
void choose(const AdaGroupNorm& call, const Pass& pass) {
    if (call.bfloat16)
        call.silu ? run<BFloat16, true>(call, pass) : run<BFloat16, false>(call, pass);
    else
        call.silu ? run<float, true>(call, pass) : run<float, false>(call, pass);
}

}  // namespace

void ada_group_norm(const AdaGroupNorm& call, const AdaGroupNormForward& forward) { choose(call, forward); }
void ada_group_norm_backward(const AdaGroupNorm& call, const AdaGroupNormBackward& backward) { choose(call, backward); }

}  // namespace fastcond::cpu::FASTCOND_ISA
