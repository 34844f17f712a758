// The loops of a network's further steps, compiled once for each instruction set (FASTCOND_ISA names it, CMakeLists.txt lists them).
//
// No standard-library templates: the linker would keep one instance for all builds, perhaps the one with the widest
// instructions.
#include "network_steps.h"

#include "activation.h"
#include "channel_statistics.h"
#include "gelu.h"
#include "products.h"
#include "workspace.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t patch_floats = int64_t{96} << 10;  // of a block's patches, which share a core's cache with the weights
constexpr int64_t products_worth_a_thread = 1 << 18;
constexpr int64_t numbers_worth_a_thread = 1 << 14;
constexpr int64_t page = 4096;  // bytes

[[maybe_unused]] int threads_for(int threads, int64_t work, int64_t worth) { return int(larger(1, smaller(threads, work / worth))); }

// Sixteen numbers, or the `count` that there are and zeros.
FASTCOND_INLINE Lanes take(const float* from, int64_t count) {
    return count == lanes ? load_lanes(from) : load_lanes(from, count);
}
FASTCOND_INLINE void leave(float* to, const Lanes& value, int64_t count) {
    if (count == lanes) store_lanes(to, value);
    else store_lanes(to, value, count);
}

// Sizes of a convolution by patches: rows of the product are output positions, its depth runs over taps and then channels.
struct Patches {
    int64_t height, width;  // of y
    int64_t positions, depth, chunks, rows;

    Patches(const PatchConv& step, int64_t threads) {
        height = step.height / step.stride;
        width = step.width / step.stride;
        positions = step.batch * height * width;
        depth = step.size * step.size * step.channels;
        chunks = parts_of(depth, lanes);
        const int64_t most = larger(2 * most_rows, smaller(16 * most_rows, patch_floats / depth / most_rows * most_rows));
        const int64_t blocks = parts_of(parts_of(positions, most), threads) * threads;
        rows = larger(1, parts_of(positions, blocks));
    }
    int64_t blocks() const { return parts_of(positions, rows); }
};

// `count` numbers to places depth, depth + 1, ... of a row of [chunks][rows][16].
FASTCOND_INLINE void put(const float* from, int64_t count, int64_t depth, int64_t rows, float* row) {
    if (depth % lanes == 0)
        for (; count >= lanes; count -= lanes, depth += lanes, from += lanes) store_lanes(row + depth * rows, load_lanes(from));
    while (count > 0) {
        const int64_t lane = depth % lanes, here = smaller(lanes - lane, count);
        leave(row + (depth - lane) * rows + lane, take(from, here), here);
        from += here;
        depth += here;
        count -= here;
    }
}

FASTCOND_INLINE void put_zeros(int64_t count, int64_t depth, int64_t rows, float* row) {
    while (count > 0) {
        const int64_t lane = depth % lanes, here = smaller(lanes - lane, count);
        leave(row + (depth - lane) * rows + lane, all_lanes(0.0f), here);
        depth += here;
        count -= here;
    }
}

// The same of (x - mean) gain + offset.
FASTCOND_INLINE void put_normalised(const PatchConv& step, int64_t image, int64_t position, int64_t depth, int64_t rows, float* row) {
    const int64_t C0 = step.first_channels, C1 = step.channels - C0;
    for (int64_t channel = 0; channel < step.channels; channel += lanes) {
        const int64_t count = smaller(lanes, step.channels - channel), at = image * step.channels + channel;
        float of_both[lanes] = {};
        for (int64_t i = 0; i < count; ++i) {
            const int64_t c = channel + i;
            of_both[i] = c < C0 ? step.x[position * C0 + c] : step.second[position * C1 + c - C0];
        }
        const Lanes mean = take(step.mean + at, count);
        float normalised[lanes];
        store_lanes(normalised, fused(load_lanes(of_both) - mean, take(step.gain + at, count), take(step.offset + at, count)));
        put(normalised, count, depth + channel, rows, row);
    }
}

// Taps [first, end) of a row of a filter, whose positions of x lie side by side from `position`.
FASTCOND_INLINE void gather_taps(const PatchConv& step, int64_t image, int64_t position, int64_t first, int64_t end, int64_t rows,
                                 float* row) {
    const int64_t C = step.channels, C0 = step.first_channels, C1 = C - C0;
    if (C1 == 0 && !step.mean) return put(step.x + position * C, (end - first) * C, first * C, rows, row);
    for (int64_t tap = first; tap < end; ++tap, ++position) {
        if (step.mean) {
            put_normalised(step, image, position, tap * C, rows, row);
            continue;
        }
        put(step.x + position * C0, C0, tap * C, rows, row);
        put(step.second + position * C1, C1, tap * C + C0, rows, row);
    }
}

// The patches of output positions [begin, begin + rows) as [chunks][rows][16].
void gather(const PatchConv& step, const Patches& p, int64_t begin, int64_t rows, float* v) {
    const int64_t C = step.channels, padded = p.chunks * lanes - p.depth;
    for (int64_t row = 0; row < rows; ++row, v += lanes) {
        const int64_t at = begin + row, column = at % p.width, line = at / p.width % p.height, image = at / p.width / p.height;
        const int64_t left = column * step.stride - step.padding, first = larger(0, -left);
        const int64_t end = larger(first, smaller(step.size, step.width - left));
        for (int64_t tap_row = 0; tap_row < step.size; ++tap_row) {
            const int64_t y = line * step.stride + tap_row - step.padding, tap = tap_row * step.size;
            if (y < 0 || y >= step.height) {
                put_zeros(step.size * C, tap * C, rows, v);
                continue;
            }
            put_zeros(first * C, tap * C, rows, v);
            gather_taps(step, image, (image * step.height + y) * step.width + left + first, tap + first, tap + end, rows, v);
            put_zeros((step.size - end) * C, (tap + end) * C, rows, v);
        }
        put_zeros(padded, p.depth, rows, v);
    }
}

// Whether rows are multiplied as they lie. Rows that are whole pages apart would fall on the same lines of the first cache.
bool is_direct(const PatchConv& step) {
    const auto spread = [](int64_t channels) { return channels == 0 || channels * int64_t{sizeof(float)} % page != 0; };
    return step.size == 1 && step.stride == 1 && !step.mean && spread(step.first_channels) &&
           spread(step.channels - step.first_channels);
}

// Output positions [begin, begin + rows); `v` is what `gather` made of them, or null.
void multiply_patches(const PatchConv& step, const Patches& p, int64_t begin, int64_t rows, const float* v) {
    const int64_t K = step.features, C0 = step.first_channels, C1 = step.channels - C0;
    for (int64_t first = 0; first < K; first += panel) {
        const int64_t width = K - first > lanes ? panel : lanes, at = begin * K + first;
        const float* packed = step.packed + first * p.depth;
        const Finish to{step.bias ? step.bias + first : nullptr, step.residual ? step.residual + at : nullptr, step.y + at, K,
                        K - first, step.copies, p.positions * K};
        if (v) multiply_all(ChunkProduct{v, packed, rows * lanes, p.depth, width, to}, rows, width);
        else
            multiply_all(RowProduct{{step.x + begin * C0, C0}, {C1 ? step.second + begin * C1 : nullptr, C1}, packed, width, to}, rows,
                         width);
    }
}

// Sixteen channels of silu((x - mean) gain + offset).
struct Activation {
    const Resample& step;
    int64_t channel, count;
    Lanes mean, gain, offset;

    Activation(const Resample& step, int64_t image, int64_t channel)
        : step(step), channel(channel), count(smaller(lanes, step.channels - channel)) {
        const int64_t at = image * step.channels + channel;
        mean = step.mean ? take(step.mean + at, count) : all_lanes(0.0f);
        gain = step.mean ? take(step.gain + at, count) : all_lanes(1.0f);
        offset = step.mean ? take(step.offset + at, count) : all_lanes(0.0f);
    }
    FASTCOND_INLINE Lanes at(int64_t position) const {
        Lanes value = take(step.x + position * step.channels + channel, count);
        if (step.mean) value = fused(value - mean, gain, offset);
        return step.silu ? silu(value) : value;
    }
    FASTCOND_INLINE void put(int64_t position, const Lanes& value) const {
        leave(step.y + position * step.channels + channel, value, count);
    }
};

// A line of the halved map: four lines of x weighed by 1/8, 3/8, 3/8, 1/8, and then four columns of that.
void filter_down(const Resample& step, const Activation& activation, int64_t image, int64_t line) {
    const int64_t width = step.width, to = (image * (step.height / 2) + line) * (width / 2);
    const Lanes zero = all_lanes(0.0f), inner = all_lanes(0.375f), outer = all_lanes(0.125f);
    const auto column = [&](int64_t x) FASTCOND_INLINE_LAMBDA {
        Lanes sum = zero;
        for (int64_t tap = 0; tap < 4; ++tap) {
            const int64_t row = 2 * line - 1 + tap;
            if (row < 0 || row >= step.height || x >= width) continue;
            sum = fused(activation.at((image * step.height + row) * width + x), tap == 1 || tap == 2 ? inner : outer, sum);
        }
        return sum;
    };
    Lanes left = zero, first = column(0);
    for (int64_t x = 0; x + 1 < width; x += 2) {
        const Lanes second = column(x + 1), right = column(x + 2);
        activation.put(to + x / 2, fused(left + right, outer, (first + second) * inner));
        left = second;
        first = right;
    }
}

// Two lines of the doubled map, each 3/4 of this line of x and 1/4 of the one above or below, and the same with columns.
void filter_up(const Resample& step, const Activation& activation, int64_t image, int64_t line) {
    const int64_t width = step.width, from = (image * step.height + line) * width, to = 4 * from;
    const Lanes zero = all_lanes(0.0f), near = all_lanes(0.75f), far = all_lanes(0.25f);
    struct Column {
        Lanes row[2];
    };
    const auto column = [&](int64_t x) FASTCOND_INLINE_LAMBDA {
        Column both{{zero, zero}};
        if (x >= width) return both;
        const Lanes here = activation.at(from + x) * near;
        both.row[0] = line > 0 ? fused(activation.at(from - width + x), far, here) : here;
        both.row[1] = line + 1 < step.height ? fused(activation.at(from + width + x), far, here) : here;
        return both;
    };
    Column left{{zero, zero}}, here = column(0);
    for (int64_t x = 0; x < width; ++x) {
        const Column right = column(x + 1);
        for (int64_t row = 0; row < 2; ++row) {
            const Lanes mine = here.row[row] * near;
            activation.put(to + 2 * row * width + 2 * x, fused(left.row[row], far, mine));
            activation.put(to + 2 * row * width + 2 * x + 1, fused(right.row[row], far, mine));
        }
        left = here;
        here = right;
    }
}

void resample_line(const Resample& step, int64_t image, int64_t line) {
    const int64_t width = step.width;
    for (int64_t channel = 0; channel < step.channels; channel += lanes) {
        const Activation activation(step, image, channel);
        if (step.filtered) {
            step.up ? filter_up(step, activation, image, line) : filter_down(step, activation, image, line);
        } else if (step.up) {
            const int64_t from = (image * step.height + line) * width, to = (image * step.height + line) * 4 * width;
            for (int64_t x = 0; x < width; ++x) {
                const Lanes value = activation.at(from + x);
                for (int64_t row = 0; row < 2; ++row)
                    for (int64_t column = 0; column < 2; ++column) activation.put(to + (2 * row * width) + 2 * x + column, value);
            }
        } else {
            const int64_t from = (image * step.height + 2 * line) * width, to = (image * (step.height / 2) + line) * (width / 2);
            for (int64_t x = 0; x + 1 < width; x += 2) {
                const Lanes upper = activation.at(from + x) + activation.at(from + x + 1);
                const Lanes lower = activation.at(from + width + x) + activation.at(from + width + x + 1);
                activation.put(to + x / 2, (upper + lower) * all_lanes(0.25f));
            }
        }
    }
}

// Sum over a row of x - centre, or of its square.
float sum_of_row(const float* x, int64_t count, float centre, bool squared) {
    Lanes sum = all_lanes(0.0f);
    for (int64_t c = 0; c < count; c += lanes) {
        const int64_t there = smaller(lanes, count - c);
        float distance[lanes] = {};
        leave(distance, take(x + c, there) - all_lanes(centre), there);
        const Lanes d = load_lanes(distance);
        sum = sum + (squared ? d * d : d);
    }
    float lane[lanes], total = 0.0f;
    store_lanes(lane, sum);
    for (float value : lane) total += value;
    return total;
}

void norm_of_image(const ChannelNorm& step, int64_t image) {
    const int64_t C = step.channels, C0 = step.first_channels, width = C / step.groups;
    const double positions = double(step.positions);
    const auto mean_of = [&](int64_t c) FASTCOND_INLINE_LAMBDA {
        return double(c < C0 ? step.first_mean[image * C0 + c] : step.second_mean[image * (C - C0) + c - C0]);
    };
    const auto m2_of = [&](int64_t c) FASTCOND_INLINE_LAMBDA {
        return double(c < C0 ? step.first_m2[image * C0 + c] : step.second_m2[image * (C - C0) + c - C0]);
    };
    const float* columns = step.columns ? step.columns + step.slots[image] * step.row + step.at : nullptr;
    for (int64_t group = 0; group < step.groups; ++group) {
        const int64_t begin = group * width, end = begin + width;
        double mean = 0.0, m2 = 0.0;
        for (int64_t c = begin; c < end; ++c) mean += mean_of(c);
        mean /= double(width);
        for (int64_t c = begin; c < end; ++c) m2 += m2_of(c) + positions * (mean_of(c) - mean) * (mean_of(c) - mean);
        const float rstd = float(1.0 / __builtin_sqrt(m2 / (positions * double(width)) + double(step.eps)));
        for (int64_t c = begin; c < end; ++c) {
            const float weight = step.weight ? step.weight[c] : 1.0f, bias = step.bias ? step.bias[c] : 0.0f;
            const float scale = columns ? 1.0f + columns[c] : 1.0f, shift = columns ? columns[C + c] : 0.0f;
            step.mean[image * C + c] = float(mean);
            step.gain[image * C + c] = rstd * weight * scale;
            step.offset[image * C + c] = bias * scale + shift;
        }
    }
}

}  // namespace

void patch_conv(const PatchConv& step) {
    const int64_t work = step.batch * step.height * step.width * step.size * step.size * step.channels * step.features;
    [[maybe_unused]] const int threads = threads_for(step.threads, work, products_worth_a_thread);
    const Patches p(step, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        thread_local Workspace workspace;
        float* v = is_direct(step) ? nullptr : workspace.take(p.chunks * p.rows * lanes);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < p.blocks(); ++block) {
            const int64_t begin = block * p.rows, rows = smaller(p.rows, p.positions - begin);
            if (v) gather(step, p, begin, rows, v);
            multiply_patches(step, p, begin, rows, v);
        }
    }
}

void channel_statistics(const ChannelStatistics& step) {
    const int64_t chunks = parts_of(step.channels, lanes), C = step.channels, P = step.positions;
    [[maybe_unused]] const int threads = threads_for(step.threads, step.batch * P * C, numbers_worth_a_thread);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t unit = 0; unit < step.batch * chunks; ++unit) {
        const int64_t image = unit / chunks, channel = unit % chunks * lanes, count = smaller(lanes, C - channel);
        const float* x = step.x + image * P * C + channel;
        constexpr int64_t together = 16;
        Statistics all{all_lanes(0.0f), all_lanes(0.0f)};
        for (int64_t begin = 0; begin < P; begin += together) {
            const int64_t rows = smaller(together, P - begin);
            Lanes row[together];
            for (int64_t r = 0; r < rows; ++r)
                row[r] = take(x + (begin + r) * C, count);
            merge(all, begin, statistics_of_rows(row, rows), rows);
        }
        leave(step.mean + image * C + channel, all.mean, count);
        leave(step.m2 + image * C + channel, all.m2, count);
    }
}

void channel_norm(const ChannelNorm& step) {
    [[maybe_unused]] const int threads = threads_for(step.threads, step.batch * step.channels * 8, numbers_worth_a_thread);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t image = 0; image < step.batch; ++image) norm_of_image(step, image);
}

void row_bias(const RowBias& step) {
    for (int64_t image = 0; image < step.batch; ++image) {
        const float* columns = step.columns + step.slots[image] * step.row + step.at;
        for (int64_t k = 0; k < step.features; ++k)
            step.y[image * step.features + k] = (step.bias ? step.bias[k] : 0.0f) + columns[k];
    }
}

void layer_norm(const LayerNorm& step) {
    const int64_t rows = step.batch * step.positions, C = step.channels;
    [[maybe_unused]] const int threads = threads_for(step.threads, rows * C, numbers_worth_a_thread);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const float* x = step.x + row * C;
        const float mean = sum_of_row(x, C, 0.0f, false) / float(C);
        const float rstd = 1.0f / __builtin_sqrtf(sum_of_row(x, C, mean, true) / float(C) + step.eps);
        for (int64_t c = 0; c < C; c += lanes) {
            const int64_t count = smaller(lanes, C - c);
            leave(step.y + row * C + c, (take(x + c, count) - all_lanes(mean)) * all_lanes(rstd), count);
        }
    }
}

void gated_gelu(const GatedGelu& step) {
    const int64_t rows = step.batch * step.positions, C = step.channels;
    [[maybe_unused]] const int threads = threads_for(step.threads, rows * C * 4, numbers_worth_a_thread);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const float* x = step.x + row * 2 * C;
        constexpr int together = 4;
        int64_t c = 0;
        for (; c + together * lanes <= C; c += together * lanes)
            store_several(step.y + row * C + c, lanes, load_several<together>(x + c, lanes) * gelu(load_several<together>(x + C + c, lanes)));
        for (; c < C; c += lanes) {
            const int64_t count = smaller(lanes, C - c);
            leave(step.y + row * C + c, take(x + c, count) * gelu(Several<1>{{take(x + C + c, count)}}).of[0], count);
        }
    }
}

void resample(const Resample& step) {
    const int64_t lines = step.up ? step.height : step.height / 2, numbers = step.batch * step.height * step.width * step.channels;
    [[maybe_unused]] const int threads = threads_for(step.threads, numbers, numbers_worth_a_thread);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t unit = 0; unit < step.batch * lines; ++unit) resample_line(step, unit / lines, unit % lines);
}

}  // namespace fastcond::cpu::FASTCOND_ISA
