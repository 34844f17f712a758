// token_attention's loops, compiled once for each instruction set (FASTCOND_ISA names it, CMakeLists.txt lists them).
//
// A thread takes one head of one image after the other. Forward, scores are held as [keys][32 queries], so that no softmax adds
// up a register's own lanes. Backward, whose softmax is known, they are held as [queries][16 keys]: that way the gradients of
// keys and values are sums over rows, and that of queries one over columns, which a product can broadcast.
//
// No standard-library templates: the linker would keep one instance for all builds, perhaps the one with the widest
// instructions.
#include "token_attention.h"

#include <cmath>

#include "softmax.h"
#include "workspace.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t work_worth_a_thread = 1 << 17;

struct Sizes {
    int64_t tokens, padded, dimension, chunks;  // tokens up to whole panels; of a head's dimension, chunks of 16
    explicit Sizes(const TokenAttention& call)
        : tokens(call.tokens),
          padded(parts_of(call.tokens, panel) * panel),
          dimension(call.channels / call.heads),
          chunks(parts_of(dimension, lanes)) {}
    int64_t rows() const { return chunks * tokens * lanes; }
    int64_t columns() const { return dimension * padded; }
    int64_t scores() const { return larger(tokens, panel) * panel; }
};

// One head of one image: where its tokens begin, and how far they are apart.
struct Head {
    const float* data;
    int64_t stride;
};

Head head_of(const float* data, int64_t stride, const TokenAttention& call, int64_t item) {
    return {data + item / call.heads * call.tokens * stride + item % call.heads * (call.channels / call.heads), stride};
}

// (tokens of a head) * factor as [chunks of the dimension][tokens][16], 0 where the last chunk has no more.
void copy_rows(const Sizes& s, const Head& head, float factor, float* to) {
    for (int64_t first = 0; first < s.dimension; first += lanes) {
        const int64_t count = smaller(lanes, s.dimension - first);
        const float* from = head.data + first;
        if (count == lanes)
            for (int64_t token = 0; token < s.tokens; ++token, from += head.stride, to += lanes)
                store_lanes(to, load_lanes(from) * all_lanes(factor));
        else
            for (int64_t token = 0; token < s.tokens; ++token, from += head.stride, to += lanes)
                store_lanes(to, load_lanes(from, count) * all_lanes(factor));
    }
}

// The same from [chunks][tokens][16] to the head's own place.
void store_row(const Lanes& value, const Sizes& s, int64_t first, float* to) {
    const int64_t count = smaller(lanes, s.dimension - first);
    if (count == lanes) store_lanes(to + first, value);
    else store_lanes(to + first, value, count);
}

// (tokens of a head) * factor as [dimension][padded tokens], 0 where there is no token.
void copy_columns(const Sizes& s, const Head& head, float factor, float* to) {
    for (int64_t f = 0; f < s.dimension; ++f, to += s.padded) {
        const float* from = head.data + f;
        for (int64_t token = 0; token < s.tokens; ++token, from += head.stride) to[token] = *from * factor;
        for (int64_t token = s.tokens; token < s.padded; ++token) to[token] = 0.0f;
    }
}

// [rows of left, all tokens] by the panel of `columns` from `token`: to [tokens][32].
void multiply_panel(const Sizes& s, const float* rows, const float* columns, int64_t token, float* to) {
    multiply_all(Product{rows, columns + token, to, s.tokens * lanes, s.dimension, s.padded}, s.tokens, panel);
}

int64_t forward_scratch(const Sizes& s) { return 2 * s.rows() + s.columns() + s.scores() + panel * panel; }

void attend(const TokenAttention& call, const Sizes& s, int64_t item, float* scratch) {
    float *keys = scratch, *values = keys + s.rows(), *queries = values + s.rows(), *scores = queries + s.columns();
    float* result = scores + s.scores();
    copy_rows(s, head_of(call.k, call.k_stride, call, item), 1.0f, keys);
    copy_rows(s, head_of(call.v, call.v_stride, call, item), 1.0f, values);
    copy_columns(s, head_of(call.q, call.q_stride, call, item), 1.0f / std::sqrt(float(s.dimension)), queries);
    float* softmax = call.softmax + item * 2 * s.tokens;
    float* y = const_cast<float*>(head_of(call.y, call.channels, call, item).data);
    for (int64_t query = 0; query < s.tokens; query += panel) {
        const int64_t count = smaller(panel, s.tokens - query);
        float largest[panel], share[panel];
        multiply_panel(s, keys, queries, query, scores);
        for (int64_t i = 0; i < panel; i += lanes) {
            const Softmax of = soften(scores + i, s.tokens, -minus_log2_e);
            store_lanes(largest + i, of.largest);
            store_lanes(share + i, of.share);
        }
        for (int64_t i = 0; i < count; ++i) {
            softmax[query + i] = largest[i];
            softmax[s.tokens + query + i] = share[i];
        }
        for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
            multiply_all(ColumnProduct{scores, values + chunk * s.tokens * lanes, result, panel, lanes, s.tokens}, count, lanes);
            for (int64_t i = 0; i < count; ++i)
                store_row(load_lanes(result + i * panel) * all_lanes(share[i]), s, chunk * lanes,
                          y + (query + i) * call.channels);
        }
    }
}

int64_t backward_scratch(const Sizes& s) {
    return 4 * s.rows() + 2 * s.columns() + 4 * s.scores() + whole_lines(s.tokens) + panel * panel;
}

// Sum over a head's dimension of dy y, of each query.
void multiply_tokens(const Sizes& s, const Head& a, const Head& b, float* to) {
    for (int64_t token = 0; token < s.tokens; ++token) {
        const float *left = a.data + token * a.stride, *right = b.data + token * b.stride;
        float sum = 0.0f;
        for (int64_t f = 0; f < s.dimension; ++f) sum += left[f] * right[f];
        to[token] = sum;
    }
}

void attend_backward(const TokenAttention& call, const Sizes& s, int64_t item, float* scratch) {
    float *queries = scratch, *keys = queries + s.rows(), *dy = keys + s.rows(), *dq = dy + s.rows();
    float *key_columns = dq + s.rows(), *value_columns = key_columns + s.columns(), *scores = value_columns + s.columns();
    float *dscores = scores + s.scores(), *p = dscores + s.scores(), *dp = p + s.scores(), *sums = dp + s.scores();
    float* result = sums + whole_lines(s.tokens);
    const float factor = 1.0f / std::sqrt(float(s.dimension));
    const Head of_dy = head_of(call.dy, call.channels, call, item), of_k = head_of(call.k, call.k_stride, call, item);
    copy_rows(s, head_of(call.q, call.q_stride, call, item), factor, queries);
    copy_rows(s, of_k, 1.0f, keys);
    copy_rows(s, of_dy, 1.0f, dy);
    copy_columns(s, of_k, 1.0f, key_columns);
    copy_columns(s, head_of(call.v, call.v_stride, call, item), 1.0f, value_columns);
    multiply_tokens(s, of_dy, head_of(call.y, call.channels, call, item), sums);
    const float *largest = call.softmax + item * 2 * s.tokens, *share = largest + s.tokens;
    const int64_t at = item / call.heads * s.tokens * call.channels + item % call.heads * s.dimension, part = s.tokens * lanes;
    for (int64_t key = 0; key < s.tokens; key += panel) {
        const int64_t count = smaller(panel, s.tokens - key);
        multiply_panel(s, queries, key_columns, key, scores);
        multiply_panel(s, dy, value_columns, key, dscores);
        // To [two halves][queries][16 keys]; there is nothing in a half without keys that would be read.
        for (int64_t half = 0; half * lanes < count; ++half)
            for (int64_t query = 0; query < s.tokens; ++query) {
                const int64_t from = query * panel + half * lanes, to = half * part + query * lanes;
                const Several<1> distance{{(load_lanes(scores + from) - all_lanes(largest[query])) * all_lanes(-minus_log2_e)}};
                const Lanes probability = scaled_power(distance, 1.0f).of[0] * all_lanes(share[query]);
                store_lanes(p + to, probability);
                store_lanes(dp + to, probability * (load_lanes(dscores + from) - all_lanes(sums[query])));
            }
        for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
            for (int64_t half = 0; half * lanes < count; ++half) {
                const int64_t here = smaller(lanes, count - half * lanes);
                float* dk = call.dk + at + (key + half * lanes) * call.channels;
                float* dv = call.dv + at + (key + half * lanes) * call.channels;
                const auto finish = [&](const float* left, const float* right, float* to) {
                    multiply_all(ColumnProduct{left + half * part, right + chunk * part, result, lanes, lanes, s.tokens}, here,
                                 lanes);
                    for (int64_t i = 0; i < here; ++i, to += call.channels)
                        store_row(load_lanes(result + i * panel), s, chunk * lanes, to);
                };
                finish(p, dy, dv);
                finish(dp, queries, dk);
            }
            multiply_all(Product{dp, keys + chunk * part + key * lanes, scores, part, count, lanes}, s.tokens, lanes);
            for (int64_t query = 0; query < s.tokens; ++query) {
                float* to = dq + chunk * part + query * lanes;
                const Lanes sum = load_lanes(scores + query * panel) * all_lanes(factor);
                store_lanes(to, key ? load_lanes(to) + sum : sum);
            }
        }
    }
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk)
        for (int64_t query = 0; query < s.tokens; ++query)
            store_row(load_lanes(dq + chunk * part + query * lanes), s, chunk * lanes, call.dq + at + query * call.channels);
}

// `item` of all heads of all images, on as many threads as are worth it.
template <typename Step>
void for_each_head(const TokenAttention& call, int64_t scratch_size, const Step& step) {
    const int64_t items = call.batch * call.heads, dimension = call.channels / call.heads;
    const int64_t work = items * call.tokens * call.tokens * (dimension + lanes);
    [[maybe_unused]] const int64_t threads = larger(1, smaller(call.threads, work / work_worth_a_thread));
#pragma omp parallel num_threads(int(threads)) if (threads > 1)
    {
        thread_local Workspace of_thread;
        float* scratch = of_thread.take(scratch_size);
#pragma omp for schedule(static)
        for (int64_t item = 0; item < items; ++item) step(item, scratch);
    }
}

}  // namespace

void token_attention(const TokenAttention& call) {
    const Sizes s(call);
    for_each_head(call, forward_scratch(s), [&](int64_t item, float* scratch) { attend(call, s, item, scratch); });
}

void token_attention_backward(const TokenAttention& call) {
    const Sizes s(call);
    for_each_head(call, backward_scratch(s), [&](int64_t item, float* scratch) { attend_backward(call, s, item, scratch); });
}

}  // namespace fastcond::cpu::FASTCOND_ISA
