// linear's loops, compiled once for each instruction set (FASTCOND_ISA names it, CMakeLists.txt lists them).
//
// The weight gradient goes over the rows in blocks that lie in a core's cache, and adds each block's products to sums in memory;
// a thread has some of the features.
//
// No standard-library templates: the linker would keep one instance for all builds, perhaps the one with the widest
// instructions.
#include "linear.h"

#include "doubles.h"
#include "products.h"
#include "transposition.h"
#include "workspace.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t numbers_worth_a_thread = 1 << 16;
constexpr int64_t products_worth_a_thread = 1 << 18;
constexpr int64_t block_floats = 16 << 10;  // of a block's rows of x

// Sixteen features of sixteen terms to packed rows that are `width` floats apart.
void pack_square(const MatrixPack& call, int64_t feature, int64_t term, float* to, int64_t width) {
    const int64_t features = smaller(lanes, call.features - feature), terms = smaller(lanes, call.terms - term);
    const float* from = call.weight + feature * call.feature_stride + term * call.term_stride;
    if (features == lanes && terms == lanes && call.term_stride == 1) return transpose(from, call.feature_stride, to, width);
    for (int64_t d = 0; d < terms; ++d, from += call.term_stride, to += width) {
        store_lanes(to, all_lanes(0.0f));
        if (call.feature_stride == 1) store_lanes(to, load_lanes(from, features));
        else
            for (int64_t k = 0; k < features; ++k) to[k] = from[k * call.feature_stride];
    }
}

// Features [first, end) of the weight's gradient; `sums` is [panels of channels][features][32].
void add_rows(const LinearGradient& call, int64_t first, int64_t end, float* sums) {
    const int64_t C = call.channels, K = call.features, count = end - first, panels = parts_of(C, panel);
    const int64_t depth = larger(lanes, block_floats / C / lanes * lanes);
    for (int64_t i = 0; i < panels * count * panel; i += lanes) store_lanes(sums + i, all_lanes(0.0f));
    for (int64_t row = 0; row < call.rows; row += depth) {
        const int64_t here = smaller(depth, call.rows - row);
        for (int64_t p = 0; p < panels; ++p) {
            const float *dy = call.dy + row * K + first, *x = call.x + row * C + p * panel;
            multiply_all(AddedProduct{dy, x, sums + p * count * panel, K, C, here}, count, smaller(panel, C - p * panel));
        }
    }
    for (int64_t k = 0; k < count; ++k)
        for (int64_t c = 0; c < C; c += lanes)
            store_lanes(call.dweight + (first + k) * C + c, load_lanes(sums + (c / panel * count + k) * panel + c % panel));
}

// The sum of features [first, end) of dy over the rows: of a few rows in float, of these in double.
void add_up(const LinearGradient& call, int64_t first, int64_t end) {
    constexpr int64_t together = 32;
    for (int64_t feature = first; feature < end; feature += lanes) {
        const int64_t count = smaller(lanes, end - feature);
        double totals[lanes] = {};
        for (int64_t row = 0; row < call.rows; row += together) {
            Lanes sum = all_lanes(0.0f);
            for (int64_t i = row; i < smaller(row + together, call.rows); ++i) {
                const float* from = call.dy + i * call.features + feature;
                sum = sum + (count == lanes ? load_lanes(from) : load_lanes(from, count));
            }
            store_doubles(totals, load_doubles(totals) + widened(sum));
        }
        for (int64_t lane = 0; lane < count; ++lane) call.dbias[feature + lane] = float(totals[lane]);
    }
}

}  // namespace

void pack_matrix(const MatrixPack& call) {
    const int64_t feature_parts = parts_of(call.features, lanes), term_parts = parts_of(call.terms, lanes);
    const int64_t numbers = call.features * call.terms;
    [[maybe_unused]] const int64_t threads = larger(1, smaller(call.threads, numbers / numbers_worth_a_thread));
#pragma omp parallel for num_threads(int(threads)) if (threads > 1) schedule(static)
    for (int64_t part = 0; part < feature_parts * term_parts; ++part) {
        const int64_t feature = part / term_parts * lanes, term = part % term_parts * lanes, block = feature / panel * panel;
        const int64_t width = call.features - block > lanes ? panel : lanes;
        pack_square(call, feature, term, call.packed + block * call.terms + term * width + (feature - block), width);
    }
}

void linear_gradient(const LinearGradient& call) {
    const int64_t work = call.rows * call.channels * call.features;
    const int64_t threads = larger(1, smaller(call.threads, work / products_worth_a_thread));
    // As many units as threads, or more where a unit's sums would not lie in a core's cache; of whole registers of features.
    constexpr int64_t most_sums = int64_t{96} << 10;
    const int64_t chunks = parts_of(call.features, lanes), sums_of_chunk = parts_of(call.channels, panel) * panel * lanes;
    const int64_t fitting = larger(1, most_sums / sums_of_chunk);
    const int64_t units = smaller(chunks, parts_of(parts_of(chunks, fitting), threads) * threads);
#pragma omp parallel for num_threads(int(threads)) if (threads > 1) schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
        thread_local Workspace of_thread;
        const int64_t first = chunks * unit / units * lanes, end = smaller(call.features, chunks * (unit + 1) / units * lanes);
        if (call.dweight) add_rows(call, first, end, of_thread.take(parts_of(call.channels, panel) * (end - first) * panel));
        if (call.dbias) add_up(call, first, end);
    }
}

}  // namespace fastcond::cpu::FASTCOND_ISA
