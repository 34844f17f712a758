#include "diffusion_step.h"

#include <stdexcept>
#include <string>

#include "instruction_set.h"

namespace fastcond::cpu {

#define DECLARE(set)                                                                          \
    namespace set {                                                                           \
    void diffusion_step(const DiffusionStep&, const StepRow&, bool draws_noise, int threads); \
    }
FASTCOND_FOR_EACH_INSTRUCTION_SET(DECLARE)
#undef DECLARE

namespace {

using Address = std::uintptr_t;

Address address_of(const void* pointer) { return reinterpret_cast<Address>(pointer); }

struct Range {
    const void* first;
    int64_t bytes;
};

bool disjoint(Range a, Range b) {
    return address_of(a.first) + Address(a.bytes) <= address_of(b.first) ||
           address_of(b.first) + Address(b.bytes) <= address_of(a.first);
}

// Or they are the same elements: each is then read before it is written.
bool separate(Range in, Range out) {
    return in.first == nullptr || disjoint(in, out) || (in.first == out.first && in.bytes == out.bytes);
}

void check_seeds(const DiffusionStep& call) {
    for (int64_t i = 0; i < 2 * call.batch; ++i)
        if (call.seeds[i] < 0 || call.seeds[i] >> 32)
            throw std::invalid_argument("seeds: run seeds and image indices lie in [0, 2**32), found " +
                                        std::to_string(call.seeds[i]));
}

}  // namespace

bool buffers_are_separate(const DiffusionStep& call) {
    const int64_t elements = call.batch * call.channels * call.positions;
    const int64_t stored = call.stored == Stored::float32 ? 4 : 2;
    const Range inputs[] = {{call.x, 4 * elements}, {call.history, 4 * elements},
                            {call.out_cond, stored * elements}, {call.out_uncond, stored * elements}};
    const Range x_0{call.x_0, 4 * elements};
    for (int64_t half = 0; half < call.halves; ++half) {
        const Range x_next{call.x_next + half * elements, 4 * elements};
        if (!disjoint(x_next, x_0)) return false;
        for (const Range& input : inputs)
            if (!separate(input, x_next) || !separate(input, x_0)) return false;
    }
    return true;
}

void diffusion_step(const DiffusionStep& call, int threads) {
    if (*call.row < 0 || *call.row >= call.rows)
        throw std::out_of_range("row is " + std::to_string(*call.row) + "; the table has " + std::to_string(call.rows) +
                                " rows");
    if (call.draws_noise) check_seeds(call);
    const StepRow row = step_row(call.coefficients + *call.row * step_columns);
    // Noise is finite, so where k_n is 0 it adds exactly nothing.
    const bool draws_noise = call.draws_noise && row.k_n != 0.0f;
    FASTCOND_DISPATCH(diffusion_step, call, row, draws_noise, threads)
}

}  // namespace fastcond::cpu
