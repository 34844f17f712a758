// One row of the six of Winograd's transforms of a tile, sixteen channels at a time: what a thread needs that has taken one row
// of the 36 products. The points are norm_conv's.
#pragma once

#include "norm_conv_points.h"
#include "products.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

using winograd::inputs;
using winograd::outputs;

constexpr double B_transposed[inputs][inputs] = {
    {winograd::a2 * winograd::b2, 0, -(winograd::a2 + winograd::b2), 0, 1, 0},
    {0, -winograd::a * winograd::b2, -winograd::b2, winograd::a, 1, 0},
    {0, winograd::a * winograd::b2, -winograd::b2, -winograd::a, 1, 0},
    {0, -winograd::b * winograd::a2, -winograd::a2, winograd::b, 1, 0},
    {0, winograd::b * winograd::a2, -winograd::a2, -winograd::b, 1, 0},
    {0, winograd::a2 * winograd::b2, 0, -(winograd::a2 + winograd::b2), 0, 1},
};

constexpr double power(double p, int n) { return n == 0 ? 1 : p * power(p, n - 1); }
constexpr double point(int i) { return i == 1 ? winograd::a : i == 2 ? -winograd::a : i == 3 ? winograd::b : -winograd::b; }
// A row of A: (1, p, p^2, p^3), of 0 and of infinity one of them alone.
constexpr double A(int i, int j) { return i == 0 ? j == 0 : i == inputs - 1 ? j == outputs - 1 : power(point(i), j); }

// Positions [B, H, W, channels], and the tile at a place.
struct Map {
    const float* data;
    int64_t height, width, channels;
};

struct Tile {
    int64_t image, row, column;

    Tile(int64_t i, int64_t rows, int64_t columns) : image(i / (rows * columns)), row(i / columns % rows), column(i % columns) {}
    void next(int64_t rows, int64_t columns) {
        if (++column < columns) return;
        column = 0;
        if (++row < rows) return;
        row = 0;
        ++image;
    }
};

// What lies outside a map is read from here.
alignas(64) constexpr float nothing[lanes] = {};

// `size` rows of positions below one another, whichever of them there are.
template <int size>
struct Rows {
    const float* of[size];
    int64_t step[size];

    Rows(const Map& map, int64_t image, int64_t top, int64_t left, int64_t channel) {
        for (int i = 0; i < size; ++i) {
            const int64_t y = top + i;
            const bool inside = y >= 0 && y < map.height;
            of[i] = inside ? map.data + ((image * map.height + y) * map.width + left) * map.channels + channel : nothing;
            step[i] = inside ? map.channels : 0;
        }
    }
};

template <bool whole>
FASTCOND_INLINE Lanes load_channels(const float* from, int64_t count) {
    if constexpr (whole) return load_lanes(from);
    else return load_lanes(from, count);
}

// A sum of products with constants, of which those with 0 are left out.
template <int row, bool whole, typename Coefficient, int size>
FASTCOND_INLINE Lanes of_column(const Coefficient& coefficient, const Rows<size>& rows, int64_t column, int64_t channels) {
    Lanes sum = all_lanes(0.0f);
    bool first = true;
#pragma GCC unroll 6
    for (int i = size - 1; i >= 0; --i) {
        if (coefficient(row, i) == 0) continue;
        const Lanes term = load_channels<whole>(rows.of[i] + column * rows.step[i], channels);
        const Lanes by = all_lanes(float(coefficient(row, i)));
        sum = !first ? fused(term, by, sum) : coefficient(row, i) == 1 ? term : term * by;
        first = false;
    }
    return sum;
}

// Row `row` of B^T d B to six places of `to`.
template <int row, bool whole>
FASTCOND_INLINE void transform_input_row(const Map& x, const Tile& tile, int64_t channel, int64_t channels, float* to,
                                         int64_t place) {
    using namespace winograd;
    const int64_t left = tile.column * outputs - 1;
    const Rows<inputs> rows(x, tile.image, tile.row * outputs - 1, left, channel);
    const auto coefficient = [](int i, int j) FASTCOND_INLINE_LAMBDA { return B_transposed[i][j]; };
    Lanes d[inputs];
#pragma GCC unroll 6
    for (int j = 0; j < inputs; ++j)
        d[j] = left + j >= 0 && left + j < x.width ? of_column<row, whole>(coefficient, rows, j, channels) : all_lanes(0.0f);
    const Lanes minus_a2 = all_lanes(float(-a2)), minus_b2 = all_lanes(float(-b2)), both = all_lanes(float(a2 * b2));
    const Lanes minus_sum = all_lanes(float(-(a2 + b2)));
    const Lanes even_a = fused(minus_b2, d[2], d[4]), odd_a = fused(minus_b2, d[1], d[3]);
    const Lanes even_b = fused(minus_a2, d[2], d[4]), odd_b = fused(minus_a2, d[1], d[3]);
    store_lanes(to, fused(both, d[0], fused(minus_sum, d[2], d[4])));
    store_lanes(to + place, fused(all_lanes(float(a)), odd_a, even_a));
    store_lanes(to + 2 * place, fused(all_lanes(float(-a)), odd_a, even_a));
    store_lanes(to + 3 * place, fused(all_lanes(float(b)), odd_b, even_b));
    store_lanes(to + 4 * place, fused(all_lanes(float(-b)), odd_b, even_b));
    store_lanes(to + 5 * place, fused(both, d[1], fused(minus_sum, d[3], d[5])));
}

// Row `row` of A dy A^T to six places of `to`.
template <int row, bool whole>
FASTCOND_INLINE void transform_output_row(const Map& dy, const Tile& tile, int64_t channel, int64_t channels, float* to,
                                          int64_t place) {
    using namespace winograd;
    const int64_t left = tile.column * outputs;
    const Rows<outputs> rows(dy, tile.image, tile.row * outputs, left, channel);
    const auto coefficient = [](int i, int j) FASTCOND_INLINE_LAMBDA { return A(i, j); };
    Lanes d[outputs];
#pragma GCC unroll 4
    for (int j = 0; j < outputs; ++j)
        d[j] = left + j < dy.width ? of_column<row, whole>(coefficient, rows, j, channels) : all_lanes(0.0f);
    const Lanes even_a = fused(all_lanes(float(a2)), d[2], d[0]), odd_a = fused(all_lanes(float(a2)), d[3], d[1]);
    const Lanes even_b = fused(all_lanes(float(b2)), d[2], d[0]), odd_b = fused(all_lanes(float(b2)), d[3], d[1]);
    store_lanes(to, d[0]);
    store_lanes(to + place, fused(all_lanes(float(a)), odd_a, even_a));
    store_lanes(to + 2 * place, fused(all_lanes(float(-a)), odd_a, even_a));
    store_lanes(to + 3 * place, fused(all_lanes(float(b)), odd_b, even_b));
    store_lanes(to + 4 * place, fused(all_lanes(float(-b)), odd_b, even_b));
    store_lanes(to + 5 * place, d[3]);
}

}  // namespace
}  // namespace fastcond::cpu::FASTCOND_ISA
