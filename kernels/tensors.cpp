#include "tensors.h"

namespace nb = nanobind;

namespace fastcond {
namespace {

constexpr uint32_t major_version = 1;
constexpr int32_t device_cpu = 1;

// DLPackExchangeAPI. What is not called here stands as a bare pointer.
struct Exchange {
    struct {
        uint32_t major, minor;
    } version;
    const Exchange* previous;
    void* allocate;
    void* own;
    void* give;
    int (*read)(void* tensor, Dense* dense);  // -1 with an exception of Python set
    void* stream;
};

const Exchange* exchange = nullptr;
// Borrowed: torch is never unloaded.
PyObject *tensor_type = nullptr, *parameter_type = nullptr, *is_neg = nullptr, *is_cpu = nullptr;

// Whether elements lie one after another, where order(0) is the dimension whose elements are neighbours and order(1) the next.
template <typename Order>
bool is_in_order(const Dense& dense, Order order) {
    int64_t expected = 1;
    for (int32_t i = 0; i < dense.dims; ++i) {
        const int32_t at = order(i);
        if (dense.shape[at] != 1 && dense.strides[at] != expected) return false;
        expected *= dense.shape[at];
    }
    return true;
}

}  // namespace

int64_t Dense::count() const {
    int64_t count = 1;
    for (int32_t i = 0; i < dims; ++i) count *= shape[i];
    return count;
}

bool Dense::is_stored(Stored& stored) const {
    if (type.lanes != 1) return false;
    if (type.code == code_float && type.bits == 32) return stored = Stored::float32, true;
    if (type.code == code_bfloat && type.bits == 16) return stored = Stored::bfloat16, true;
    if (type.code == code_float && type.bits == 16) return stored = Stored::float16, true;
    return false;
}

bool Dense::is_contiguous() const {
    return is_in_order(*this, [this](int32_t i) { return dims - 1 - i; });
}

bool Dense::is_channels_last() const {
    constexpr int32_t order[] = {1, 3, 2, 0};
    return dims == 4 && is_in_order(*this, [&](int32_t i) { return order[i]; });
}

bool Dense::lies_as(const Dense& other) const {
    if (dims != other.dims || type.code != other.type.code || type.bits != other.type.bits || type.lanes != other.type.lanes)
        return false;
    for (int32_t i = 0; i < dims; ++i)
        if (shape[i] != other.shape[i] || (shape[i] != 1 && strides[i] != other.strides[i])) return false;
    return true;
}

bool read_tensors_of(nb::type_object tensor_class, nb::type_object parameter_class) {
    const nb::object table = tensor_class.attr("__dlpack_c_exchange_api__");
    auto found = static_cast<const Exchange*>(PyCapsule_GetPointer(table.ptr(), "dlpack_exchange_api"));
    if (found == nullptr) throw nb::python_error();
    while (found != nullptr && found->version.major != major_version) found = found->previous;
    if (found == nullptr || found->read == nullptr) return false;
    is_neg = PyUnicode_InternFromString("is_neg");
    is_cpu = PyUnicode_InternFromString("is_cpu");
    if (is_neg == nullptr || is_cpu == nullptr) throw nb::python_error();
    exchange = found;
    tensor_type = tensor_class.ptr();
    parameter_type = parameter_class.ptr();
    return true;
}

bool is_of_cpu(nb::handle value) {
    if (is_cpu == nullptr || !PyObject_TypeCheck(value.ptr(), reinterpret_cast<PyTypeObject*>(tensor_type))) return false;
    PyObject* found = PyObject_GetAttr(value.ptr(), is_cpu);
    if (found == nullptr) throw nb::python_error();
    Py_DECREF(found);
    return found == Py_True;
}

bool read(nb::handle value, Dense& dense) {
    if (exchange == nullptr) throw nb::import_error("fastcond.ops.native has not said what a tensor is");
    if (!PyObject_TypeCheck(value.ptr(), reinterpret_cast<PyTypeObject*>(tensor_type))) return false;
    if (exchange->read(value.ptr(), &dense) != 0) {
        // Without such memory: sparse, nested, a transform's wrapper, a dtype that DLPack lacks.
        if (!PyErr_ExceptionMatches(PyExc_RuntimeError) && !PyErr_ExceptionMatches(PyExc_BufferError)) throw nb::python_error();
        PyErr_Clear();
        return false;
    }
    return dense.device.kind == device_cpu && (dense.start != nullptr || dense.count() == 0);
}

bool read_plain(nb::handle value, Dense& dense) {
    const PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(value.ptr()));
    if ((type != tensor_type && type != parameter_type) || !read(value, dense)) return false;
    PyObject* negated = PyObject_CallMethodNoArgs(value.ptr(), is_neg);
    if (negated == nullptr) throw nb::python_error();
    Py_DECREF(negated);
    return negated == Py_False;
}

bool are_plain(nb::args tensors) {
    Dense dense;
    if (tensors.size() != 0 && !is_of_cpu(tensors[0])) return false;
    for (const nb::handle tensor : tensors)
        if (!tensor.is_none() && !read_plain(tensor, dense)) return false;
    return true;
}

}  // namespace fastcond
