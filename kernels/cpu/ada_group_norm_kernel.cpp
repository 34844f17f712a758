// AdaGN's loops, compiled once for each instruction set (FASTCOND_ISA names it, CMakeLists.txt lists them).
//
// A unit of work is computed by one thread, in an order that depends on an image's own shape alone: the same bits at any
// batch size and any number of threads, though not on another instruction set. Sums run over few elements in each of sixteen
// float32 lanes, and then in double.
//
// No standard-library templates: the linker would keep one instance for all builds, perhaps the one with the widest
// instructions.
#include "ada_group_norm_channels_last.h"
#include "ada_group_norm_contiguous.h"

namespace fastcond::cpu::FASTCOND_ISA {
namespace {

constexpr int64_t elements_worth_a_thread = 8192;  // fewer are done before a second thread has woken up

template <typename Unit>
void for_each_unit(const AdaGroupNorm& call, int64_t units, Unit unit) {
    const int64_t worth = call.batch * call.channels * call.positions / elements_worth_a_thread;
    [[maybe_unused]] const int threads = int(larger(1, smaller(smaller(call.threads, worth), units)));
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t i = 0; i < units; ++i) unit(i);
}

template <typename T, bool silu_on>
void run(const AdaGroupNorm& call, const AdaGroupNormForward& pass) {
    if (call.channels_last) {
        const Blocks blocks = blocks_of<T>(call);
        for_each_unit(call, call.batch * blocks.count,
                      [&](int64_t i) { forward_channels_last<T, silu_on>(call, pass, blocks, i); });
    } else {
        for_each_unit(call, Unit::units_of(call, elements_of_forward),
                      [&](int64_t i) { forward_contiguous<T, silu_on>(call, pass, i); });
    }
}

template <typename T, bool silu_on>
void run(const AdaGroupNorm& call, const AdaGroupNormBackward& pass) {
    if (call.channels_last) {
        const Blocks blocks = blocks_of<T>(call);
        for_each_unit(call, call.batch * blocks.count,
                      [&](int64_t i) { backward_channels_last<T, silu_on>(call, pass, blocks, i); });
    } else {
        for_each_unit(call, Unit::units_of(call, elements_of_backward),
                      [&](int64_t i) { backward_contiguous<T, silu_on>(call, pass, i); });
    }
}

template <typename T, typename Pass>
void run_on(const AdaGroupNorm& call, const Pass& pass) {
    call.silu ? run<T, true>(call, pass) : run<T, false>(call, pass);
}

template <typename Pass>
void choose(const AdaGroupNorm& call, const Pass& pass) {
    switch (call.stored) {
        case Stored::bfloat16: return run_on<BFloat16>(call, pass);
        case Stored::float16: return run_on<Float16>(call, pass);
        default: return run_on<float>(call, pass);
    }
}

}  // namespace

void ada_group_norm(const AdaGroupNorm& call, const AdaGroupNormForward& forward) { choose(call, forward); }
void ada_group_norm_backward(const AdaGroupNorm& call, const AdaGroupNormBackward& backward) { choose(call, backward); }

// dscale = weight A + bias B and dshift = B, of each image; dweight and dbias are the sums over images of (1 + scale) A and
// (1 + scale) B. All of it is little beside x.
void differentiate_operands(const AdaGroupNorm& call, const AdaGroupNormBackward& backward, const OperandGradients& gradients) {
    const int64_t C = call.channels;
    for (int64_t c = 0; c < C; c += lanes) {
        const int64_t here = smaller(lanes, C - c);
        const auto load = [here](const float* from) FASTCOND_INLINE_LAMBDA {
            return here == lanes ? load_lanes(from) : load_lanes(from, here);
        };
        const auto store = [here](float* to, const Lanes& value) FASTCOND_INLINE_LAMBDA {
            here == lanes ? store_lanes(to, value) : store_lanes(to, value, here);
        };
        const Lanes zero = all_lanes(0.0f), one = all_lanes(1.0f);
        const Lanes weight = call.weight ? load(call.weight + c) : one, bias = call.bias ? load(call.bias + c) : zero;
        Doubles of_weight = all_doubles(0.0), of_bias = of_weight;
        for (int64_t b = 0; b < call.batch; ++b) {
            const int64_t at = b * C + c;
            const Lanes A = load(backward.A + at), B = load(backward.B + at);
            // Without a bias nothing is added: 0 times an infinite B would be NaN.
            if (gradients.scale) store(gradients.scale + at, call.bias ? weight * A + bias * B : weight * A);
            if (gradients.shift) store(gradients.shift + at, B);
            const Lanes one_plus = call.scale ? load(call.scale + b * call.scale_stride + c) + one : one;
            of_weight = of_weight + widened(one_plus * A);
            of_bias = of_bias + widened(one_plus * B);
        }
        if (gradients.weight) store(gradients.weight + c, narrowed(of_weight));
        if (gradients.bias) store(gradients.bias + c, narrowed(of_bias));
    }
}

}  // namespace fastcond::cpu::FASTCOND_ISA
