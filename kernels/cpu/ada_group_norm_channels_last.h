// AdaGN of [B, positions, C]: a unit of work is some whole groups of one image, a block of its columns.
//
// A block is walked in tiles of sixteen columns. A column's sums do not depend on the block that it is in: blocks may be
// chosen for the cache and the number of threads without changing a bit.
#pragma once

#include "ada_group_norm_shared.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t strip = 16;            // positions walked at once, each a stream of memory
constexpr int64_t units_a_thread = 2;
constexpr int64_t line_columns = 16;     // a block narrower than a cache line would read it twice
constexpr int64_t few_columns = 64;      // narrower blocks make poor streams of memory
constexpr int64_t kept_elements = 65536;  // of what a block keeps between its passes: 256 KiB

// How an image is cut into blocks of `groups` groups, the last one perhaps smaller.
struct Blocks {
    int64_t groups, count;
};

// Whole rows, unless every thread is to have work or what is kept of a block is to stay in a cache.
inline Blocks blocks_of(const AdaGroupNorm& call, bool keeps) {
    const int64_t width = call.channels / call.groups;
    int64_t aligned = 1;  // groups that fill whole tiles
    while (aligned * width % lanes) aligned *= 2;
    const int64_t wanted = (units_a_thread * call.threads + call.batch - 1) / call.batch;
    int64_t columns = (call.groups + wanted - 1) / wanted * width;
    if (keeps) columns = smaller(columns, larger(kept_elements / call.positions, few_columns));
    columns = larger(columns, line_columns);
    const int64_t groups = (columns + width - 1) / width;
    const int64_t of_block = smaller(groups >= aligned ? groups / aligned * aligned : groups, call.groups);
    return {of_block, (call.groups + of_block - 1) / of_block};
}

// One block: its place, and scratch whose rows of numbers have one entry a column, filled up to whole tiles.
struct Block {
    int64_t image, first_group, groups, width, first_column, columns, tiles;
    float* numbers;  // rows of 16 tiles
    double* sums;    // rows of 16 tiles
    float* packed;   // tiles of [positions][16]

    FASTCOND_INLINE float* row(int index) const { return numbers + index * tiles * lanes; }
    FASTCOND_INLINE double* sum(int index) const { return sums + index * tiles * lanes; }
};

inline Block block_of(const AdaGroupNorm& call, const Blocks& blocks, int64_t unit, int rows, int sums, int arrays) {
    thread_local Scratch<float> numbers, packed;
    thread_local Scratch<double> totals;
    Block block;
    block.image = unit / blocks.count;
    block.first_group = unit % blocks.count * blocks.groups;
    block.groups = smaller(blocks.groups, call.groups - block.first_group);
    block.width = call.channels / call.groups;
    block.first_column = block.first_group * block.width;
    block.columns = block.groups * block.width;
    block.tiles = (block.columns + lanes - 1) / lanes;
    block.numbers = numbers.take(rows * block.tiles * lanes);
    block.sums = totals.take(sums * block.tiles * lanes);
    block.packed = packed.take(arrays * block.tiles * lanes * call.positions);
    for (int64_t i = 0; i < rows * block.tiles * lanes; ++i) block.numbers[i] = 0.0f;
    for (int64_t i = 0; i < sums * block.tiles * lanes; ++i) block.sums[i] = 0.0;
    return block;
}

FASTCOND_INLINE double sum_group(const Block& block, const double* columns, int64_t group) {
    double total = 0.0;
    for (int64_t c = group * block.width; c < (group + 1) * block.width; ++c) total += columns[c];
    return total;
}

FASTCOND_INLINE void fill_group(const Block& block, float* columns, int64_t group, float value) {
    for (int64_t c = group * block.width; c < (group + 1) * block.width; ++c) columns[c] = value;
}

// Lanes of a row of x or dy: a tile's, or the `count` that its last one has.
template <bool whole, typename T>
FASTCOND_INLINE Lanes load_tile(const T* from, int64_t count) {
    if constexpr (whole) return load_lanes(from);
    return load_lanes(from, count);
}
template <bool whole, bool streams, typename T>
FASTCOND_INLINE void store_tile(T* to, const Lanes& value, int64_t count) {
    if constexpr (!whole)
        store_lanes(to, value, count);
    else if constexpr (streams)
        stream_lanes(to, value);
    else
        store_lanes(to, value);
}

// Calls run(tile, first position, last position) for all tiles of a few positions between `begin` and `end`, and then of the
// next ones: memory is walked nearly in its order, which is what hardware prefetches.
template <typename Run>
FASTCOND_INLINE void for_each_strip(const Block& block, int64_t begin, int64_t end, Run run) {
    for (int64_t first = begin; first < end; first += strip)
        for (int64_t tile = 0; tile < block.tiles; ++tile) run(tile, first, smaller(end, first + strip));
}

FASTCOND_INLINE void add_to(float* partial, const Lanes& sums) { store_lanes(partial, load_lanes(partial) + sums); }

// partial += the distances of some rows to the pivot.
template <bool whole, typename T>
FASTCOND_INLINE void sum_rows(const T* x, int64_t C, int64_t count, const Lanes& pivot, int64_t rows, float* partial) {
    Lanes total = all_lanes(0.0f);
    for (int64_t r = 0; r < rows; ++r) total = total + (load_tile<whole>(x + r * C, count) - pivot);
    add_to(partial, total);
}

// Adds `rows` positions, whose distances to the pivot sum to `partial`, to the mean (of that distance) and the sum of squared
// distances to the mean of sixteen columns that `before` positions have had: a second pass over rows that lie in the first
// cache, then Chan's merge in double.
template <bool whole, typename T>
FASTCOND_INLINE void merge_rows(const T* x, int64_t C, int64_t count, const Lanes& pivot, int64_t before, int64_t rows,
                                float* partial, double* mean, double* squares) {
    const Lanes centre = load_lanes(partial) * all_lanes(1.0f / float(rows));
    Lanes even = all_lanes(0.0f), odd = even;
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) {
        const Lanes d0 = (load_tile<whole>(x + r * C, count) - pivot) - centre;
        const Lanes d1 = (load_tile<whole>(x + (r + 1) * C, count) - pivot) - centre;
        even = even + d0 * d0;
        odd = odd + d1 * d1;
    }
    if (r < rows) {
        const Lanes d = (load_tile<whole>(x + r * C, count) - pivot) - centre;
        even = even + d * d;
    }
    float squares_of_rows[lanes];
    store_lanes(partial, centre);
    store_lanes(squares_of_rows, even + odd);
    const double share = double(rows) / double(before + rows), weight = double(before) * share;
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const double delta = double(partial[lane]) - mean[lane];
        mean[lane] += delta * share;
        squares[lane] += double(squares_of_rows[lane]) + delta * delta * weight;
    }
    store_lanes(partial, all_lanes(0.0f));
}

template <bool whole, bool silu_on, bool streams, typename T>
FASTCOND_INLINE void write_rows(const T* x, int64_t rows, const Lanes& pivot, const Lanes& centre, const Lanes& slope,
                                const Lanes& offset, T* y, int64_t C, int64_t count) {
    const auto u = [&](int64_t r) FASTCOND_INLINE_LAMBDA {
        return ((load_tile<whole>(x + r * C, count) - pivot) - centre) * slope + offset;
    };
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const FourLanes four = activate<silu_on>(FourLanes{{u(r), u(r + 1), u(r + 2), u(r + 3)}});
        store_tile<whole, streams>(y + r * C, four.of[0], count);
        store_tile<whole, streams>(y + (r + 1) * C, four.of[1], count);
        store_tile<whole, streams>(y + (r + 2) * C, four.of[2], count);
        store_tile<whole, streams>(y + (r + 3) * C, four.of[3], count);
    }
    for (; r < rows; ++r) store_tile<whole, streams>(y + r * C, activate<silu_on>(u(r)), count);
}

template <typename T, bool silu_on, bool streams>
void forward_channels_last(const AdaGroupNorm& call, const AdaGroupNormForward& forward, const Blocks& blocks, int64_t unit) {
    const int64_t C = call.channels, P = call.positions;
    const Block block = block_of(call, blocks, unit, 5, 2, 0);
    const int64_t start = block.image * C * P + block.first_column;
    const T* x = static_cast<const T*>(call.x) + start;
    T* y = static_cast<T*>(forward.y) + start;
    float *pivot = block.row(0), *centre = block.row(1), *slope = block.row(2), *offset = block.row(3);
    float* partial = block.row(4);
    double *mean = block.sum(0), *squares = block.sum(1);
    // Distances to one element: a constant group is exactly 0, and large means cost no digits.
    for (int64_t c = 0; c < block.columns; ++c) pivot[c] = load(x[c / block.width * block.width]);
    for (int64_t begin = 0; begin < P; begin += rows_a_float) {
        const int64_t end = smaller(P, begin + rows_a_float);
        for_each_strip(block, begin, end, [&](int64_t tile, int64_t first, int64_t last) FASTCOND_INLINE_LAMBDA {
            const int64_t column = tile * lanes, there = block.columns - column, at = first * C + column;
            const Lanes pivots = load_lanes(pivot + column);
            if (there >= lanes)
                sum_rows<true>(x + at, C, lanes, pivots, last - first, partial + column);
            else
                sum_rows<false>(x + at, C, there, pivots, last - first, partial + column);
        });
        for (int64_t column = 0; column < block.columns; column += lanes) {
            const int64_t there = block.columns - column, at = begin * C + column, rows = end - begin;
            const Lanes pivots = load_lanes(pivot + column);
            if (there >= lanes)
                merge_rows<true>(x + at, C, lanes, pivots, begin, rows, partial + column, mean + column, squares + column);
            else
                merge_rows<false>(x + at, C, there, pivots, begin, rows, partial + column, mean + column, squares + column);
        }
    }
    for (int64_t g = 0; g < block.groups; ++g) {
        const double of_group = sum_group(block, mean, g) / double(block.width);
        double total = sum_group(block, squares, g);
        for (int64_t c = g * block.width; c < (g + 1) * block.width; ++c)
            total += (mean[c] - of_group) * (mean[c] - of_group) * double(P);
        const float rstd = reciprocal_root(total, double(block.width * P), forward.eps);
        const int64_t group = block.image * call.groups + block.first_group + g;
        forward.rstd[group] = rstd;
        keep_mean(call, forward.mean, group, pivot[g * block.width], float(of_group));
        for (int64_t c = g * block.width; c < (g + 1) * block.width; ++c) {
            const Affine a = affine(call, block.image, block.first_column + c);
            centre[c] = float(of_group);
            slope[c] = rstd * a.gain;
            offset[c] = a.offset;
        }
    }
    for_each_strip(block, 0, P, [&](int64_t tile, int64_t first, int64_t last) FASTCOND_INLINE_LAMBDA {
        const int64_t column = tile * lanes, there = block.columns - column, at = first * C + column;
        const Lanes pivots = load_lanes(pivot + column), centres = load_lanes(centre + column);
        const Lanes slopes = load_lanes(slope + column), offsets = load_lanes(offset + column);
        if (there >= lanes)
            write_rows<true, silu_on, streams>(x + at, last - first, pivots, centres, slopes, offsets, y + at, C, lanes);
        else
            write_rows<false, silu_on, streams>(x + at, last - first, pivots, centres, slopes, offsets, y + at, C, there);
    });
    if (streams) end_streams();
}

// Adds a row of float32 sums to its double row, and empties it.
FASTCOND_INLINE void fold_row(const Block& block, float* partial, double* sums) {
    for (int64_t column = 0; column < block.columns; column += lanes) {
        add(sums + column, load_lanes(partial + column));
        store_lanes(partial + column, all_lanes(0.0f));
    }
}

// What a tile's columns need in the backward's first pass.
struct Columns {
    Lanes mean, left_out, rstd, gain, offset;
};

// du of some rows is kept; A += du xh, B += du.
template <bool whole, bool silu_on, typename T>
FASTCOND_INLINE void reduce_rows(const T* x, const T* dy, int64_t C, int64_t count, const Columns& of, int64_t rows,
                                 float* packed, float* A, float* B) {
    Lanes a = all_lanes(0.0f), b = a;
    const auto normalised = [&](int64_t r) FASTCOND_INLINE_LAMBDA {
        return ((load_tile<whole>(x + r * C, count) - of.mean) - of.left_out) * of.rstd;
    };
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        const FourLanes xh{{normalised(r), normalised(r + 1), normalised(r + 2), normalised(r + 3)}};
        const FourLanes upstream{{load_tile<whole>(dy + r * C, count), load_tile<whole>(dy + (r + 1) * C, count),
                                  load_tile<whole>(dy + (r + 2) * C, count), load_tile<whole>(dy + (r + 3) * C, count)}};
        const FourLanes du = through_activation<silu_on>(upstream, xh * of.gain + of.offset);
        store_lanes(packed + r * lanes, du.of[0]);
        store_lanes(packed + (r + 1) * lanes, du.of[1]);
        store_lanes(packed + (r + 2) * lanes, du.of[2]);
        store_lanes(packed + (r + 3) * lanes, du.of[3]);
        const FourLanes products = du * xh;
        a = a + ((products.of[0] + products.of[1]) + (products.of[2] + products.of[3]));
        b = b + ((du.of[0] + du.of[1]) + (du.of[2] + du.of[3]));
    }
    for (; r < rows; ++r) {
        const Lanes xh = ((load_tile<whole>(x + r * C, count) - of.mean) - of.left_out) * of.rstd;
        const Lanes du = through_activation<silu_on>(load_tile<whole>(dy + r * C, count), xh * of.gain + of.offset);
        store_lanes(packed + r * lanes, du);
        a = a + du * xh;
        b = b + du;
    }
    add_to(A, a);
    add_to(B, b);
}

// dx = rstd (w du - m2 - xh m1), of_du = rstd w, constant = rstd m2, of_xh = rstd m1.
template <bool whole, bool streams, typename T>
FASTCOND_INLINE void write_gradient(const T* x, const float* du, int64_t rows, const Columns& of, const Lanes& of_du,
                                    const Lanes& constant, const Lanes& of_xh, T* dx, int64_t C, int64_t count) {
    for (int64_t r = 0; r < rows; ++r) {
        const Lanes xh = ((load_tile<whole>(x + r * C, count) - of.mean) - of.left_out) * of.rstd;
        store_tile<whole, streams>(dx + r * C, (of_du * load_lanes(du + r * lanes) - constant) - xh * of_xh, count);
    }
}

template <typename T, bool silu_on, bool streams>
void backward_channels_last(const AdaGroupNorm& call, const AdaGroupNormBackward& backward, const Blocks& blocks,
                            int64_t unit) {
    const int64_t C = call.channels, P = call.positions;
    const Block block = block_of(call, blocks, unit, 10, 2, 1);
    const int64_t start = block.image * C * P + block.first_column;
    const T* x = static_cast<const T*>(call.x) + start;
    const T* dy = static_cast<const T*>(backward.dy) + start;
    T* dx = static_cast<T*>(backward.dx) + start;
    const double count = double(block.width * P);
    float *mean = block.row(0), *left_out = block.row(1), *rstd = block.row(2), *gain = block.row(3);
    float *offset = block.row(4), *of_du = block.row(5), *constant = block.row(6), *of_xh = block.row(7);
    float *partial_A = block.row(8), *partial_B = block.row(9);
    double *A = block.sum(0), *B = block.sum(1);
    for (int64_t c = 0; c < block.columns; ++c) {
        const int64_t group = block.image * call.groups + block.first_group + c / block.width;
        const Affine a = affine(call, block.image, block.first_column + c);
        mean[c] = backward.mean[group];
        left_out[c] = backward.mean[call.batch * call.groups + group];
        rstd[c] = backward.rstd[group];
        gain[c] = a.gain;
        offset[c] = a.offset;
    }
    const auto columns_of = [&](int64_t column) FASTCOND_INLINE_LAMBDA {
        return Columns{load_lanes(mean + column), load_lanes(left_out + column), load_lanes(rstd + column),
                       load_lanes(gain + column), load_lanes(offset + column)};
    };
    for (int64_t begin = 0; begin < P; begin += rows_a_float) {
        const int64_t end = smaller(P, begin + rows_a_float);
        for_each_strip(block, begin, end, [&](int64_t tile, int64_t first, int64_t last) FASTCOND_INLINE_LAMBDA {
            const int64_t column = tile * lanes, there = block.columns - column, at = first * C + column;
            const int64_t rows = last - first;
            float* du = block.packed + (tile * P + first) * lanes;
            float *to_A = partial_A + column, *to_B = partial_B + column;
            const Columns of = columns_of(column);
            if (there >= lanes)
                reduce_rows<true, silu_on>(x + at, dy + at, C, lanes, of, rows, du, to_A, to_B);
            else
                reduce_rows<false, silu_on>(x + at, dy + at, C, there, of, rows, du, to_A, to_B);
        });
        fold_row(block, partial_A, A);
        fold_row(block, partial_B, B);
    }
    for (int64_t g = 0; g < block.groups; ++g) {
        double m1 = 0.0, m2 = 0.0;
        for (int64_t c = g * block.width; c < (g + 1) * block.width; ++c) {
            backward.A[block.image * C + block.first_column + c] = float(A[c]);
            backward.B[block.image * C + block.first_column + c] = float(B[c]);
            m1 += double(gain[c]) * A[c];
            m2 += double(gain[c]) * B[c];
            of_du[c] = rstd[c] * gain[c];
        }
        const double of_group = double(rstd[g * block.width]);
        fill_group(block, of_xh, g, float(of_group * m1 / count));
        fill_group(block, constant, g, float(of_group * m2 / count));
    }
    for_each_strip(block, 0, P, [&](int64_t tile, int64_t first, int64_t last) FASTCOND_INLINE_LAMBDA {
        const int64_t column = tile * lanes, there = block.columns - column, at = first * C + column, rows = last - first;
        const float* du = block.packed + (tile * P + first) * lanes;
        const Columns of = columns_of(column);
        const Lanes du_factor = load_lanes(of_du + column), xh_factor = load_lanes(of_xh + column);
        const Lanes constants = load_lanes(constant + column);
        if (there >= lanes)
            write_gradient<true, streams>(x + at, du, rows, of, du_factor, constants, xh_factor, dx + at, C, lanes);
        else
            write_gradient<false, streams>(x + at, du, rows, of, du_factor, constants, xh_factor, dx + at, C, there);
    });
    if (streams) end_streams();
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
