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

#include "softmax.h"
#include "transposition.h"
#include "workspace.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t products_worth_a_thread = 1 << 18;

struct Sizes {
    int64_t tokens, panels, chunks, dimension;  // panels of 32 tokens, chunks of 16 channels
    explicit Sizes(const SmallAttention& call)
        : tokens(call.tokens),
          panels(parts_of(call.tokens, panel)),
          chunks(parts_of(call.channels, lanes)),
          dimension(call.channels / call.heads) {}
    // Tokens of a panel, and these up to whole Lanes.
    int64_t rows(int64_t of) const { return smaller(panel, tokens - of * panel); }
    int64_t columns(int64_t of) const { return parts_of(rows(of), lanes) * lanes; }
};

// What the steps of one image hand on. A product broadcasts one operand and reads the other by registers: all but the values have
// 32 tokens side by side.
struct Buffers {
    float* normalised;    // [panels][16 chunks][32]; later, in its place, what the queries attended to as [panels][C][32]
    float* queries_keys;  // [panels][2C][32]
    float* values;        // [blocks of features][tokens][32], of which those that have values are there

    static int64_t normalised_size(const Sizes& s) { return s.panels * s.chunks * lanes * panel; }
    static int64_t queries_keys_size(const SmallAttention& call, const Sizes& s) { return s.panels * 2 * call.channels * panel; }
    static int64_t first_block(const SmallAttention& call) { return 2 * call.channels / panel; }
    static int64_t size(const SmallAttention& call, const Sizes& s) {
        const int64_t blocks = parts_of(3 * call.channels, panel) - first_block(call);
        return normalised_size(s) + queries_keys_size(call, s) + blocks * panel * call.tokens;
    }
    Buffers(const SmallAttention& call, const Sizes& s, float* memory)
        : normalised(memory),
          queries_keys(memory + normalised_size(s)),
          values(queries_keys + queries_keys_size(call, s) - first_block(call) * panel * call.tokens) {}
    float* attended() const { return normalised; }
};

// A thread's own: scores [tokens][32], and a product's result.
struct Scratch {
    float *scores, *result;

    static int64_t size(const Sizes& s) { return (s.panels + 1) * panel * panel; }
    Scratch(const Sizes& s, float* memory) : scores(memory), result(memory + s.panels * panel * panel) {}
};

// Sixteen channels, of all tokens.
void normalise(const SmallAttention& call, const Sizes& s, int64_t image, int64_t chunk, const Buffers& buffers) {
    const int64_t first = chunk * lanes, count = smaller(lanes, call.channels - first), at = image * call.channels + first;
    const float* x = call.x + image * s.tokens * call.channels + first;
    Lanes mean = all_lanes(0.0f), gain = mean, offset = mean;
    if (call.mean) {
        mean = load_lanes(call.mean + at, count);
        gain = load_lanes(call.gain + at, count);
        offset = load_lanes(call.offset + at, count);
    }
    for (int64_t begin = 0; begin < s.tokens; begin += lanes) {
        float rows[lanes * lanes];
        for (int64_t i = 0; i < lanes; ++i) {
            Lanes value = all_lanes(0.0f);
            if (begin + i < s.tokens) {
                const float* from = x + (begin + i) * call.channels;
                value = count == lanes ? load_lanes(from) : load_lanes(from, count);
                if (call.mean) value = fused(value - mean, gain, offset);
            }
            store_lanes(rows + i * lanes, value);
        }
        transpose(rows, lanes, buffers.normalised + (begin / panel * s.chunks * lanes + first) * panel + begin % panel, panel);
    }
}

// Features in a row of the block that `first` starts.
FASTCOND_INLINE int64_t width_of(int64_t features, int64_t first) { return features - first > lanes ? panel : lanes; }

// A bias of the keys adds the same to all of a query's scores, which a softmax does not see.
void add_bias_of_queries(const SmallAttention& call, int64_t first, int64_t rows, int64_t columns, float* to) {
    for (int64_t f = first; f < smaller(first + rows, call.channels); ++f, to += panel)
        for (int64_t i = 0; i < columns; i += lanes) store_lanes(to + i, load_lanes(to + i) + all_lanes(call.qkv_bias[f]));
}

void multiply_qkv(const SmallAttention& call, const Sizes& s, int64_t block, const Buffers& buffers) {
    const int64_t C = call.channels, first = block * panel, width = width_of(3 * C, first);
    const float* weight = call.packed + first * C;
    for (int64_t of = 0; of < s.panels; ++of) {
        const float* tokens = buffers.normalised + of * s.chunks * lanes * panel;
        const int64_t rows = smaller(panel, 2 * C - first), columns = s.columns(of);
        if (rows > 0) {
            float* to = buffers.queries_keys + (of * 2 * C + first) * panel;
            multiply_all(ColumnProduct{weight, tokens, to, width, panel, C}, rows, columns);
            if (call.qkv_bias) add_bias_of_queries(call, first, rows, columns, to);
        }
        if (first + panel > 2 * C)
            multiply_all(ColumnProduct{tokens, weight, buffers.values + (first * s.tokens + of * panel * panel), panel, width, C},
                         s.rows(of), width);
    }
}

void attend(const SmallAttention& call, const Sizes& s, int64_t head, const Buffers& buffers, const Scratch& scratch) {
    const int64_t C = call.channels, first = head * s.dimension, end = 2 * C + first + s.dimension;
    const float factor = -minus_log2_e / std::sqrt(float(s.dimension));
    const auto features = [&](int64_t of, int64_t f) { return buffers.queries_keys + (of * 2 * C + f) * panel; };
    for (int64_t of = 0; of < s.panels; ++of) {
        const int64_t columns = s.columns(of);
        for (int64_t keys = 0; keys < s.panels; ++keys)
            multiply_all(ColumnProduct{features(keys, C + first), features(of, first), scratch.scores + keys * panel * panel, panel, panel,
                                       s.dimension},
                         s.rows(keys), columns);
        Lanes share[2];
        for (int64_t i = 0; i < columns; i += lanes) share[i / lanes] = soften(scratch.scores + i, s.tokens, factor).share;
        for (int64_t f = 2 * C + first; f < end;) {
            const int64_t rows = smaller(end - f, panel - f % panel);
            const float* values = buffers.values + f / panel * panel * s.tokens + f % panel;
            multiply_all(ColumnProduct{values, scratch.scores, scratch.result, panel, panel, s.tokens}, rows, columns);
            for (int64_t row = 0; row < rows; ++row, ++f) {
                const Lanes bias = all_lanes(call.qkv_bias ? call.qkv_bias[f] : 0.0f);
                for (int64_t i = 0; i < columns; i += lanes)
                    store_lanes(buffers.attended() + (of * C + f - 2 * C) * panel + i,
                                fused(load_lanes(scratch.result + row * panel + i), share[i / lanes], bias));
            }
        }
    }
}

void project(const SmallAttention& call, const Sizes& s, int64_t image, int64_t block, const Buffers& buffers) {
    const int64_t C = call.channels, first = block * panel, width = width_of(C, first);
    const float* weight = call.packed + (parts_of(3 * C, lanes) * lanes + first) * C;
    for (int64_t of = 0; of < s.panels; ++of) {
        const int64_t at = (image * s.tokens + of * panel) * C + first;
        Finish to{call.out_bias ? call.out_bias + image * call.out_bias_stride + first : nullptr,
                  call.residual ? call.residual + at : nullptr, call.y + at, C, C - first};
        to.scale = call.scale;
        multiply_all(FinishedColumns{buffers.attended() + of * C * panel, weight, panel, width, C, to}, s.rows(of), width);
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
#pragma omp for schedule(static) nowait
        for (int64_t image = 0; image < alone; ++image) {
            for (int64_t i = 0; i < s.chunks; ++i) normalise(call, s, image, i, mine);
            for (int64_t i = 0; i < qkv_blocks; ++i) multiply_qkv(call, s, i, mine);
            for (int64_t i = 0; i < call.heads; ++i) attend(call, s, i, mine, scratch);
            for (int64_t i = 0; i < out_blocks; ++i) project(call, s, image, i, mine);
        }
        for (int64_t image = alone; image < call.batch; ++image) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < s.chunks; ++i) normalise(call, s, image, i, ours);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < qkv_blocks; ++i) multiply_qkv(call, s, i, ours);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < call.heads; ++i) attend(call, s, i, ours, scratch);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < out_blocks; ++i) project(call, s, image, i, ours);
        }
    }
}

}  // namespace fastcond::cpu::FASTCOND_ISA
