// small_attention's loops, compiled once for each instruction set (FASTCOND_ISA names it, CMakeLists.txt lists them).
//
// Scores are held as [keys][32 queries]: a softmax is then as many softmaxes as there are lanes, none adds up a register's own,
// and a head's dimension may be 8 or any other without an idle lane. A thread takes whole images; those that are left over the
// threads do together, step by step.
//
// No standard-library templates: the linker would keep one instance for all builds, perhaps the one with the widest
// instructions.
#include "small_attention.h"

#include <cmath>

#include "exponential.h"
#include "products.h"
#include "workspace.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t products_worth_a_thread = 1 << 18;

struct Sizes {
    int64_t tokens, padded, chunks, dimension;
    explicit Sizes(const SmallAttention& call)
        : tokens(call.tokens),
          padded(parts_of(call.tokens, lanes) * lanes),
          chunks(parts_of(call.channels, lanes)),
          dimension(call.channels / call.heads) {}
};

// What the steps of one image hand on.
struct Buffers {
    float* normalised;  // [chunks of channels][tokens][16]
    float* qkv;         // [blocks of features][tokens][32]
    float* attended;    // [C][padded tokens]

    static int64_t normalised_size(const Sizes& s) { return s.chunks * s.tokens * lanes; }
    static int64_t qkv_size(const SmallAttention& call) { return parts_of(3 * call.channels, panel) * panel * call.tokens; }
    static int64_t size(const SmallAttention& call, const Sizes& s) {
        return normalised_size(s) + qkv_size(call) + call.channels * s.padded;
    }
    Buffers(const SmallAttention& call, const Sizes& s, float* memory)
        : normalised(memory), qkv(memory + normalised_size(s)), attended(qkv + qkv_size(call)) {}
};

// A thread's own: queries and keys of a head as [dimension][padded tokens], scores [tokens][32], and a product's result.
struct Scratch {
    float *queries, *keys, *scores, *result;

    static int64_t rows(const Sizes& s) { return larger(s.tokens, panel); }
    static int64_t size(const Sizes& s) { return 2 * s.dimension * s.padded + (s.tokens + rows(s)) * panel; }
    Scratch(const Sizes& s, float* memory)
        : queries(memory),
          keys(queries + s.dimension * s.padded),
          scores(keys + s.dimension * s.padded),
          result(scores + s.tokens * panel) {}
};

void normalise(const SmallAttention& call, const Sizes& s, int64_t image, int64_t chunk, const Buffers& buffers) {
    const int64_t first = chunk * lanes, count = smaller(lanes, call.channels - first), at = image * call.channels + first;
    const float* x = call.x + image * s.tokens * call.channels + first;
    float* to = buffers.normalised + chunk * s.tokens * lanes;
    Lanes mean = all_lanes(0.0f), gain = mean, offset = mean;
    if (call.mean) {
        mean = load_lanes(call.mean + at, count);
        gain = load_lanes(call.gain + at, count);
        offset = load_lanes(call.offset + at, count);
    }
    for (int64_t token = 0; token < s.tokens; ++token, x += call.channels, to += lanes) {
        Lanes value = count == lanes ? load_lanes(x) : load_lanes(x, count);
        if (call.mean) value = fused(value - mean, gain, offset);
        store_lanes(to, value);
    }
}

// Features in a row of the block that `first` starts.
FASTCOND_INLINE int64_t width_of(int64_t features, int64_t first) { return features - first > lanes ? panel : lanes; }

void multiply_qkv(const SmallAttention& call, const Sizes& s, int64_t block, const Buffers& buffers) {
    const int64_t first = block * panel, width = width_of(3 * call.channels, first);
    multiply_all(Product{buffers.normalised, call.packed + first * call.channels, buffers.qkv + first * s.tokens, s.tokens * lanes,
                         call.channels, width},
                 s.tokens, width);
}

// Where feature `f` of queries, keys and values is: of the first token, the next is 32 further.
FASTCOND_INLINE const float* feature_of(const Buffers& buffers, const Sizes& s, int64_t f) {
    return buffers.qkv + f / panel * panel * s.tokens + f % panel;
}

// (value + bias) * factor of a head's features from `first`, as [dimension][padded tokens].
void turn(const Sizes& s, const Buffers& buffers, int64_t first, const float* bias, float factor, float* to) {
    for (int64_t f = first; f < first + s.dimension; ++f, to += s.padded) {
        const float* from = feature_of(buffers, s, f);
        const float added = bias ? bias[f] : 0.0f;
        for (int64_t token = 0; token < s.tokens; ++token) to[token] = (from[token * panel] + added) * factor;
        for (int64_t token = s.tokens; token < s.padded; ++token) to[token] = 0.0f;
    }
}

// scores [tokens][32], sixteen queries of them: e^(score - largest), and 1 over their sum, NaN where a score is no number.
Lanes soften(float* scores, int64_t tokens) {
    Lanes largest = load_lanes(scores);
    for (int64_t key = 1; key < tokens; ++key) largest = larger(load_lanes(scores + key * panel), largest);
    Lanes sum = all_lanes(0.0f);
    for (int64_t key = 0; key < tokens; ++key) {
        const Lanes distance = load_lanes(scores + key * panel) - largest;
        const Lanes power = exponential(distance);
        store_lanes(scores + key * panel, power);
        sum = sum + (power + (distance - distance));
    }
    return all_lanes(1.0f) / sum;
}

void attend(const SmallAttention& call, const Sizes& s, int64_t head, const Buffers& buffers, const Scratch& scratch) {
    const int64_t C = call.channels, first = head * s.dimension, end = 2 * C + first + s.dimension;
    // A bias of the keys adds the same to all of a query's scores, which a softmax does not see.
    turn(s, buffers, first, call.qkv_bias, 1.0f / std::sqrt(float(s.dimension)), scratch.queries);
    turn(s, buffers, C + first, nullptr, 1.0f, scratch.keys);
    for (int64_t query = 0; query < s.padded; query += panel) {
        const int64_t columns = smaller(panel, s.padded - query);
        multiply_all(ColumnProduct{scratch.keys, scratch.queries + query, scratch.scores, s.padded, s.padded, s.dimension}, s.tokens,
                     columns);
        Lanes share[2];
        for (int64_t i = 0; i < columns; i += lanes) share[i / lanes] = soften(scratch.scores + i, s.tokens);
        for (int64_t f = 2 * C + first; f < end;) {
            const int64_t rows = smaller(end - f, panel - f % panel);
            multiply_all(ColumnProduct{feature_of(buffers, s, f), scratch.scores, scratch.result, panel, panel, s.tokens}, rows,
                         columns);
            for (int64_t row = 0; row < rows; ++row, ++f) {
                const Lanes bias = all_lanes(call.qkv_bias ? call.qkv_bias[f] : 0.0f);
                for (int64_t i = 0; i < columns; i += lanes)
                    store_lanes(buffers.attended + (f - 2 * C) * s.padded + query + i,
                                fused(load_lanes(scratch.result + row * panel + i), share[i / lanes], bias));
            }
        }
    }
}

void project(const SmallAttention& call, const Sizes& s, int64_t image, int64_t block, const Buffers& buffers, float* result) {
    const int64_t C = call.channels, first = block * panel, width = width_of(C, first);
    const float* weight = call.packed + (parts_of(3 * C, lanes) * lanes + first) * C;
    multiply_all(ColumnProduct{buffers.attended, weight, result, s.padded, width, C}, s.tokens, width);
    for (int64_t column = 0; column < width && first + column < C; column += lanes) {
        const int64_t feature = first + column, count = smaller(lanes, C - feature);
        const float* out_bias = call.out_bias ? call.out_bias + image * call.out_bias_stride + feature : nullptr;
        const Lanes bias = out_bias ? load_lanes(out_bias, count) : all_lanes(0.0f);
        for (int64_t token = 0; token < s.tokens; ++token) {
            const int64_t at = (image * s.tokens + token) * C + feature;
            Lanes y = load_lanes(result + token * panel + column) + bias;
            if (call.residual) y = y + (count == lanes ? load_lanes(call.residual + at) : load_lanes(call.residual + at, count));
            y = y * all_lanes(call.scale);
            if (count == lanes) store_lanes(call.y + at, y);
            else store_lanes(call.y + at, y, count);
        }
    }
}

}  // namespace

void small_attention(const SmallAttention& call) {
    thread_local Workspace of_call;
    const Sizes s(call);
    const int64_t C = call.channels, work = call.batch * s.tokens * C * (4 * C + 2 * s.tokens);
    [[maybe_unused]] const int64_t threads = larger(1, smaller(call.threads, work / products_worth_a_thread));
    const int64_t alone = call.batch / threads * threads;
    const int64_t qkv_blocks = parts_of(3 * C, panel), out_blocks = parts_of(C, panel);
    float* shared = of_call.take(alone < call.batch ? Buffers::size(call, s) : 0);
#pragma omp parallel num_threads(int(threads)) if (threads > 1)
    {
        thread_local Workspace of_thread;
        const int64_t own = alone ? whole_lines(Buffers::size(call, s)) : 0;
        float* memory = of_thread.take(own + Scratch::size(s));
        const Scratch scratch(s, memory + own);
        const Buffers mine(call, s, memory), ours(call, s, shared);
#pragma omp for schedule(dynamic) nowait
        for (int64_t image = 0; image < alone; ++image) {
            for (int64_t i = 0; i < s.chunks; ++i) normalise(call, s, image, i, mine);
            for (int64_t i = 0; i < qkv_blocks; ++i) multiply_qkv(call, s, i, mine);
            for (int64_t i = 0; i < call.heads; ++i) attend(call, s, i, mine, scratch);
            for (int64_t i = 0; i < out_blocks; ++i) project(call, s, image, i, mine, scratch.result);
        }
        for (int64_t image = alone; image < call.batch; ++image) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < s.chunks; ++i) normalise(call, s, image, i, ours);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < qkv_blocks; ++i) multiply_qkv(call, s, i, ours);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < call.heads; ++i) attend(call, s, i, ours, scratch);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < out_blocks; ++i) project(call, s, image, i, ours, scratch.result);
        }
    }
}

}  // namespace fastcond::cpu::FASTCOND_ISA
