// Products of matrices with the sums in registers, by fused multiply-adds: their bits differ between instruction sets. An
// element's terms are added one after another, whatever rows and columns are computed beside it.
#pragma once

#include "lanes.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

FASTCOND_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FASTCOND_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FASTCOND_INLINE constexpr int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

constexpr int64_t register_lanes = lanes / registers;
constexpr int64_t panel = 32;  // features of a block of the packed weight

// A register tile is `rows` tiles by `vectors` registers of features: 28 sums of AVX-512's 32 registers, 12 of the others' 16.
#if defined(__AVX512F__)
constexpr int most_rows = 14;
#else
constexpr int most_rows = 6;
#endif

// [tiles x C] [C x width]. Channels come in chunks of 16: v is [chunks][tiles][16].
struct Product {
    const float* v;
    const float* u;        // [C][width]
    float* m;              // [tiles][panel]
    int64_t chunk_stride;  // from a chunk of v to the next
    int64_t channels;
    int64_t width;         // features in a row of u, a panel's or 16
    // Asked for meanwhile, a term after the other: lines of the weights of the product that comes next, where the processor's own
    // prefetching stops at each page. Two lines a term, of which the second may be the first again.
    const float* ahead = nullptr;
    int64_t ahead_step = 0, ahead_second = 0;
    const float* end = nullptr;  // of the weights; null: none come next
    // And, a few at a time, lines of what is made of the products: `wide` floats at each of some places after `written`, and after
    // `added` where there is one. (A processor drops requests that come faster than it can note them.)
    const int64_t* place = nullptr;
    int64_t places = 0, wide = 0;
    const float *written = nullptr, *added = nullptr;
};

FASTCOND_INLINE void fetch_place(const Product& p, int64_t place) {
    for (int64_t line = 0; line < p.wide; line += 16) {
        fetch_to_write(p.written + place + line);
        if (p.added) fetch(p.added + place + line);
    }
}

// Adds one term to every sum: left(row) times a row of `right`.
template <int rows, int vectors, typename Left>
FASTCOND_INLINE void add_term(FloatRegister (&sums)[rows][vectors], Left left, const float* right) {
    FloatRegister b[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) std::memcpy(&b[j], right + j * register_lanes, sizeof b[j]);
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r) {
        const FloatRegister a = left(r) - FloatRegister{};  // in all lanes: x - 0 is x, -0 too
#pragma GCC unroll 2
        for (int j = 0; j < vectors; ++j) sums[r][j] = fused(a, b[j], sums[r][j]);
    }
}

// The same of a column whose rows are `row_stride` floats apart.
template <int rows, int vectors, int row_stride>
FASTCOND_INLINE void add_term(FloatRegister (&sums)[rows][vectors], const float* left, const float* right) {
    add_term(sums, [=](int r) FASTCOND_INLINE_LAMBDA { return left[r * row_stride]; }, right);
}

template <int rows, int vectors>
FASTCOND_INLINE void set_zero(FloatRegister (&sums)[rows][vectors]) {
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; ++j) sums[r][j] = FloatRegister{};
}

template <int rows, int vectors>
FASTCOND_INLINE void store_sums(const FloatRegister (&sums)[rows][vectors], float* to) {
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; ++j) std::memcpy(to + r * panel + j * register_lanes, &sums[r][j], sizeof sums[r][j]);
}

template <int rows, int vectors>
void multiply(const Product& p) {
    FloatRegister sums[rows][vectors];
    set_zero(sums);
    const float *v = p.v, *u = p.u, *ahead = p.ahead;
    const int64_t *place = p.place, *const last_place = place + p.places;
    const int64_t a_chunk = parts_of(p.places, parts_of(p.channels, lanes));
    for (int64_t left = p.channels; left > 0; left -= lanes, v += p.chunk_stride) {
        for (int64_t i = 0; i < a_chunk && place < last_place; ++i) fetch_place(p, *place++);
        for (int64_t c = 0; c < smaller(left, lanes); ++c, u += p.width) {
#if defined(__GNUC__)
            __builtin_prefetch(ahead);
            __builtin_prefetch(ahead + p.ahead_second);
            ahead += p.ahead_step;
#endif
            add_term<rows, vectors, int(lanes)>(sums, v + c, u);
        }
    }
    store_sums(sums, p.m);
}

// left is stored by columns: [depth][left_stride], a column's rows side by side. right is [depth][right_stride], to [rows][panel].
// `added`: to what is there.
template <bool added>
struct Columns {
    const float* left;
    const float* right;
    float* to;
    int64_t left_stride;
    int64_t right_stride;
    int64_t depth;
};
using ColumnProduct = Columns<false>;
using AddedProduct = Columns<true>;

template <int rows, int vectors, bool added>
void multiply(const Columns<added>& p) {
    FloatRegister sums[rows][vectors];
    set_zero(sums);
    const float *left = p.left, *right = p.right;
    for (int64_t i = 0; i < p.depth; ++i, left += p.left_stride, right += p.right_stride)
        add_term<rows, vectors, 1>(sums, left, right);
    if constexpr (added) {
#pragma GCC unroll 14
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
            for (int j = 0; j < vectors; ++j) {
                FloatRegister before;
                std::memcpy(&before, p.to + r * panel + j * register_lanes, sizeof before);
                sums[r][j] = sums[r][j] + before;
            }
    }
    store_sums(sums, p.to);
}

// Where sums go that are a layer's output: (sum + bias + residual) scale.
struct Finish {
    const float* bias;      // of a row of y, or null
    const float* residual;  // like y, or null
    float* y;               // rows `stride` floats apart, written `copies` times, copy_stride floats apart
    int64_t stride;
    int64_t features;  // that there are, of the product's columns
    int64_t copies = 1, copy_stride = 0;
    float scale = 1.0f;

    FASTCOND_INLINE void move(int64_t row, int64_t column) {
        if (bias) bias += column;
        if (residual) residual += row * stride + column;
        y += row * stride + column;
        features -= column;
    }
    // A row's lines are asked for long before they are needed.
    template <int vectors>
    FASTCOND_INLINE void ask_for(int64_t row) const {
#pragma GCC unroll 2
        for (int64_t j = 0; j < vectors * register_lanes; j += lanes) {
            fetch_to_write(y + row * stride + j);
            if (residual) fetch(residual + row * stride + j);
        }
    }
};

template <int rows, int vectors>
FASTCOND_INLINE void finish_sums(const FloatRegister (&sums)[rows][vectors], const Finish& f) {
    if (f.features < vectors * register_lanes) {
        for (int r = 0; r < rows; ++r) {
            float row[vectors * register_lanes];
            for (int j = 0; j < vectors; ++j) std::memcpy(row + j * register_lanes, &sums[r][j], sizeof sums[r][j]);
            for (int64_t k = 0; k < f.features; ++k) {
                const float sum = row[k] + (f.bias ? f.bias[k] : 0.0f);
                const float y = (f.residual ? sum + f.residual[r * f.stride + k] : sum) * f.scale;
                for (int64_t copy = 0; copy < f.copies; ++copy) f.y[copy * f.copy_stride + r * f.stride + k] = y;
            }
        }
        return;
    }
    FloatRegister bias[vectors] = {};
    const FloatRegister scale = f.scale - FloatRegister{};
    if (f.bias) std::memcpy(bias, f.bias, sizeof bias);
#pragma GCC unroll 14
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; ++j) {
            const int64_t at = r * f.stride + j * register_lanes;
            FloatRegister y = sums[r][j] + bias[j], more;
            if (f.residual) {
                std::memcpy(&more, f.residual + at, sizeof more);
                y = y + more;
            }
            y = y * scale;
            for (int64_t copy = 0; copy < f.copies; ++copy) std::memcpy(f.y + copy * f.copy_stride + at, &y, sizeof y);
        }
}

// The terms after which one more row of the output is asked for.
constexpr int64_t terms_a_row = 4;

// [rows x depth] [depth x width], finished. Left's terms come in chunks of 16: it is [chunks][rows][16].
struct ChunkProduct {
    const float* left;
    const float* right;  // [depth][width]
    int64_t chunk_stride, depth, width;
    Finish to;
};

template <int rows, int vectors>
void multiply(const ChunkProduct& p) {
    FloatRegister sums[rows][vectors];
    set_zero(sums);
    const float *left = p.left, *right = p.right;
    int64_t row = 0;
    for (int64_t rest = p.depth; rest > 0; rest -= lanes, left += p.chunk_stride)
        for (int64_t i = 0; i < smaller(rest, lanes); ++i, right += p.width) {
            if (i % terms_a_row == 0 && row < rows) p.to.ask_for<vectors>(row++);
            add_term<rows, vectors, int(lanes)>(sums, left + i, right);
        }
    finish_sums(sums, p.to);
}

// The same of rows as they lie in memory, `channels` floats apart, of one source and perhaps a second one whose terms follow.
struct RowProduct {
    struct Source {
        const float* x;
        int64_t channels;
    };
    Source first, second;
    const float* right;  // [C][width]
    int64_t width;
    Finish to;
};

template <int rows, int vectors>
void multiply(const RowProduct& p) {
    constexpr int apart = 3;  // rows that an instruction's address reaches from one pointer
    FloatRegister sums[rows][vectors];
    set_zero(sums);
    const float* right = p.right;
    int64_t row = 0;
    for (int of = 0; of < 2; ++of) {
        const RowProduct::Source& source = of ? p.second : p.first;
        const float* left[parts_of(rows, apart)];
        for (int i = 0; i * apart < rows; ++i) left[i] = source.x + i * apart * source.channels;
        for (int64_t c = 0; c < source.channels; ++c, right += p.width) {
            if (c % terms_a_row == 0 && row < rows) p.to.ask_for<vectors>(row++);
            const auto row_of = [&](int r) FASTCOND_INLINE_LAMBDA { return left[r / apart][r % apart * source.channels + c]; };
            add_term(sums, row_of, right);
        }
    }
    finish_sums(sums, p.to);
}

// The same of a left side by columns, as in Columns.
struct FinishedColumns {
    const float* left;
    const float* right;
    int64_t left_stride, right_stride, depth;
    Finish to;
};

template <int rows, int vectors>
void multiply(const FinishedColumns& p) {
    FloatRegister sums[rows][vectors];
    set_zero(sums);
    const float *left = p.left, *right = p.right;
    int64_t row = 0;
    for (int64_t i = 0; i < p.depth; ++i, left += p.left_stride, right += p.right_stride) {
        if (i % terms_a_row == 0 && row < rows) p.to.ask_for<vectors>(row++);
        add_term<rows, vectors, 1>(sums, left, right);
    }
    finish_sums(sums, p.to);
}

template <int vectors, typename P>
void multiply_rows(int64_t rows, const P& p) {
    switch (rows) {
#define FASTCOND_ROWS(n) \
    case n: return multiply<n, vectors>(p);
#if defined(__AVX512F__)
        FASTCOND_ROWS(14) FASTCOND_ROWS(13) FASTCOND_ROWS(12) FASTCOND_ROWS(11) FASTCOND_ROWS(10) FASTCOND_ROWS(9)
        FASTCOND_ROWS(8) FASTCOND_ROWS(7)
#endif
        FASTCOND_ROWS(6) FASTCOND_ROWS(5) FASTCOND_ROWS(4) FASTCOND_ROWS(3) FASTCOND_ROWS(2) FASTCOND_ROWS(1)
#undef FASTCOND_ROWS
    }
}

FASTCOND_INLINE Product moved(Product p, int64_t row, int64_t column) {
    p.v += row * lanes;
    p.u += column;
    p.m += row * panel + column;
    return p;
}
// What a pass of `passes` over the same columns asks for. Each of the first two asks for half of the weights that come next, so that
// memory is busy all the while.
template <typename P>
FASTCOND_INLINE P looking_ahead(const P& p, int64_t, int64_t, int64_t) { return p; }
FASTCOND_INLINE Product looking_ahead(Product p, int64_t columns, int64_t pass, int64_t passes) {
    const int64_t first_place = p.places * pass / passes;
    p.place += first_place;
    p.places = p.places * (pass + 1) / passes - first_place;
    p.ahead = p.u + p.channels * p.width;
    if (p.ahead >= p.end) {
        p.ahead = p.u;
        return p;
    }
    p.ahead_step = p.width;
    if (columns == 2 * 16 && columns == p.width) {
        if (passes == 1) {
            p.ahead_second = 16;
        } else {
            p.ahead += pass == 1 ? p.channels * 16 : 0;
            p.ahead_step = pass < 2 ? 16 : 0;
        }
    }
    return p;
}
template <bool added>
FASTCOND_INLINE Columns<added> moved(Columns<added> p, int64_t row, int64_t column) {
    p.left += row;
    p.right += column;
    p.to += row * panel + column;
    return p;
}

FASTCOND_INLINE ChunkProduct moved(ChunkProduct p, int64_t row, int64_t column) {
    p.left += row * lanes;
    p.right += column;
    p.to.move(row, column);
    return p;
}
FASTCOND_INLINE RowProduct moved(RowProduct p, int64_t row, int64_t column) {
    p.first.x += row * p.first.channels;
    p.second.x += row * p.second.channels;
    p.right += column;
    p.to.move(row, column);
    return p;
}
FASTCOND_INLINE FinishedColumns moved(FinishedColumns p, int64_t row, int64_t column) {
    p.left += row;
    p.right += column;
    p.to.move(row, column);
    return p;
}

// `rows` by `columns` (16 or 32) of a product. The rows are divided evenly: 8 and 8 rather than 14 and 2.
template <typename P>
FASTCOND_INLINE void multiply_all(const P& p, int64_t rows, int64_t columns) {
    const int64_t passes = parts_of(rows, most_rows);
    constexpr int64_t pair = 2 * register_lanes;
    for (int64_t column = 0; column < columns; column += pair)
        for (int64_t pass = 0, row = 0, here = 0; pass < passes; ++pass, row += here) {
            here = rows / passes + (pass < rows % passes);
            if (columns - column >= pair) multiply_rows<2>(here, looking_ahead(moved(p, row, column), pair, pass, passes));
            else multiply_rows<1>(here, looking_ahead(moved(p, row, column), register_lanes, pass, passes));
        }
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
