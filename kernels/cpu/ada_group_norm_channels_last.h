// AdaGN of [B, positions, C]: a unit of work is some whole groups of one image, a block of its columns.
//
// A block is walked in strips of a few positions, and a strip in tiles of sixteen columns: memory is walked nearly in its
// order. The last pass begins with the rows that the first one ended with, which are still in a cache. A column's sums do
// not depend on the block that it is in: blocks may be chosen for the cache and the number of threads without changing a bit.
#pragma once

#include "ada_group_norm_shared.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t strip = 16;            // positions whose sums are float32
constexpr int64_t rows_written = 8;      // positions that share a tile's constants
constexpr int64_t units_a_thread = 2;
constexpr int64_t line_columns = 16;     // a block narrower than a cache line would read it twice
constexpr int64_t block_bytes = 256 << 10;  // of a block of a large x, asked for while the one before is still in the cache

// How an image is cut into blocks of `groups` groups, the last one perhaps smaller.
struct Blocks {
    int64_t groups, count;
};

// Whole rows, unless every thread is to have work, or x comes from memory.
template <typename T>
Blocks blocks_of(const AdaGroupNorm& call) {
    const int64_t width = call.channels / call.groups;
    int64_t aligned = 1;  // groups that fill whole tiles
    while (aligned * width % lanes) aligned *= 2;
    const int64_t wanted = (units_a_thread * call.threads + call.batch - 1) / call.batch;
    const int64_t whole_rows = is_large<T>(call) ? block_bytes / int64_t(sizeof(T)) / call.positions : call.channels;
    const int64_t columns = larger(smaller((call.groups + wanted - 1) / wanted * width, whole_rows), line_columns);
    const int64_t groups = (columns + width - 1) / width;
    const int64_t of_block = smaller(groups >= aligned ? groups / aligned * aligned : groups, call.groups);
    return {of_block, (call.groups + of_block - 1) / of_block};
}

// The first element of x of a unit.
template <typename T>
const T* first_of(const AdaGroupNorm& call, const Blocks& blocks, int64_t unit) {
    const int64_t width = call.channels / call.groups;
    return static_cast<const T*>(call.x) + unit / blocks.count * call.channels * call.positions +
           unit % blocks.count * blocks.groups * width;
}

// One block: its place, and two rows of sums in double, one entry a column, filled up to whole tiles.
struct Block {
    int64_t image, first_group, groups, width, columns, C;
    double* sums[2];

    FASTCOND_INLINE Block(const AdaGroupNorm& call, const Blocks& blocks, int64_t unit, Kept<double>& scratch) {
        image = unit / blocks.count;
        first_group = unit % blocks.count * blocks.groups;
        groups = smaller(blocks.groups, call.groups - first_group);
        width = call.channels / call.groups;
        columns = groups * width;
        C = call.channels;
        const int64_t row = (columns + lanes - 1) / lanes * lanes;
        sums[0] = scratch.take(2 * row);
        sums[1] = sums[0] + row;
        for (int64_t i = 0; i < 2 * row; ++i) sums[0][i] = 0.0;
    }
};

FASTCOND_INLINE double sum_group(const Block& block, const double* columns, int64_t group) {
    double total = 0.0;
    for (int64_t c = group * block.width; c < (group + 1) * block.width; ++c) total += columns[c];
    return total;
}

template <int n>
struct Rows {
    static constexpr int64_t count = n;
};

// From an element of the strip at `first` to what is asked for meanwhile: the next strip's, or itself where nothing is behind it.
FASTCOND_INLINE int64_t strip_ahead(const AdaGroupNorm& call, int64_t image, int64_t first) {
    const int64_t behind = (call.batch - image) * call.positions - (first + strip);
    return larger(0, smaller(strip, behind)) * call.channels;
}

// A tile of a row of x, y, dy or dx: sixteen columns, or the `count` that the last one has; and of n rows.
template <bool whole>
struct Tile {
    int64_t count, C;
    template <int n, typename T>
    FASTCOND_INLINE Several<n> load(const T* from) const {
        return several<n>([&](int k) FASTCOND_INLINE_LAMBDA {
            if constexpr (whole) return load_lanes(from + k * C);
            else return load_lanes(from + k * C, count);
        });
    }
    template <int n, typename T>
    FASTCOND_INLINE void store(T* to, const Several<n>& value) const {
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
        for (int k = 0; k < n; ++k) {
            if constexpr (whole) store_lanes(to + k * C, value.of[k]);
            else store_lanes(to + k * C, value.of[k], count);
        }
    }
    template <int n, typename T>
    FASTCOND_INLINE void store_result(T* to, const Several<n>& value, [[maybe_unused]] bool past_caches) const {
        if constexpr (whole && sizeof(T) == sizeof(float)) {
            if (past_caches) return store_several_past_caches(to, C, value);
        }
        store(to, value);
    }
    // Rows of a later strip: what is read in several places at once, or backwards, no processor fetches by itself.
    template <int n, typename T>
    FASTCOND_INLINE void fetch_rows(Rows<n>, const T* from) const {
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
        for (int k = 0; k < n; ++k) fetch(from + k * C);
    }
    template <int n, typename T>
    FASTCOND_INLINE void fetch_rows_to_write(Rows<n>, const T* from) const {
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
        for (int k = 0; k < n; ++k) fetch_to_write(from + k * C);
    }
};

// Calls run(number of rows as a constant, the first of them) for rows [first, end).
template <typename Run>
FASTCOND_INLINE void for_each_rows(int64_t first, int64_t end, Run run) {
    for (; first + in_step <= end; first += in_step) run(Rows<in_step>{}, first);
    if constexpr (in_step > 1)
        for (; first < end; ++first) run(Rows<1>{}, first);
}

template <bool whole, int n, typename T>
FASTCOND_INLINE Several<n> load_rows(const Tile<whole>& tile, Rows<n>, const T* from) {
    return tile.template load<n>(from);
}

// Calls run(tile, its first column) for all tiles of a block.
template <typename Run>
FASTCOND_INLINE void for_each_tile(const Block& block, Run run) {
    int64_t column = 0;
    for (; column + lanes <= block.columns; column += lanes) run(Tile<true>{lanes, block.C}, column);
    if (column < block.columns) run(Tile<false>{block.columns - column, block.C}, column);
}

// Adds `rows` positions to the mean (of the distance to the pivot) and the sum of squared distances to the mean of sixteen
// columns that `before` positions have had: the strip's own mean, then Chan's merge in double.
template <typename Tile, typename T>
FASTCOND_INLINE void merge_rows(Tile tile, const T* x, int64_t C, int64_t ahead, const Lanes& pivot, int64_t before, int64_t rows,
                                double share, double* mean, double* squares) {
    Lanes distance[strip], total = all_lanes(0.0f), centre;
    if (rows == strip) {
#pragma GCC unroll 16
        for (int64_t r = 0; r < strip; ++r) {
            tile.fetch_rows(Rows<1>{}, x + r * C + ahead);
            distance[r] = tile.template load<1>(x + r * C).of[0] - pivot;
        }
        Lanes sums[4];
        for (int64_t k = 0; k < 4; ++k)
            sums[k] = (distance[k] + distance[k + 4]) + (distance[k + 8] + distance[k + 12]);
        centre = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * all_lanes(1.0f / float(strip));
        Lanes odd = total;
#pragma GCC unroll 8
        for (int64_t r = 0; r < strip; r += 2) {
            const Lanes d0 = distance[r] - centre, d1 = distance[r + 1] - centre;
            total = fused(d0, d0, total);
            odd = fused(d1, d1, odd);
        }
        total = total + odd;
    } else {
        for (int64_t r = 0; r < rows; ++r) total = total + (tile.template load<1>(x + r * C).of[0] - pivot);
        centre = total * all_lanes(1.0f / float(rows));
        total = all_lanes(0.0f);
        for (int64_t r = 0; r < rows; ++r) {
            const Lanes d = (tile.template load<1>(x + r * C).of[0] - pivot) - centre;
            total = fused(d, d, total);
        }
    }
    const Doubles before_mean = load_doubles(mean), delta = widened(centre) - before_mean;
    const Doubles move = delta * all_doubles(share);
    store_doubles(mean, before_mean + move);
    store_doubles(squares, load_doubles(squares) + (widened(total) + delta * move * all_doubles(double(before))));
}

FASTCOND_INLINE void add(double* totals, const Lanes& sums) { store_doubles(totals, load_doubles(totals) + widened(sums)); }

template <typename T, bool silu_on>
void forward_channels_last(const AdaGroupNorm& call, const AdaGroupNormForward& forward, const Blocks& blocks, int64_t unit) {
    thread_local Kept<float> numbers;
    thread_local Kept<double> sums;
    const Block block(call, blocks, unit, sums);
    Channels channels(block.image, block.first_group * block.width, block.columns, numbers);
    const int64_t C = call.channels, P = call.positions, start = block.image * C * P + channels.first;
    const T* x = static_cast<const T*>(call.x) + start;
    T* y = static_cast<T*>(forward.y) + start;
    double *of_columns = block.sums[0], *squares = block.sums[1];
    // Distances to one element: a constant group is exactly 0, and large means cost no digits.
    float* pivot = channels.mean;
    for (int64_t g = 0; g < block.groups; ++g) {
        const float of_group = load(x[g * block.width]);
        for (int64_t c = g * block.width; c < (g + 1) * block.width; ++c) pivot[c] = of_group;
    }
    for (int64_t first = 0; first < P; first += strip) {
        const int64_t rows = smaller(P - first, strip);
        const double share = double(rows) / double(first + rows);
        const int64_t ahead = strip_ahead(call, block.image, first);
        for_each_tile(block, [&](auto tile, int64_t column) FASTCOND_INLINE_LAMBDA {
            merge_rows(tile, x + first * C + column, C, ahead, load_lanes(pivot + column), first, rows, share, of_columns + column,
                       squares + column);
        });
    }
    for (int64_t g = 0; g < block.groups; ++g) {
        const int64_t begin = g * block.width, end = begin + block.width;
        const double centre = sum_group(block, of_columns, g) / double(block.width);
        double total = sum_group(block, squares, g);
        for (int64_t c = begin; c < end; ++c) total += (of_columns[c] - centre) * (of_columns[c] - centre) * double(P);
        const float rstd = reciprocal_root(total, double(block.width * P), forward.eps);
        const Mean mean = mean_of(pivot[begin], float(centre));
        channels.set_group(begin, end, mean, rstd);
        if (forward.rstd != nullptr) {
            const int64_t group = block.image * call.groups + block.first_group + g;
            keep_mean(call, forward.mean, group, mean);
            forward.rstd[group] = rstd;
        }
    }
    set_lines<silu_on>(call, channels);
    const bool past_caches = goes_past_caches(call, y, C);
    // Memory brings the next unit's block while this one is computed.
    const T* next = is_large<T>(call) && unit + 1 < call.batch * blocks.count ? first_of<T>(call, blocks, unit + 1) : nullptr;
    for (int64_t end = P; end > 0; end -= rows_written) {
        const int64_t first = larger(end - rows_written, 0), back = smaller(first, rows_written) * C;
        for_each_tile(block, [&](auto tile, int64_t column) FASTCOND_INLINE_LAMBDA {
            const Lanes mean = load_lanes(channels.mean + column), slope = load_lanes(channels.slope + column);
            const Lanes offset = load_lanes(channels.offset + column);
            for_each_rows(first, end, [&](auto rows, int64_t row) FASTCOND_INLINE_LAMBDA {
                const int64_t at = row * C + column;
                tile.fetch_rows(rows, x + at - back);
                if (next) tile.fetch_rows(rows, next + (P - rows.count - row) * C + column);
                if (!past_caches) tile.fetch_rows_to_write(rows, y + at - back);
                const auto line = fused(load_rows(tile, rows, x + at) - mean, slope, offset);
                tile.store_result(y + at, activated<silu_on>(line), past_caches);
            });
        });
    }
    if (past_caches) let_be_seen();
}

template <typename T, bool silu_on>
void backward_channels_last(const AdaGroupNorm& call, const AdaGroupNormBackward& backward, const Blocks& blocks,
                            int64_t unit) {
    thread_local Kept<float> memory, numbers;
    thread_local Kept<double> sums;
    const Block block(call, blocks, unit, sums);
    Channels channels(block.image, block.first_group * block.width, block.columns, numbers);
    const int64_t C = call.channels, P = call.positions, start = block.image * C * P + channels.first;
    const int64_t first_group = block.image * call.groups + block.first_group;
    const T* x = static_cast<const T*>(call.x) + start;
    const T* dy = static_cast<const T*>(backward.dy) + start;
    T* dx = static_cast<T*>(backward.dx) + start;
    const bool past_caches = goes_past_caches(call, dx, C);
    float* du = du_of(dx, past_caches, C * P, memory);
    for (int64_t g = 0; g < block.groups; ++g)
        channels.set_group(g * block.width, (g + 1) * block.width, kept_mean(call, backward.mean, first_group + g),
                           backward.rstd[first_group + g]);
    set_lines<silu_on>(call, channels);
    for (int64_t first = 0; first < P; first += strip) {
        const int64_t end = smaller(P, first + strip), ahead = strip_ahead(call, block.image, first);
        for_each_tile(block, [&](auto tile, int64_t column) FASTCOND_INLINE_LAMBDA {
            const Lanes mean = load_lanes(channels.mean + column), slope = load_lanes(channels.slope + column);
            const Lanes offset = load_lanes(channels.offset + column);
            Lanes of_distance = all_lanes(0.0f), of_du = of_distance;
            for_each_rows(first, end, [&](auto rows, int64_t row) FASTCOND_INLINE_LAMBDA {
                const int64_t at = row * C + column;
                tile.fetch_rows(rows, x + at + ahead);
                tile.fetch_rows(rows, dy + at + ahead);
                if (!past_caches) tile.fetch_rows_to_write(rows, dx + at + ahead);
                const auto d = load_rows(tile, rows, x + at) - mean;
                const auto here = through_activation<silu_on>(load_rows(tile, rows, dy + at), fused(d, slope, offset));
                tile.store(du + at, here);
                of_distance = of_distance + folded(here * d);
                of_du = of_du + folded(here);
            });
            add(block.sums[0] + column, of_distance);
            add(block.sums[1] + column, of_du);
        });
    }
    // From here on slope and offset are the gradient's: its factors of x - mean and its constants.
    for (int64_t g = 0; g < block.groups; ++g) {
        const Mean mean = kept_mean(call, backward.mean, first_group + g);
        const float rstd = backward.rstd[first_group + g];
        double sum_A = 0.0, sum_B = 0.0;
        for (int64_t c = g * block.width; c < (g + 1) * block.width; ++c) {
            const double of_du = block.sums[1][c];
            const double of_xh = double(rstd) * (block.sums[0][c] - double(mean.left_out) * of_du);
            backward.A[block.image * C + channels.first + c] = float(of_xh);
            backward.B[block.image * C + channels.first + c] = float(of_du);
            sum_A += double(channels.gain[c]) * of_xh;
            sum_B += double(channels.gain[c]) * of_du;
        }
        const GradientOfGroup gradient = gradient_of_group(mean, rstd, sum_A, sum_B, double(block.width * P));
        for (int64_t c = g * block.width; c < (g + 1) * block.width; ++c) {
            channels.gain[c] *= rstd;
            channels.slope[c] = gradient.of_distance;
            channels.offset[c] = gradient.constant;
        }
    }
    for (int64_t end = P; end > 0; end -= rows_written) {
        const int64_t first = larger(end - rows_written, 0), back = smaller(first, 2 * rows_written) * C;
        for_each_tile(block, [&](auto tile, int64_t column) FASTCOND_INLINE_LAMBDA {
            const Lanes mean = load_lanes(channels.mean + column), gain = load_lanes(channels.gain + column);
            const Lanes of_distance = load_lanes(channels.slope + column), constant = load_lanes(channels.offset + column);
            for_each_rows(first, end, [&](auto rows, int64_t row) FASTCOND_INLINE_LAMBDA {
                const int64_t at = row * C + column;
                tile.fetch_rows(rows, x + at - back);
                tile.fetch_rows_to_write(rows, du + at - back);
                const auto d = load_rows(tile, rows, x + at) - mean;
                const auto gradient = fused(load_rows(tile, rows, du + at), gain, fused(d, of_distance, constant));
                tile.store_result(dx + at, gradient, past_caches);
            });
        });
    }
    if (past_caches) let_be_seen();
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
