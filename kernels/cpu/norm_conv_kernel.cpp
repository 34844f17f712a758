// norm_conv's loops, compiled once for each instruction set (FASTCOND_ISA names it, CMakeLists.txt lists them).
//
// The map's tiles are worked on in blocks whose transforms stay in a core's cache: all input channels of a block to V, then for 32
// features after the other the 36 products, to M, and the output transform. A thread takes whole blocks; what is left over
// (all, where the map is small) the threads do together, first by channels and then by features.
//
// No standard-library templates: the linker would keep one instance for all builds, perhaps the one with the widest
// instructions.
#include "norm_conv_transforms.h"
#include "workspace.h"

namespace fastcond::cpu::FASTCOND_ISA {

// Their transforms share a core's second cache with the weights, and too few would wait for these. Processors without AVX-512 have
// often half of that cache, or less.
int64_t tiles_together(int64_t channels) {
#if defined(__AVX512F__)
    constexpr int64_t floats = int64_t{160} << 10, least = 32;
#else
    constexpr int64_t floats = int64_t{112} << 10, least = 24;
#endif
    return larger(least, floats / (products * parts_of(channels, lanes) * lanes));
}

namespace {

constexpr int64_t products_worth_a_thread = 1 << 18;

// A call's outputs in phases. Every second output of an upsampled map, both ways, is a convolution of the map itself with two taps
// each way, sums of the three, beside a first or a last that is 0. So 11 of the 36 products are 0 too.
struct Phase {
    int64_t row, column;  // 0 or 1

    FASTCOND_INLINE bool needs(int64_t product) const {
        return product / inputs != (row ? 0 : inputs - 1) && product % inputs != (column ? 0 : inputs - 1);
    }
};

FASTCOND_INLINE int64_t times_of(const NormConv& call) { return call.phased ? 2 : 1; }
FASTCOND_INLINE int64_t phases_of(const NormConv& call) { return call.phased ? 4 : 1; }
FASTCOND_INLINE int64_t products_of(const NormConv& call) { return call.phased ? (inputs - 1) * (inputs - 1) : products; }

// How a batch is cut into blocks of tiles: several images, some rows of tiles of one, or part of one row. Which tiles of an image are
// together follows from its own shape, for the sake of the statistics.
struct Blocks {
    int64_t tile_rows, tile_columns;      // of an image
    int64_t images, rows, columns;        // of a block
    int64_t row_parts, column_parts;      // blocks of an image, where it is more than one
    int64_t count;

    Blocks(const NormConv& call, int64_t threads) {
        tile_rows = parts_of(call.height, outputs);
        tile_columns = parts_of(call.width, outputs);
        const int64_t most = tiles_together(call.channels);
        images = 1;
        rows = tile_rows;
        columns = tile_columns;
        if (tile_rows * tile_columns <= most) {
            // As many blocks as keep all threads busy.
            int64_t groups = parts_of(call.batch, most / (tile_rows * tile_columns));
            if (groups > 1) groups = parts_of(groups, threads) * threads;
            images = parts_of(call.batch, groups);
        } else if (tile_columns <= most) {
            rows = parts_of(tile_rows, parts_of(tile_rows, most / tile_columns));
        } else {
            rows = 1;
            columns = parts_of(tile_columns, parts_of(tile_columns, most));
        }
        row_parts = parts_of(tile_rows, rows);
        column_parts = parts_of(tile_columns, columns);
        count = parts_of(call.batch, images) * row_parts * column_parts;
    }
    int64_t parts() const { return row_parts * column_parts; }
    int64_t most_tiles() const { return images * rows * columns; }
};

// One block: tiles [images][rows][columns], the first of them at these places.
struct Block {
    int64_t image, images, row, rows, column, columns, part;

    Block(const NormConv& call, const Blocks& all, int64_t i) {
        part = i % all.parts();
        image = i / all.parts() * all.images;
        row = part / all.column_parts * all.rows;
        column = part % all.column_parts * all.columns;
        images = smaller(all.images, call.batch - image);
        rows = smaller(all.rows, all.tile_rows - row);
        columns = smaller(all.columns, all.tile_columns - column);
    }
    int64_t tiles() const { return images * rows * columns; }
    // The positions that an image's tiles read: one more on every side than they write.
    Rectangle reads() const {
        return {row * outputs - 1, column * outputs - 1, rows * outputs + 2, columns * outputs + 2};
    }
};

// V is [36][chunks of channels][tiles][16] and M [36][tiles][panel]. A place more than they need is between two of the
// 36: a tile's would fall on the same lines of the cache otherwise.
int64_t v_place(const NormConv& call, int64_t tiles) { return (parts_of(call.channels, lanes) * tiles + 1) * lanes; }
int64_t m_place(int64_t tiles) { return tiles * panel + lanes; }

int64_t v_size(const NormConv& call, const Blocks& blocks) { return products * v_place(call, blocks.most_tiles()); }
int64_t m_size(const Blocks& blocks) { return products * m_place(blocks.most_tiles()); }
int64_t rectangle_size(const Blocks& blocks) {
    return (blocks.rows * outputs + 2) * (blocks.columns * outputs + 2) * lanes;
}

// One chunk of sixteen channels of a block, to V.
template <bool normed, bool silu_on>
void transform_chunk(const NormConv& call, const Block& block, int64_t chunk, float* positions, float* v) {
    const Rectangle reads = block.reads();
    const int64_t tiles = block.tiles(), place = v_place(call, tiles), row = reads.columns * lanes;
    float* to = v + chunk * tiles * lanes;
    for (int64_t image = block.image; image < block.image + block.images; ++image) {
        const Rows<normed, silu_on> rows(call, image, reads, chunk * lanes, smaller(lanes, call.channels - chunk * lanes));
        // A row of tiles is transformed while its positions are in the first cache.
        for (int64_t r = 0, loaded = 0; r < block.rows; ++r) {
            rows.load(loaded, r * outputs + inputs, positions);
            loaded = r * outputs + inputs;
            for (int64_t c = 0; c < block.columns; ++c, to += lanes)
                transform_tile(positions + r * outputs * row + c * outputs * lanes, row, to, place);
        }
    }
}

void transform_chunk(const NormConv& call, const Block& block, int64_t chunk, float* positions, float* v) {
    if (call.mean)
        call.silu ? transform_chunk<true, true>(call, block, chunk, positions, v)
                  : transform_chunk<true, false>(call, block, chunk, positions, v);
    else
        call.silu ? transform_chunk<false, true>(call, block, chunk, positions, v)
                  : transform_chunk<false, false>(call, block, chunk, positions, v);
}

// The position of y, of all the batch's, of a position of the map.
FASTCOND_INLINE int64_t place_of(const NormConv& call, int64_t image, const Phase& phase, int64_t row, int64_t column) {
    const int64_t times = times_of(call);
    return ((image * call.height + row) * times + phase.row) * call.width * times + column * times + phase.column;
}

// Sixteen features from `feature` of a phase of a block's outputs. `partial` is [B, parts, phases, 2, K], not used where an image
// is one part.
void finish_features(const NormConv& call, const Blocks& blocks, const Block& block, const Phase& phase, int64_t feature,
                     const float* m, float* partial) {
    const int64_t K = call.features, features = smaller(lanes, K - feature), place = m_place(block.tiles());
    const bool wanted = call.y_mean, whole = blocks.parts() * phases_of(call) == 1;
    const int64_t times = times_of(call);
    for (int64_t image = block.image; image < block.image + block.images; ++image) {
        const float* bias_row = call.bias ? call.bias + image * call.bias_stride + feature : nullptr;
        const Lanes bias = bias_row ? load_lanes(bias_row, features) : all_lanes(0.0f);
        Statistics all{all_lanes(0.0f), all_lanes(0.0f)};
        int64_t seen = 0;
        for (int64_t r = 0; r < block.rows; ++r)
            for (int64_t c = 0; c < block.columns; ++c, m += panel) {
                const int64_t top = (block.row + r) * outputs, left = (block.column + c) * outputs;
                const int64_t at = place_of(call, image, phase, top, left) * K + feature;
                const Target to{call.y + at, call.residual ? call.residual + at : nullptr, times * times * call.width * K, times * K,
                                smaller(outputs, call.height - top), smaller(outputs, call.width - left), features,
                                call.scale};
                Lanes y[outputs][outputs];
                if (to.rows == outputs && to.columns == outputs && features == lanes) {
                    finish_tile<false>(m, place, bias, to, y);
                    if (wanted) merge(all, seen, statistics_of(y, outputs, outputs), outputs * outputs);
                } else {
                    finish_tile<true>(m, place, bias, to, y);
                    if (wanted) merge(all, seen, statistics_of(y, to.rows, to.columns), to.rows * to.columns);
                }
                seen += to.rows * to.columns;
            }
        if (wanted) {
            const int64_t part = (image * blocks.parts() + block.part) * phases_of(call) + phase.row * times + phase.column;
            float* of_part = partial + part * 2 * K + feature;
            store_lanes(whole ? call.y_mean + image * K + feature : of_part, all.mean, features);
            store_lanes(whole ? call.y_m2 + image * K + feature : of_part + K, all.m2, features);
        }
    }
}

// Where the outputs of a block's tiles go, of a phase's first position and feature: floats from y's first.
struct Places {
    Kept<int64_t> memory;
    const int64_t* first = nullptr;
    int64_t count = 0;

    void list(const NormConv& call, const Block& block) {
        const int64_t width = smaller(block.columns * outputs, call.width - block.column * outputs);
        const int64_t height = smaller(block.rows * outputs, call.height - block.row * outputs), step = times_of(call) * call.features;
        count = block.images * height * width;
        int64_t* to = memory.take(count);
        first = to;
        for (int64_t image = block.image; image < block.image + block.images; ++image)
            for (int64_t row = 0; row < height; ++row) {
                const int64_t first_of_row = place_of(call, image, {0, 0}, block.row * outputs + row, block.column * outputs);
                int64_t place = first_of_row * call.features;
                for (int64_t column = 0; column < width; ++column, place += step) *to++ = place;
            }
    }
};

// `columns` (16 or 32) features from `feature` of phase `i` of a block, all of one panel of the packed weight.
void multiply_and_finish(const NormConv& call, const Blocks& blocks, const Block& block, int64_t i, int64_t feature, int64_t columns,
                         const Places& places, const float* v, float* m, float* partial) {
    const int64_t first = feature / panel * panel, tiles = block.tiles(), C = call.channels;
    const int64_t width = call.features - first > lanes ? panel : lanes, count = products_of(call);
    const float* u = call.packed + ((first * phases_of(call) + i * width) * count * C + (feature - first));
    const float* end = call.packed + phases_of(call) * count * C * parts_of(call.features, lanes) * lanes;
    const Phase phase{i / 2, i % 2};
    const int64_t written = place_of(call, 0, phase, 0, 0) * call.features + feature;
    for (int64_t xi = 0, done = 0; xi < products; ++xi) {
        float* to = m + xi * m_place(tiles);
        if (call.phased && !phase.needs(xi)) {
            for (int64_t k = 0; k < tiles * panel; k += lanes) store_lanes(to + k, all_lanes(0.0f));
            continue;
        }
        Product product{v + xi * v_place(call, tiles), u, to, tiles * lanes, C, width};
        const int64_t begin = places.count * done / count;
        product.place = places.first + begin;
        product.places = places.count * ++done / count - begin;
        product.wide = columns;
        product.end = end;
        product.written = call.y + written;
        product.added = call.residual ? call.residual + written : nullptr;
        multiply_all(product, tiles, columns);
        u += C * width;
    }
    for (int64_t column = 0; column < columns; column += lanes)
        if (feature + column < call.features)
            finish_features(call, blocks, block, phase, feature + column, m + column, partial);
}

// The parts of an image become one, in their order.
void join_statistics(const NormConv& call, const Blocks& blocks, const float* partial) {
    const int64_t K = call.features, parts = blocks.parts() * phases_of(call);
    for (int64_t image = 0; image < call.batch; ++image)
        for (int64_t k = 0; k < K; k += lanes) {
            const int64_t features = smaller(lanes, K - k);
            Statistics all{all_lanes(0.0f), all_lanes(0.0f)};
            for (int64_t i = 0, seen = 0; i < parts; ++i) {
                const float* of_part = partial + (image * parts + i) * 2 * K + k;
                const int64_t part = i / phases_of(call);
                const int64_t row = part / blocks.column_parts * blocks.rows, column = part % blocks.column_parts * blocks.columns;
                const int64_t height = smaller(blocks.rows * outputs, call.height - row * outputs);
                const int64_t width = smaller(blocks.columns * outputs, call.width - column * outputs);
                merge(all, seen, {load_lanes(of_part, features), load_lanes(of_part + K, features)}, height * width);
                seen += height * width;
            }
            store_lanes(call.y_mean + image * K + k, all.mean, features);
            store_lanes(call.y_m2 + image * K + k, all.m2, features);
        }
}

}  // namespace

void norm_conv(const NormConv& given) {
    thread_local Workspace of_call;
    NormConv call = given;
    if (call.phased) call.height /= 2, call.width /= 2, call.upsampled = false;  // x as it is; y is by phases
    const int64_t phases = phases_of(call), work = phases * call.batch * call.height * call.width * call.channels * call.features;
    [[maybe_unused]] const int64_t threads = larger(1, smaller(call.threads, work / products_worth_a_thread));
    const Blocks blocks(call, threads);
    const int64_t alone = blocks.count / threads * threads, chunks = parts_of(call.channels, lanes);
    // Threads that share a block take 16 features each where there are few.
    const int64_t columns = parts_of(call.features, panel) % threads == 0 ? panel : lanes;
    const int64_t feature_parts = parts_of(call.features, columns);
    const bool joined = call.y_mean && blocks.parts() * phases > 1;
    const int64_t partial_size = joined ? call.batch * blocks.parts() * phases * 2 * call.features : 0;
    const int64_t shared_size = alone < blocks.count ? whole_lines(v_size(call, blocks)) : 0;
    float* shared = of_call.take(partial_size + shared_size);
    float* partial = shared + shared_size;
#pragma omp parallel num_threads(int(threads)) if (threads > 1)
    {
        thread_local Workspace of_thread;
        thread_local Places places;
        const int64_t v_own = alone ? whole_lines(v_size(call, blocks)) : 0, m_own = whole_lines(m_size(blocks));
        float* m = of_thread.take(v_own + m_own + rectangle_size(blocks));
        float *v = m + m_own, *positions = v + v_own;
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < alone; ++i) {
            const Block block(call, blocks, i);
            places.list(call, block);
            for (int64_t chunk = 0; chunk < chunks; ++chunk) transform_chunk(call, block, chunk, positions, v);
            for (int64_t feature = 0; feature < call.features; feature += panel) {
                const int64_t wide = call.features - feature > lanes ? panel : lanes;
                for (int64_t phase = 0; phase < phases; ++phase)
                    multiply_and_finish(call, blocks, block, phase, feature, wide, places, v, m, partial);
            }
        }
        for (int64_t i = alone; i < blocks.count; ++i) {
            const Block block(call, blocks, i);
            places.list(call, block);
#pragma omp for schedule(static)
            for (int64_t chunk = 0; chunk < chunks; ++chunk) transform_chunk(call, block, chunk, positions, shared);
#pragma omp for schedule(static)
            for (int64_t j = 0; j < feature_parts * phases; ++j) {
                const int64_t feature = j / phases * columns, wide = call.features - feature > lanes ? columns : lanes;
                multiply_and_finish(call, blocks, block, j % phases, feature, wide, places, shared, m, partial);
            }
        }
    }
    if (joined) join_statistics(call, blocks, partial);
}

}  // namespace fastcond::cpu::FASTCOND_ISA
