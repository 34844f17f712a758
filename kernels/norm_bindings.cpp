// AdaGN as functions of torch.Tensors, for fastcond/ops/ada_group_norm/cpu.py. What a kernel would read or write beside the point
// is refused here, so that no caller has to look at shapes, dtypes and strides twice.
#include <algorithm>
#include <iterator>

#include "cpu/ada_group_norm.h"
#include "tensors.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace fastcond;
using cpu::AdaGroupNorm;

// What a look at the tensors found.
enum Look : int {
    other_x,        // x is not for the kernel
    other_operand,  // an operand has another shape, or no memory of floats
    as_copies,      // the kernel takes them if operands are made float32 whose channels are neighbours
    taken,
};

struct OfImages {
    int64_t batch, channels;
    bool operator()(const Dense& value) const {
        return value.dims == 2 && value.shape[0] == batch && value.shape[1] == channels;
    }
};
struct OfChannels {
    int64_t channels;
    bool operator()(const Dense& value) const { return value.dims == 1 && value.shape[0] == channels; }
};

using Read = bool (*)(nb::handle, Dense&);

// Looks at an operand of a shape that `is_right` and whose last dimension is channels; none is right. `data` and `stride` are of
// what is taken: rows [B, C] a stride apart, or one row [C].
template <typename IsRight>
Look look_at(Read read, nb::handle value, IsRight is_right, const float*& data, int64_t& stride) {
    Dense dense;
    if (value.is_none()) return taken;
    if (!read(value, dense) || !is_right(dense) || !dense.is_float()) return other_operand;
    const int32_t last = dense.dims - 1;
    if (!dense.is_float32() || (dense.shape[last] != 1 && dense.strides[last] != 1)) return as_copies;
    data = static_cast<const float*>(dense.data());
    stride = dense.strides[0];
    return taken;
}

// The call that both directions share, of `map`, which is left in x, and its operands; whole where they are taken.
Look look_at_all(Read read, Dense& x, nb::handle map, nb::handle scale, nb::handle shift, nb::handle weight, nb::handle bias,
                 int64_t groups, AdaGroupNorm& call) {
    if (!read(map, x)) return other_x;
    const int64_t count = x.count();
    if (x.dims < 2 || count == 0 || groups < 1 || x.shape[1] % groups != 0 || !x.is_stored(call.stored)) return other_x;
    const int64_t batch = x.shape[0], channels = x.shape[1];
    const bool contiguous = x.is_contiguous();
    if (!contiguous && !x.is_channels_last()) return other_x;
    const OfImages of_images{batch, channels};
    const OfChannels of_channels{channels};
    int64_t unused;
    const Look looks[] = {look_at(read, scale, of_images, call.scale, call.scale_stride),
                          look_at(read, shift, of_images, call.shift, call.shift_stride),
                          look_at(read, weight, of_channels, call.weight, unused),
                          look_at(read, bias, of_channels, call.bias, unused)};
    call.x = x.data();
    call.batch = batch;
    call.channels = channels;
    call.groups = groups;
    call.positions = count / (batch * channels);
    // Without positions channels are neighbours, which is what channels_last is fast at.
    call.channels_last = !contiguous || x.dims == 2;
    return *std::min_element(std::begin(looks), std::end(looks));
}

// mean [2, B, G] and rstd [B, G], or both in one tensor [3, B, G] and no rstd.
bool take_statistics(nb::handle mean, nb::handle rstd, const AdaGroupNorm& call, float*& means, float*& rstds) {
    Dense both, second;
    const auto is_of_groups = [&](const Dense& value, int32_t before) {
        return value.is_float32() && value.is_contiguous() && value.dims == before + 2 && value.shape[before] == call.batch &&
               value.shape[before + 1] == call.groups;
    };
    if (!read(mean, both) || !is_of_groups(both, 1) || both.shape[0] != (rstd.is_none() ? 3 : 2)) return false;
    means = static_cast<float*>(both.data());
    rstds = means + 2 * call.batch * call.groups;
    if (rstd.is_none()) return true;
    if (!read(rstd, second) || !is_of_groups(second, 0)) return false;
    rstds = static_cast<float*>(second.data());
    return true;
}

int look(nb::handle x, nb::handle scale, nb::handle shift, nb::handle weight, nb::handle bias, int64_t groups) {
    Dense map;
    AdaGroupNorm call{};
    if (!is_of_cpu(x)) return other_x;
    return look_at_all(read_plain, map, x, scale, shift, weight, bias, groups, call);
}

bool forward(nb::handle x, nb::handle scale, nb::handle shift, nb::handle weight, nb::handle bias, int64_t groups, float eps,
             bool silu, int threads, nb::handle y, nb::handle mean, nb::handle rstd) {
    Dense map, result;
    AdaGroupNorm call{};
    if (look_at_all(read, map, x, scale, shift, weight, bias, groups, call) != taken) return false;
    if (!read(y, result) || !result.lies_as(map)) return false;
    call.silu = silu;
    call.threads = threads;
    cpu::AdaGroupNormForward pass{eps, result.data(), nullptr, nullptr};
    if (mean.is_none() ? !rstd.is_none() : !take_statistics(mean, rstd, call, pass.mean, pass.rstd)) return false;
    const nb::gil_scoped_release released;
    cpu::ada_group_norm(call, pass);
    return true;
}

bool backward(nb::handle dy, nb::handle x, nb::handle scale, nb::handle shift, nb::handle weight, nb::handle bias, nb::handle mean,
              nb::handle rstd, int64_t groups, bool silu, int threads, nb::handle dx, nb::handle dscale, nb::handle dshift,
              nb::handle dweight, nb::handle dbias) {
    Dense map, upstream, result;
    AdaGroupNorm call{};
    if (look_at_all(read, map, x, scale, shift, weight, bias, groups, call) != taken) return false;
    if (!read(dy, upstream) || !upstream.lies_as(map) || !read(dx, result) || !result.lies_as(map)) return false;
    call.silu = silu;
    call.threads = threads;
    float *means, *rstds;
    if (!take_statistics(mean, rstd, call, means, rstds)) return false;
    const auto room = [](nb::handle value, const auto& is_right, float*& data) {
        Dense gradient;
        if (value.is_none()) return true;
        if (!read(value, gradient) || !gradient.is_float32() || !gradient.is_contiguous() || !is_right(gradient)) return false;
        data = static_cast<float*>(gradient.data());
        return true;
    };
    const OfImages of_images{call.batch, call.channels};
    const OfChannels of_channels{call.channels};
    cpu::OperandGradients gradients{};
    if (!room(dscale, of_images, gradients.scale) || !room(dshift, of_images, gradients.shift) ||
        !room(dweight, of_channels, gradients.weight) || !room(dbias, of_channels, gradients.bias))
        return false;
    const nb::gil_scoped_release released;
    cpu::ada_group_norm_backward(call, {upstream.data(), means, rstds, result.data()}, gradients);
    return true;
}

}  // namespace

void bind_norm(nb::module_& module) {
    const auto tensor = [](const char* name) { return nb::arg(name).none(); };
    module.attr("TAKEN") = int(taken);
    module.attr("TAKEN_AS_COPIES") = int(as_copies);
    module.def("ada_group_norm_look", &look, tensor("x"), tensor("scale"), tensor("shift"), tensor("weight"), tensor("bias"),
               "num_groups"_a, "whether the kernel takes these tensors past the dispatcher: TAKEN, TAKEN_AS_COPIES or another number");
    module.def("ada_group_norm", &forward, tensor("x"), tensor("scale"), tensor("shift"), tensor("weight"), tensor("bias"),
               "num_groups"_a, "eps"_a, "silu"_a, "threads"_a, tensor("y"), tensor("mean"), tensor("rstd"),
               "False, with nothing done, where the tensors are not what it takes; mean and rstd, or rstd, may be None "
               "(take_statistics)");
    module.def("ada_group_norm_backward", &backward, tensor("dy"), tensor("x"), tensor("scale"), tensor("shift"),
               tensor("weight"), tensor("bias"), tensor("mean"), tensor("rstd"), "num_groups"_a, "silu"_a, "threads"_a,
               tensor("dx"), tensor("dscale"), tensor("dshift"), tensor("dweight"), tensor("dbias"),
               "False, with nothing done, where the tensors are not what it takes; no gradient that is None is computed");
}
