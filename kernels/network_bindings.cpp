// fastcond._native.Network. Addresses are not checked here; fastcond/engine/native_network.py has laid the memory out.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include "cpu/network.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace fastcond::cpu;
using Address = std::uintptr_t;

template <size_t n>
using Addresses = std::array<Address, n>;
template <size_t n>
using Numbers = std::array<int64_t, n>;

float* at(Address address) { return reinterpret_cast<float*>(address); }

// x, second, mean, gain, offset, packed, bias, residual, y, y_mean, y_m2; bias's row stride, H, W, first_channels, C, K, silu, upsampled (2: phased);
// scale.
void add_norm_conv(Network& network, Addresses<11> t, Numbers<8> n, float scale) {
    NormConv step{at(t[0]), at(t[2]), at(t[3]), at(t[4]), at(t[5]), at(t[6]), at(t[7]), at(t[8]), at(t[9]), at(t[10]),
                  n[0], 0, n[1], n[2], n[4], n[5], n[6] != 0, 1};
    step.second = at(t[1]);
    step.first_channels = n[3];
    step.upsampled = n[7] != 0;
    step.phased = n[7] == 2;
    step.scale = scale;
    network.add(step);
}

// As SmallAttention's fields; tokens, C, heads, out_bias's row stride; scale.
void add_small_attention(Network& network, Addresses<9> t, Numbers<4> n, float scale) {
    network.add(SmallAttention{at(t[0]), at(t[1]), at(t[2]), at(t[3]), at(t[4]), at(t[5]), at(t[6]), at(t[7]), at(t[8]), 0, n[0], n[1],
                               n[2], 1, n[3], scale});
}

// x, second, packed, bias, mean, gain, offset, residual, y; H, W, first_channels, C, K, size, stride, padding.
void add_patch_conv(Network& network, Addresses<9> t, Numbers<8> n) {
    network.add(PatchConv{at(t[0]), at(t[1]), at(t[2]), at(t[3]), at(t[4]), at(t[5]), at(t[6]), at(t[7]), at(t[8]), 0, n[0], n[1], n[2],
                          n[3], n[4], n[5], n[6], n[7], 1, 1});
}

// x, mean, m2; positions, C.
void add_channel_statistics(Network& network, Addresses<3> t, Numbers<2> n) {
    network.add(ChannelStatistics{at(t[0]), at(t[1]), at(t[2]), 0, n[0], n[1], 1});
}

// first_mean, first_m2, second_mean, second_m2, weight, bias, mean, gain, offset; at, positions, first_channels, C, groups.
void add_channel_norm(Network& network, Addresses<9> t, Numbers<5> n, float eps) {
    network.add(ChannelNorm{at(t[0]), at(t[1]), at(t[2]), at(t[3]), at(t[4]), at(t[5]), nullptr, nullptr, at(t[6]), at(t[7]), at(t[8]),
                            0, n[0], 0, n[1], n[2], n[3], n[4], eps, 1});
}

// bias, y; at, K.
void add_row_bias(Network& network, Addresses<2> t, Numbers<2> n) {
    network.add(RowBias{at(t[0]), nullptr, nullptr, at(t[1]), 0, n[0], 0, n[1]});
}

// x, mean, gain, offset, y; H, W, C, silu, up, filtered.
void add_resample(Network& network, Addresses<5> t, Numbers<6> n) {
    network.add(Resample{at(t[0]), at(t[1]), at(t[2]), at(t[3]), at(t[4]), 0, n[0], n[1], n[2], n[3] != 0, n[4] != 0, n[5] != 0, 1});
}

// x, y; positions, C.
void add_layer_norm(Network& network, Addresses<2> t, Numbers<2> n, float eps) {
    network.add(LayerNorm{at(t[0]), at(t[1]), 0, n[0], n[1], eps, 1});
}

// x, y; positions, C.
void add_gated_gelu(Network& network, Addresses<2> t, Numbers<2> n) {
    network.add(GatedGelu{at(t[0]), at(t[1]), 0, n[0], n[1], 1});
}

void hand_on(Network& network, Address of_images, int64_t floats) { network.hand_on({at(of_images), floats}); }

// x, y, columns, slots; width, B, copies, threads.
void run(const Network& network, Addresses<4> t, Numbers<4> n) {
    network.run({at(t[0]), at(t[1]), at(t[2]), reinterpret_cast<const int64_t*>(t[3]), n[0], n[1], n[2], int(n[3])});
}

}  // namespace

void bind_network(nb::module_& module) {
    nb::class_<Network>(module, "Network", "Steps of an evaluation. Tensors are addresses, 0 for none; each method says in "
                                           "kernels/network_bindings.cpp which, and which numbers.")
        .def(nb::init<>())
        .def("add_norm_conv", &add_norm_conv, "tensors"_a, "numbers"_a, "scale"_a)
        .def("add_small_attention", &add_small_attention, "tensors"_a, "numbers"_a, "scale"_a)
        .def("add_patch_conv", &add_patch_conv, "tensors"_a, "numbers"_a)
        .def("add_channel_statistics", &add_channel_statistics, "tensors"_a, "numbers"_a)
        .def("add_channel_norm", &add_channel_norm, "tensors"_a, "numbers"_a, "eps"_a)
        .def("add_row_bias", &add_row_bias, "tensors"_a, "numbers"_a)
        .def("add_resample", &add_resample, "tensors"_a, "numbers"_a)
        .def("add_layer_norm", &add_layer_norm, "tensors"_a, "numbers"_a, "eps"_a)
        .def("add_gated_gelu", &add_gated_gelu, "tensors"_a, "numbers"_a)
        .def("end_segment", &Network::end_segment)
        .def("hand_on", &hand_on, "tensor"_a, "floats"_a)
        .def("images_together", &Network::images_together, "segment"_a)
        .def("set_private", &Network::set_private, "begin"_a, "end"_a)
        .def("run", &run, "tensors"_a, "numbers"_a, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro_static("INPUT", [](nb::handle) { return Network::input; })
        .def_prop_ro_static("OUTPUT", [](nb::handle) { return Network::output; });
}
