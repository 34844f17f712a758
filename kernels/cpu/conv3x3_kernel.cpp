// conv3x3's loops, compiled once for each instruction set (FASTCOND_ISA names it, CMakeLists.txt lists them).
//
// The weight gradient's work is cut into units of one row of the six by six products and some features: a unit goes through all
// tiles, block by block, and keeps its sums in a core's cache. Nothing is shared between units, so threads take any of them.
//
// No standard-library templates: the linker would keep one instance for all builds, perhaps the one with the widest
// instructions.
#include "conv3x3.h"

#include "conv3x3_transforms.h"
#include "doubles.h"
#include "transposition.h"
#include "workspace.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t taps = 9;
constexpr int64_t work_worth_a_thread = 1 << 18;
constexpr int64_t weights_worth_a_thread = 1 << 16;  // of a packed weight

// Sixteen features of a filter's taps, one way, times G. Rows of points of either sign share their sums.
FASTCOND_INLINE void times_G(const double (&g)[3][lanes], double (&to)[inputs][lanes]) {
    using winograd::G;
    for (int64_t k = 0; k < lanes; ++k) {
        const double even_a = g[0][k] * G[1][0] + g[2][k] * G[1][2], odd_a = g[1][k] * G[1][1];
        const double even_b = g[0][k] * G[3][0] + g[2][k] * G[3][2], odd_b = g[1][k] * G[3][1];
        to[0][k] = g[0][k] * G[0][0];
        to[1][k] = even_a + odd_a;
        to[2][k] = even_a - odd_a;
        to[3][k] = even_b + odd_b;
        to[4][k] = even_b - odd_b;
        to[5][k] = g[2][k];
    }
}

// G g G^T of filters at `from`, taps [16 channels][16 features] apart, to 36 rows of 16 features, `place` floats apart. In
// double, so that a packed weight is off by one rounding.
void transform_filters(const float* from, float* to, int64_t place) {
    double g[3][lanes], columns[3][inputs][lanes], row[3][lanes], out[inputs][lanes];
    for (int j = 0; j < 3; ++j) {
        for (int i = 0; i < 3; ++i)
            for (int64_t k = 0; k < lanes; ++k) g[i][k] = double(from[(i * 3 + j) * lanes * lanes + k]);
        times_G(g, columns[j]);
    }
    for (int i = 0; i < inputs; ++i) {
        for (int j = 0; j < 3; ++j)
            for (int64_t k = 0; k < lanes; ++k) row[j][k] = columns[j][i][k];
        times_G(row, out);
        for (int j = 0; j < inputs; ++j, to += place)
            for (int64_t k = 0; k < lanes; ++k) to[k] = float(out[j][k]);
    }
}

// Sixteen features by sixteen channels of all filters, side by side: [taps][16 channels][16 features], zero where there are none.
// Each line of the weight is read once, whichever way it lies.
void gather_filters(const FilterPack& call, int64_t feature, int64_t channel, float* to) {
    const int64_t features = smaller(lanes, call.features - feature), channels = smaller(lanes, call.channels - channel);
    for (int64_t tap = 0; tap < taps; ++tap, to += lanes * lanes) {
        const float* from = call.weight + feature * call.feature_stride + channel * call.channel_stride +
                            (call.turned ? taps - 1 - tap : tap) * call.tap_stride;
        if (features == lanes && channels == lanes && call.channel_stride == 1) {
            transpose(from, call.feature_stride, to, lanes);
            continue;
        }
        for (int64_t c = 0; c < channels; ++c, from += call.channel_stride) {
            float* row = to + c * lanes;
            if (call.feature_stride == 1) {
                store_lanes(row, load_lanes(from, features));
                continue;
            }
            store_lanes(row, all_lanes(0.0f));
            for (int64_t k = 0; k < features; ++k) row[k] = from[k * call.feature_stride];
        }
    }
}

}  // namespace

void pack_filters(const FilterPack& call) {
    using winograd::products;
    const int64_t feature_parts = parts_of(call.features, lanes), channel_parts = parts_of(call.channels, lanes);
    [[maybe_unused]] const int64_t threads =
        larger(1, smaller(call.threads, call.features * call.channels * products / weights_worth_a_thread));
#pragma omp parallel for num_threads(int(threads)) if (threads > 1) schedule(static)
    for (int64_t part = 0; part < feature_parts * channel_parts; ++part) {
        float gathered[taps * lanes * lanes];
        const int64_t feature = part / channel_parts * lanes, channel = part % channel_parts * lanes;
        const int64_t block = feature / panel * panel, width = call.features - block > lanes ? panel : lanes;
        gather_filters(call, feature, channel, gathered);
        float* to = call.packed + block * products * call.channels + (feature - block);
        // Stores to the 36 places in turn would wait for their lines, which have the same place in the nearest cache.
        float transformed[products * lanes * lanes];
        const int64_t channels = smaller(lanes, call.channels - channel);
        for (int64_t c = 0; c < channels; ++c) transform_filters(gathered + c * lanes, transformed + c * lanes, lanes * lanes);
        for (int64_t xi = 0; xi < products; ++xi)
            for (int64_t c = 0; c < channels; ++c)
                store_lanes(to + (xi * call.channels + channel + c) * width, load_lanes(transformed + (xi * lanes + c) * lanes));
    }
}

namespace {

// How the gradient is cut: tiles to blocks, features to groups.
struct Cut {
    int64_t tile_rows, tile_columns, tiles;
    int64_t depth;            // tiles of a block
    int64_t channel_panels;   // of 32
    int64_t feature_chunks;   // of 16
    int64_t groups;           // of chunks of features

    Cut(const ConvWeightGradient& call, int64_t threads)
        : tile_rows(parts_of(call.height, outputs)),
          tile_columns(parts_of(call.width, outputs)),
          tiles(call.batch * tile_rows * tile_columns),
          depth(call.channels > 128 ? 32 : 64),
          channel_panels(parts_of(call.channels, panel)),
          feature_chunks(parts_of(call.features, lanes)) {
        constexpr int64_t most_sums = int64_t{100} << 10;  // floats of a unit, which lie in a core's cache
        const int64_t most = larger(1, most_sums / (inputs * lanes * panel * channel_panels));
        // The fewest that fit, or more where threads would have nothing to do; a group transforms all inputs, which costs as much
        // as the products of about two chunks.
        int64_t best = 0;
        for (int64_t n = parts_of(feature_chunks, most); n <= feature_chunks; ++n) {
            const int64_t cost = parts_of(inputs * n, threads) * (parts_of(feature_chunks, n) + 2);
            if (best && cost >= best) continue;
            best = cost;
            groups = n;
        }
    }
    int64_t first_chunk(int64_t group) const { return feature_chunks * group / groups; }
    int64_t most_chunks() const { return parts_of(feature_chunks, groups); }
    // V of a block is [6][panels of channels][depth][32], Z [6][chunks of features][depth][16], the sums are
    // [6][panels][features][32].
    int64_t v_place() const { return channel_panels * depth * panel + lanes; }
    int64_t z_place() const { return most_chunks() * depth * lanes + lanes; }
    int64_t sums_place() const { return channel_panels * most_chunks() * lanes * panel; }
    int64_t scratch() const { return inputs * (v_place() + z_place() + sums_place()); }
};

// Sixteen channels of a block's inputs, or features of its outputs, `step` floats from tile to tile.
template <int row, bool whole>
void transform_inputs_of(const Map& x, const Cut& cut, int64_t first, int64_t count, int64_t channel, float* to, int64_t place) {
    Tile tile(first, cut.tile_rows, cut.tile_columns);
    for (int64_t i = 0; i < count; ++i, to += panel, tile.next(cut.tile_rows, cut.tile_columns))
        transform_input_row<row, whole>(x, tile, channel, x.channels - channel, to, place);
}

template <int row, bool whole>
void transform_outputs_of(const Map& dy, const Cut& cut, int64_t first, int64_t count, int64_t channel, float* to,
                          int64_t place) {
    Tile tile(first, cut.tile_rows, cut.tile_columns);
    for (int64_t i = 0; i < count; ++i, to += lanes, tile.next(cut.tile_rows, cut.tile_columns))
        transform_output_row<row, whole>(dy, tile, channel, dy.channels - channel, to, place);
}

// One row of the products of some features; `folded` [6][3][K][C] takes the row times G.
template <int row>
void add_row(const ConvWeightGradient& call, const Cut& cut, int64_t group, float* scratch, float* folded) {
    const Map x{call.x, call.height, call.width, call.channels}, dy{call.dy, call.height, call.width, call.features};
    const int64_t first_chunk = cut.first_chunk(group), chunks = cut.first_chunk(group + 1) - first_chunk;
    float *v = scratch, *z = v + inputs * cut.v_place(), *sums = z + inputs * cut.z_place();
    for (int64_t i = 0; i < inputs * cut.sums_place(); i += lanes) store_lanes(sums + i, all_lanes(0.0f));
    for (int64_t tile = 0; tile < cut.tiles; tile += cut.depth) {
        const int64_t count = smaller(cut.depth, cut.tiles - tile);
        for (int64_t c = 0; c < call.channels; c += lanes) {
            float* to = v + c / panel * cut.depth * panel + c % panel;
            if (call.channels - c >= lanes) transform_inputs_of<row, true>(x, cut, tile, count, c, to, cut.v_place());
            else transform_inputs_of<row, false>(x, cut, tile, count, c, to, cut.v_place());
        }
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t k = (first_chunk + chunk) * lanes;
            float* to = z + chunk * cut.depth * lanes;
            if (call.features - k >= lanes) transform_outputs_of<row, true>(dy, cut, tile, count, k, to, cut.z_place());
            else transform_outputs_of<row, false>(dy, cut, tile, count, k, to, cut.z_place());
        }
        for (int64_t j = 0; j < inputs; ++j)
            for (int64_t p = 0; p < cut.channel_panels; ++p)
                for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                    const int64_t columns = call.channels - p * panel > lanes ? panel : lanes;
                    float* to = sums + j * cut.sums_place() + (p * cut.most_chunks() + chunk) * lanes * panel;
                    multiply_all(AddedProduct{z + j * cut.z_place() + chunk * cut.depth * lanes,
                                              v + j * cut.v_place() + p * cut.depth * panel, to, lanes, panel, count},
                                 lanes, columns);
                }
    }
    const int64_t most = cut.most_chunks() * lanes, K = call.features, C = call.channels;
    for (int64_t k = 0; k < smaller(chunks * lanes, K - first_chunk * lanes); ++k)
        for (int64_t c = 0; c < C; c += lanes) {
            const float* from = sums + (c / panel * most + k) * panel + c % panel;
            for (int64_t tap = 0; tap < 3; ++tap) {
                Lanes sum = all_lanes(0.0f);
                for (int64_t j = 0; j < inputs; ++j)
                    sum = fused(load_lanes(from + j * cut.sums_place()), all_lanes(float(winograd::G[j][tap])), sum);
                float* to = folded + ((row * 3 + tap) * K + first_chunk * lanes + k) * C + c;
                if (C - c >= lanes) store_lanes(to, sum);
                else store_lanes(to, sum, C - c);
            }
        }
}

void add_row(const ConvWeightGradient& call, const Cut& cut, int64_t unit, float* scratch, float* folded) {
    const int64_t group = unit / inputs;
    switch (unit % inputs) {
        case 0: return add_row<0>(call, cut, group, scratch, folded);
        case 1: return add_row<1>(call, cut, group, scratch, folded);
        case 2: return add_row<2>(call, cut, group, scratch, folded);
        case 3: return add_row<3>(call, cut, group, scratch, folded);
        case 4: return add_row<4>(call, cut, group, scratch, folded);
        default: return add_row<5>(call, cut, group, scratch, folded);
    }
}

// G^T over the six rows, of feature k.
void finish_feature(const ConvWeightGradient& call, int64_t k, const float* folded) {
    const int64_t K = call.features, C = call.channels;
    for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t c = 0; c < C; c += lanes) {
            const int64_t count = smaller(lanes, C - c);
            Lanes sum = all_lanes(0.0f);
            for (int64_t row = 0; row < inputs; ++row) {
                const float* from = folded + ((row * 3 + tap % 3) * K + k) * C + c;
                const Lanes term = count == lanes ? load_lanes(from) : load_lanes(from, count);
                sum = fused(term, all_lanes(float(winograd::G[row][tap / 3])), sum);
            }
            float* to = call.dweight + (k * taps + tap) * C + c;
            if (count == lanes) store_lanes(to, sum);
            else store_lanes(to, sum, count);
        }
}

// The sum of sixteen features of dy over all positions: of a row of a map in float, of the rows in double.
void add_up(const ConvWeightGradient& call, int64_t feature) {
    const int64_t count = smaller(lanes, call.features - feature);
    const float* dy = call.dy + feature;
    double totals[lanes] = {};
    for (int64_t row = 0; row < call.batch * call.height; ++row) {
        Lanes sum = all_lanes(0.0f);
        for (int64_t i = 0; i < call.width; ++i, dy += call.features)
            sum = sum + (count == lanes ? load_lanes(dy) : load_lanes(dy, count));
        store_doubles(totals, load_doubles(totals) + widened(sum));
    }
    for (int64_t lane = 0; lane < count; ++lane) call.dbias[feature + lane] = float(totals[lane]);
}

}  // namespace

void conv_weight_gradient(const ConvWeightGradient& call) {
    thread_local Workspace of_call;
    const int64_t work = call.batch * call.height * call.width * call.channels * call.features;
    [[maybe_unused]] const int64_t threads = larger(1, smaller(call.threads, work / work_worth_a_thread));
    const Cut cut(call, threads);
    const int64_t units = call.dweight ? inputs * cut.groups : 0, sums = call.dbias ? cut.feature_chunks : 0;
    float* folded = of_call.take(3 * inputs * call.features * call.channels);
#pragma omp parallel num_threads(int(threads)) if (threads > 1)
    {
        thread_local Workspace of_thread;
        float* scratch = of_thread.take(cut.scratch());
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < sums; ++i) add_up(call, i * lanes);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < units; ++unit) add_row(call, cut, unit, scratch, folded);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < (call.dweight ? call.features : 0); ++k) finish_feature(call, k, folded);
    }
}

}  // namespace fastcond::cpu::FASTCOND_ISA
