// fastcond._native: the kernels as Python functions. Arrays come as addresses, because reading one from a tensor costs
// a tenth of a DLPack exchange; fastcond/ops/*/op.py is the only caller and has checked shapes, dtypes and strides.
#include <nanobind/nanobind.h>

#include <cstdint>

#include "cpu/philox.h"

namespace nb = nanobind;
using namespace nb::literals;
using fastcond::cpu::Draw;

namespace {

using Address = std::uintptr_t;

template <typename Element, void (*kernel)(const Draw&, Element*)>
void draw(Address seeds, uint32_t step, Address out, int64_t images, int64_t count, uint32_t stream, int threads) {
    kernel({reinterpret_cast<const int64_t*>(seeds), step, stream, images, count, threads},
           reinterpret_cast<Element*>(out));
}

}  // namespace

NB_MODULE(_native, module) {
    module.doc() = "Native kernels. Call them through fastcond.ops: addresses are not checked here.";
    module.def("philox_bits", &draw<int64_t, fastcond::cpu::philox_bits>, "seeds"_a, "step"_a, "out"_a, "images"_a,
               "count"_a, "stream"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>(),
               "seeds int64 [images, 2] -> out int64 [images, count]");
    module.def("philox_normal", &draw<float, fastcond::cpu::philox_normal>, "seeds"_a, "step"_a, "out"_a, "images"_a,
               "count"_a, "stream"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>(),
               "seeds int64 [images, 2] -> out float32 [images, count]");
}
