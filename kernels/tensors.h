// torch.Tensors as they lie in memory, without torch's headers: read through the table of C functions that torch.Tensor carries
// for DLPack. Reading one takes a quarter of a microsecond, as long as a single method of it that Python calls.
//
// Source: DLPack 1.3, dlpack.h, whose structures these are.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "fastcond/simd.h"

namespace fastcond {

// DLTensor. Shape and strides, in elements, are the tensor's own and live as long.
struct Dense {
    void* start;
    struct {
        int32_t kind, index;
    } device;
    int32_t dims;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } type;
    const int64_t* shape;
    const int64_t* strides;
    uint64_t offset;

    void* data() const { return static_cast<char*>(start) + offset; }
    int64_t count() const;
    enum : uint8_t { code_float = 2, code_bfloat = 4 };
    bool is_float() const { return type.code == code_float || type.code == code_bfloat; }
    bool is_float32() const { return type.code == code_float && type.bits == 32 && type.lanes == 1; }
    // Whether it is one of the dtypes that kernels store maps in, and which.
    bool is_stored(Stored& stored) const;
    // Whether elements lie one after another in the order of the dimensions, or of [B, H, W, C].
    bool is_contiguous() const;
    bool is_channels_last() const;
    // Whether dtype, sizes and strides are the other's.
    bool lies_as(const Dense& other) const;
};

// Called once, before any tensor is read, with a class that has a `__dlpack_c_exchange_api__`, the table. False where that is of
// another major version of DLPack, and nothing can be read.
bool read_tensors_of(nanobind::type_object tensor_class, nanobind::type_object parameter_class);

// Whether `value` says that it is on the CPU. `read` finds out too, but of most other tensors by an exception, which takes
// milliseconds.
bool is_of_cpu(nanobind::handle value);

// Whether `value` is a torch.Tensor with memory of the CPU; `dense` then is that.
bool read(nanobind::handle value, Dense& dense);

// The same, and whether it is a torch.Tensor or Parameter and no subclass, and its numbers are not negated on reading. (Complex ones
// may be conjugated: kernels take none.)
bool read_plain(nanobind::handle value, Dense& dense);

// Whether `read_plain` takes each that is not None; the first is not.
bool are_plain(nanobind::args tensors);

}  // namespace fastcond
