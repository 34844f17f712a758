// AdaGN as functions of torch.Tensors, for fastcond/ops/ada_group_norm/cpu.py. What a kernel would read or write beside the point
// is refused here, so that no caller has to look at shapes, dtypes and strides twice.
#include <optional>

#include "cpu/ada_group_norm.h"
#include "tensors.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using namespace fastcond;
using cpu::AdaGroupNorm;

// Float32 with neighbouring channels: rows [B, C] a stride apart, or one row [C].
bool is_row(const Dense& value, int64_t channels) {
    return value.dims == 1 && value.is_float32() && value.shape[0] == channels && (channels == 1 || value.strides[0] == 1);
}
bool is_rows(const Dense& value, int64_t batch, int64_t channels) {
    return value.has_shape(batch, channels) && value.is_float32() && (channels == 1 || value.strides[1] == 1);
}

using Read = bool (*)(nb::handle, Dense&);

// The call that both directions share, or none where `map`, which is left in x, or an operand is not what the kernel takes.
std::optional<AdaGroupNorm> call_of(Read read, Dense& x, nb::handle map, nb::handle scale, nb::handle shift, nb::handle weight,
                                    nb::handle bias, int64_t groups, bool silu, int threads) {
    if (!read(map, x)) return std::nullopt;
    AdaGroupNorm call{};
    const int64_t count = x.count();
    if (x.dims < 2 || count == 0 || groups < 1 || x.shape[1] % groups != 0 || !x.is_stored(call.stored)) return std::nullopt;
    const int64_t batch = x.shape[0], channels = x.shape[1];
    const bool contiguous = x.is_contiguous();
    if (!contiguous && !x.is_channels_last()) return std::nullopt;
    const auto take_rows = [&](nb::handle value, const float*& data, int64_t& stride) {
        Dense rows;
        if (value.is_none()) return true;
        if (!read(value, rows) || !is_rows(rows, batch, channels)) return false;
        data = static_cast<const float*>(rows.data());
        stride = rows.strides[0];
        return true;
    };
    const auto take_row = [&](nb::handle value, const float*& data) {
        Dense row;
        if (value.is_none()) return true;
        if (!read(value, row) || !is_row(row, channels)) return false;
        data = static_cast<const float*>(row.data());
        return true;
    };
    if (!take_rows(scale, call.scale, call.scale_stride) || !take_rows(shift, call.shift, call.shift_stride) ||
        !take_row(weight, call.weight) || !take_row(bias, call.bias))
        return std::nullopt;
    call.x = x.data();
    call.batch = batch;
    call.channels = channels;
    call.groups = groups;
    call.positions = count / (batch * channels);
    call.silu = silu;
    // Without positions channels are neighbours, which is what channels_last is fast at.
    call.channels_last = !contiguous || x.dims == 2;
    call.threads = threads;
    return call;
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

bool takes(nb::handle x, nb::handle scale, nb::handle shift, nb::handle weight, nb::handle bias, int64_t groups) {
    Dense map;
    return call_of(read_plain, map, x, scale, shift, weight, bias, groups, false, 1).has_value();
}

bool forward(nb::handle x, nb::handle scale, nb::handle shift, nb::handle weight, nb::handle bias, int64_t groups, float eps,
             bool silu, int threads, nb::handle y, nb::handle mean, nb::handle rstd) {
    Dense map, result;
    const auto call = call_of(read, map, x, scale, shift, weight, bias, groups, silu, threads);
    if (!call || !read(y, result) || !result.lies_as(map)) return false;
    cpu::AdaGroupNormForward pass{eps, result.data(), nullptr, nullptr};
    if (!mean.is_none() && !take_statistics(mean, rstd, *call, pass.mean, pass.rstd)) return false;
    const nb::gil_scoped_release released;
    cpu::ada_group_norm(*call, pass);
    return true;
}

bool backward(nb::handle dy, nb::handle x, nb::handle scale, nb::handle shift, nb::handle weight, nb::handle bias, nb::handle mean,
              nb::handle rstd, int64_t groups, bool silu, int threads, nb::handle dx, nb::handle dscale, nb::handle dshift,
              nb::handle dweight, nb::handle dbias) {
    Dense map, upstream, result;
    const auto call = call_of(read_numbers, map, x, scale, shift, weight, bias, groups, silu, threads);
    if (!call || !read_numbers(dy, upstream) || !upstream.lies_as(map) || !read(dx, result) || !result.lies_as(map)) return false;
    float *means, *rstds;
    if (!take_statistics(mean, rstd, *call, means, rstds)) return false;
    const auto room = [](nb::handle value, const auto& fits, float*& data) {
        Dense gradient;
        if (value.is_none()) return true;
        if (!read(value, gradient) || !gradient.is_contiguous() || !fits(gradient)) return false;
        data = static_cast<float*>(gradient.data());
        return true;
    };
    const auto of_images = [&](const Dense& value) { return is_rows(value, call->batch, call->channels); };
    const auto of_channels = [&](const Dense& value) { return is_row(value, call->channels); };
    cpu::OperandGradients gradients{};
    if (!room(dscale, of_images, gradients.scale) || !room(dshift, of_images, gradients.shift) ||
        !room(dweight, of_channels, gradients.weight) || !room(dbias, of_channels, gradients.bias))
        return false;
    const nb::gil_scoped_release released;
    cpu::ada_group_norm_backward(*call, {upstream.data(), means, rstds, result.data()}, gradients);
    return true;
}

}  // namespace

void bind_norm(nb::module_& module) {
    const auto tensor = [](const char* name) { return nb::arg(name).none(); };
    module.def("ada_group_norm_takes", &takes, tensor("x"), tensor("scale"), tensor("shift"), tensor("weight"), tensor("bias"),
               "num_groups"_a, "whether the kernel takes these tensors as they are, past the dispatcher");
    module.def("ada_group_norm", &forward, tensor("x"), tensor("scale"), tensor("shift"), tensor("weight"), tensor("bias"),
               "num_groups"_a, "eps"_a, "silu"_a, "threads"_a, tensor("y"), tensor("mean"), tensor("rstd"),
               "False, with nothing done, where the tensors are not what it takes; mean and rstd, or rstd, may be None "
               "(take_statistics)");
    module.def("ada_group_norm_backward", &backward, tensor("dy"), tensor("x"), tensor("scale"), tensor("shift"),
               tensor("weight"), tensor("bias"), tensor("mean"), tensor("rstd"), "num_groups"_a, "silu"_a, "threads"_a,
               tensor("dx"), tensor("dscale"), tensor("dshift"), tensor("dweight"), tensor("dbias"),
               "False, with nothing done, where the tensors are not what it takes; no gradient that is None is computed");
}
