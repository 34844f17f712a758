// fastcond._native: the kernels as Python functions. Arrays come as addresses, but for AdaGN's (norm_bindings.cpp); the launchers
// of fastcond/ops are the only callers and have checked shapes, dtypes and strides.
#if defined(__linux__)
#include <malloc.h>
#endif
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/conv3x3.h"
#include "cpu/diffusion_step.h"
#include "cpu/fingerprint.h"
#include "cpu/instruction_set.h"
#include "cpu/linear.h"
#include "cpu/network_steps.h"
#include "cpu/norm_conv.h"
#include "cpu/philox.h"
#include "cpu/small_attention.h"
#include "cpu/token_attention.h"
#include "tensors.h"
#if defined(FASTCOND_CUDA)
#include "cuda/diffusion_step.h"
#endif

namespace nb = nanobind;
using namespace nb::literals;
using fastcond::DiffusionStep;
using fastcond::Stored;
using fastcond::cpu::Draw;

namespace {

using Address = std::uintptr_t;

template <typename Element, void (*kernel)(const Draw&, Element*)>
void draw(Address seeds, uint32_t step, Address out, int64_t images, int64_t count, uint32_t stream, int threads) {
    kernel({reinterpret_cast<const int64_t*>(seeds), step, stream, images, count, threads},
           reinterpret_cast<Element*>(out));
}

// Tensors as in NormConv's fields, 0 for none, and [bias's row stride, B, H, W, C, K, silu, threads].
void convolve(std::array<Address, 10> tensors, std::array<int64_t, 8> n) {
    const auto floats = [&](int i) { return reinterpret_cast<float*>(tensors[i]); };
    fastcond::cpu::norm_conv({floats(0), floats(1), floats(2), floats(3), floats(4), floats(5), floats(6), floats(7),
                              floats(8), floats(9), n[0], n[1], n[2], n[3], n[4], n[5], n[6] != 0, int(n[7])});
}

// Tensors as in SmallAttention's fields, 0 for none, and [B, tokens, C, heads, threads].
void attend(std::array<Address, 9> tensors, std::array<int64_t, 5> n) {
    const auto floats = [&](int i) { return reinterpret_cast<float*>(tensors[i]); };
    fastcond::cpu::small_attention({floats(0), floats(1), floats(2), floats(3), floats(4), floats(5), floats(6), floats(7),
                                    floats(8), n[0], n[1], n[2], n[3], int(n[4])});
}

void pack(Address weight, Address packed, int64_t channels, int64_t features, int threads) {
    fastcond::cpu::pack_conv_weight(reinterpret_cast<const float*>(weight), reinterpret_cast<float*>(packed), channels,
                                    features, threads);
}

// [C, K, channel's stride, feature's stride, tap's stride, turned, threads].
void pack_strided(Address weight, Address packed, std::array<int64_t, 7> n) {
    fastcond::cpu::pack_filters({reinterpret_cast<const float*>(weight), reinterpret_cast<float*>(packed), n[0], n[1], n[2], n[3],
                                 n[4], n[5] != 0, int(n[6])});
}

// Tensors as in ConvWeightGradient's fields, 0 for none, and [B, H, W, C, K, threads].
void weight_gradient(std::array<Address, 4> tensors, std::array<int64_t, 6> n) {
    const auto floats = [&](int i) { return reinterpret_cast<float*>(tensors[i]); };
    fastcond::cpu::conv_weight_gradient({floats(0), floats(1), floats(2), floats(3), n[0], n[1], n[2], n[3], n[4], int(n[5])});
}

// [terms, features, term's stride, feature's stride, threads].
void pack_matrix(Address weight, Address packed, std::array<int64_t, 5> n) {
    fastcond::cpu::pack_matrix({reinterpret_cast<const float*>(weight), reinterpret_cast<float*>(packed), n[0], n[1], n[2], n[3],
                                int(n[4])});
}

// [x, packed, bias, y], 0 for no bias, and [rows, C, K, threads].
void multiply_rows(std::array<Address, 4> tensors, std::array<int64_t, 4> n) {
    const auto floats = [&](int i) { return reinterpret_cast<float*>(tensors[i]); };
    fastcond::cpu::PatchConv call{};
    call.x = floats(0), call.packed = floats(1), call.bias = floats(2), call.y = floats(3);
    call.batch = 1, call.height = n[0], call.width = 1, call.first_channels = call.channels = n[1], call.features = n[2];
    call.size = call.stride = call.copies = 1, call.threads = int(n[3]);
    fastcond::cpu::patch_conv(call);
}

// Tensors as in LinearGradient's fields, 0 for none, and [rows, C, K, threads].
void linear_gradient(std::array<Address, 4> tensors, std::array<int64_t, 4> n) {
    const auto floats = [&](int i) { return reinterpret_cast<float*>(tensors[i]); };
    fastcond::cpu::linear_gradient({floats(0), floats(1), floats(2), floats(3), n[0], n[1], n[2], int(n[3])});
}

// [q, k, v, y, softmax, dy, dq, dk, dv] as in TokenAttention, the last four 0 forward, and
// [q's, k's and v's stride, B, tokens, C, heads, threads].
void attend_tokens(std::array<Address, 9> tensors, std::array<int64_t, 8> n) {
    const auto floats = [&](int i) { return reinterpret_cast<float*>(tensors[i]); };
    const fastcond::cpu::TokenAttention call{floats(0), floats(1), floats(2), n[0], n[1], n[2], n[3], n[4], n[5], n[6], int(n[7]),
                                             floats(3), floats(4), floats(5), floats(6), floats(7), floats(8)};
    call.dy ? fastcond::cpu::token_attention_backward(call) : fastcond::cpu::token_attention(call);
}

// Memory that is freed stays the process's own. A training step asks for the same maps again and again: given back to the system,
// each of their pages is a fault and is zeroed anew.
bool keep_freed_memory() {
#if defined(__GLIBC__)
    // Some versions believe in 32 MiB at most.
    const bool arranged = mallopt(M_MMAP_THRESHOLD, 1 << 30) || mallopt(M_MMAP_THRESHOLD, 32 << 20);
    return mallopt(M_TRIM_THRESHOLD, -1) && arranged;
#else
    return false;
#endif
}

uint64_t fingerprint(const std::vector<Address>& addresses, const std::vector<int64_t>& bytes, int threads) {
    std::vector<fastcond::cpu::Piece> pieces;
    for (size_t i = 0; i < addresses.size(); ++i)
        pieces.push_back({reinterpret_cast<const unsigned char*>(addresses[i]), bytes.at(i)});
    return fastcond::cpu::fingerprint(pieces, threads);
}

// Tensors as in DiffusionStep's fields, 0 for none, and [B, C, positions, rows, halves, channels_last, draws_noise, stored].
DiffusionStep step_call(const std::array<Address, 10>& tensors, const std::array<int64_t, 8>& n) {
    const auto floats = [&](int i) { return reinterpret_cast<float*>(tensors[i]); };
    const auto integers = [&](int i) { return reinterpret_cast<const int64_t*>(tensors[i]); };
    const auto any = [&](int i) { return reinterpret_cast<const void*>(tensors[i]); };
    return {floats(0), any(1), any(2), floats(3), floats(4), integers(5), floats(6), integers(7), floats(8), floats(9),
            n[0], n[1], n[2], n[3], n[4], n[5] != 0, n[6] != 0, Stored(n[7])};
}

bool step(std::array<Address, 10> tensors, std::array<int64_t, 8> numbers, int threads) {
    const DiffusionStep call = step_call(tensors, numbers);
    if (!fastcond::cpu::buffers_are_separate(call)) return false;
    fastcond::cpu::diffusion_step(call, threads);
    return true;
}

#if defined(FASTCOND_CUDA)
bool step_cuda(std::array<Address, 10> tensors, std::array<int64_t, 8> numbers, Address stream) {
    const DiffusionStep call = step_call(tensors, numbers);
    if (!fastcond::cpu::buffers_are_separate(call)) return false;
    if (const char* error = fastcond_diffusion_step_cuda(&call, reinterpret_cast<void*>(stream)))
        throw std::runtime_error(std::string("diffusion_step could not be launched: ") + error);
    return true;
}
#endif

}  // namespace

void bind_network(nb::module_& module);  // network_bindings.cpp
void bind_norm(nb::module_& module);     // norm_bindings.cpp

NB_MODULE(_native, module) {
    // Raised with every change of what these functions take: addresses that another version reads otherwise would crash.
    module.attr("INTERFACE") = 7;
    module.doc() = "Native kernels. Call them through fastcond.ops: addresses are not checked here.";
    module.def("philox_bits", &draw<int64_t, fastcond::cpu::philox_bits>, "seeds"_a, "step"_a, "out"_a, "images"_a,
               "count"_a, "stream"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>(),
               "seeds int64 [images, 2] -> out int64 [images, count]");
    module.def("philox_normal", &draw<float, fastcond::cpu::philox_normal>, "seeds"_a, "step"_a, "out"_a, "images"_a,
               "count"_a, "stream"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>(),
               "seeds int64 [images, 2] -> out float32 [images, count]");
    module.def("norm_conv", &convolve, "tensors"_a, "numbers"_a, nb::call_guard<nb::gil_scoped_release>(),
               "tensors and numbers as in convolve");
    module.def("small_attention", &attend, "tensors"_a, "numbers"_a, nb::call_guard<nb::gil_scoped_release>(),
               "tensors and numbers as in attend");
    module.def("pack_conv_weight", &pack, "weight"_a, "packed"_a, "channels"_a, "features"_a, "threads"_a,
               nb::call_guard<nb::gil_scoped_release>(), "weight float32 [features, channels, 3, 3] -> packed");
    module.def("pack_filters", &pack_strided, "weight"_a, "packed"_a, "numbers"_a, nb::call_guard<nb::gil_scoped_release>(),
               "numbers as in pack_strided");
    module.def("conv_weight_gradient", &weight_gradient, "tensors"_a, "numbers"_a, nb::call_guard<nb::gil_scoped_release>(),
               "tensors and numbers as in weight_gradient");
    module.def("pack_matrix", &pack_matrix, "weight"_a, "packed"_a, "numbers"_a, nb::call_guard<nb::gil_scoped_release>(),
               "numbers as in pack_matrix");
    module.def("linear", &multiply_rows, "tensors"_a, "numbers"_a, nb::call_guard<nb::gil_scoped_release>(),
               "tensors and numbers as in multiply_rows");
    module.def("linear_gradient", &linear_gradient, "tensors"_a, "numbers"_a, nb::call_guard<nb::gil_scoped_release>(),
               "tensors and numbers as in linear_gradient");
    module.def("token_attention", &attend_tokens, "tensors"_a, "numbers"_a, nb::call_guard<nb::gil_scoped_release>(),
               "tensors and numbers as in attend_tokens; backward where there is a dy");
    module.def("keep_freed_memory", &keep_freed_memory, "for training; False where the C library cannot be told");
    module.def("fingerprint", &fingerprint, "addresses"_a, "bytes"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>(),
               "another number where dense arrays are not what they were");
    module.def("diffusion_step", &step, "tensors"_a, "numbers"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>(),
               "arguments as in step_call; False, with nothing done, where buffers overlap otherwise than element for element");
#if defined(FASTCOND_CUDA)
    module.def("diffusion_step_cuda", &step_cuda, "tensors"_a, "numbers"_a, "stream"_a, "diffusion_step on the GPU");
#endif
    bind_network(module);
    bind_norm(module);
    module.def("read_tensors_of", &fastcond::read_tensors_of, "tensor_class"_a, "parameter_class"_a,
               "called once, at first; False where tensors cannot be read");
    module.def("are_plain", &fastcond::are_plain, "tensors"_a, "whether a kernel may be called with these, past the dispatcher");
    module.def("instruction_sets", &fastcond::cpu::instruction_sets, "what this processor can run, the best last");
    module.def("use_instruction_set", &fastcond::cpu::use_instruction_set, "name"_a, "for tests: run another build");
}
