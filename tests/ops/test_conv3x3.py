"""conv3x3: output and gradients by the parity rule over ragged shapes, where PyTorch's convolution runs instead, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fastcond.ops import conv3x3
from fastcond.ops.conv3x3 import reference
from fastcond.ops.conv3x3.op import conv3x3_native, conv3x3_native_backward, conv3x3_op
from tests.support.conv3x3 import Case, check_parity
from tests.support.kernels import kernel  # noqa: F401  (each test with the native library and without)

CASES = [
    Case((2, 32, 16, 16), 32),
    Case((3, 16, 8, 8), 48),
    Case((9, 96, 4, 4), 32, bias=False),
    Case((4, 128, 8, 8), 128),
    Case((1, 64, 16, 16), 64),
    Case((2, 3, 16, 16), 64),
    Case((2, 64, 16, 16), 3),
    # No multiple of the tile's 4, of the 16 channels of a register, of the panel's 32.
    Case((2, 20, 5, 7), 40),
    Case((3, 17, 13, 3), 33, bias=False),
    Case((1, 1, 1, 1), 1),
    Case((2, 7, 1, 9), 5),
    Case((1, 100, 10, 6), 68),
    # More tiles than a block, more channels than fit one.
    Case((1, 16, 33, 70), 16),
    Case((1, 272, 9, 30), 40),
    Case((2, 24, 6, 6), 24, channels_last=False),
    Case((3, 33, 9, 5), 18, channels_last=False),
]
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 18), st.integers(1, 18))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: Case) -> None:
    check_parity(case)
    check_parity(case, conv3x3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=SHAPES, features=st.integers(1, 70), bias=st.booleans(), channels_last=st.booleans())
def test_parity_at_random(shape: tuple[int, int, int, int], features: int, bias: bool, channels_last: bool) -> None:
    check_parity(Case(shape, features, bias, channels_last))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    check_parity(Case((2, 16, 6, 5), 20, dtype=dtype), conv3x3)
    check_parity(Case((2, 16, 6, 5), 20, dtype=dtype))


def test_gradient_of_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 4), (4, 3, 3, 3), (4,)
    operands = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(conv3x3, operands)
    assert torch.autograd.gradcheck(conv3x3_native, operands)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)])
def test_only_the_gradients_that_are_wanted(wanted: tuple[bool, bool, bool]) -> None:
    x, weight, bias, dy = Case((2, 16, 6, 6), 16).operands()
    leaves = [value.clone().requires_grad_(need) for value, need in zip((x, weight, bias), wanted, strict=True)]
    conv3x3(*leaves).backward(dy)
    all_of_them = [value.clone().requires_grad_() for value in (x, weight, bias)]
    conv3x3(*all_of_them).backward(dy)
    for leaf, other, need in zip(leaves, all_of_them, wanted, strict=True):
        assert torch.equal(leaf.grad, other.grad) if need else leaf.grad is None


class Ops(TorchDispatchMode):
    """The names of the ops that run below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def ops_of(run: Callable[[], Any]) -> set[str]:
    with Ops() as ops:
        run()
    return ops.names


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_elsewhere_it_is_pytorchs_convolution(device: str) -> None:
    """Other devices, other dtypes, autocast and few channels: the very same ops, so that a compiler sees a convolution."""
    x, weight, bias = (torch.randn(shape, device=device) for shape in ((2, 16, 6, 6), (16, 16, 3, 3), (16,)))
    operands = [x.double(), weight.double(), bias.double()] if device == "cpu" else [x, weight, bias]
    assert "aten::convolution" in ops_of(lambda: conv3x3(*operands))
    assert ops_of(lambda: conv3x3(*operands)) == ops_of(lambda: F.conv2d(*operands, padding=1))


def test_few_channels_are_pytorchs() -> None:
    x, weight, bias, _ = Case((2, 3, 6, 6), 32).operands()
    assert torch.equal(conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1))
    assert "aten::convolution" in ops_of(lambda: conv3x3(x, weight, bias))


def test_autocast_is_pytorchs() -> None:
    x, weight, bias, _ = Case((2, 16, 6, 6), 16).operands()
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1)
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)


def test_layouts() -> None:
    """Contiguous operands give contiguous results, others channels_last; a gradient is laid out as its operand."""
    x, weight, bias, dy = Case((2, 16, 6, 6), 16, channels_last=False).operands()
    last = torch.channels_last
    for x_layout, weight_layout in ((False, False), (False, True), (True, False), (True, True)):
        operands = [x.to(memory_format=last) if x_layout else x, weight.to(memory_format=last) if weight_layout else weight]
        leaves = [value.clone().requires_grad_() for value in operands]
        y = conv3x3_native(*leaves, bias)
        assert y.is_contiguous(memory_format=last if x_layout or weight_layout else torch.contiguous_format)
        y.backward(dy)
        for leaf in leaves:
            assert leaf.grad.stride() == leaf.stride()


def test_strided_operands() -> None:
    """Neither format: a slice of a wider map, a weight with gaps, a gradient that was expanded."""
    x, weight, bias, _ = Case((2, 16, 6, 6), 16).operands()
    wide, gaps = torch.cat((x, x), dim=3)[:, :, :, :6].requires_grad_(), weight.repeat(1, 1, 1, 2)[:, :, :, :3].requires_grad_()
    plain = [value.clone().requires_grad_() for value in (x, weight)]
    conv3x3(wide, gaps, bias).sum().backward()
    conv3x3(*plain, bias).sum().backward()
    assert torch.equal(wide.grad, plain[0].grad) and torch.equal(gaps.grad, plain[1].grad)


def test_empty() -> None:
    x, weight = torch.empty(0, 16, 6, 6, requires_grad=True), torch.randn(24, 16, 3, 3, requires_grad=True)
    y = conv3x3(x, weight)
    assert y.shape == (0, 24, 6, 6)
    y.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_infinities_and_nan_are_not_lost() -> None:
    x, weight, bias, dy = Case((1, 16, 8, 8), 16).operands()
    x[0, 3, 2, 2], dy[0, 4, 6, 6] = float("nan"), float("inf")
    leaves, others = ([value.clone().requires_grad_() for value in (x, weight)] for _ in range(2))
    y, expected = conv3x3(*leaves, bias), F.conv2d(*others, bias, padding=1)
    y.backward(dy)
    expected.backward(dy)
    for found, truth in ((y, expected), *((leaf.grad, other.grad) for leaf, other in zip(leaves, others, strict=True))):
        assert not (~truth.isfinite() & found.isfinite()).any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last: bool) -> None:
    x, weight, bias, dy = Case((2, 16, 6, 7), 20, channels_last=channels_last).operands()
    leaves = [value.clone().requires_grad_() for value in (x, weight, bias)]
    for op in (conv3x3_op, conv3x3_native):
        torch.library.opcheck(op, tuple(leaves))
        torch.library.opcheck(op, (x, weight, None))
    for needed in ([True, True, True], [True, False, False], [False, True, False]):
        torch.library.opcheck(conv3x3_native_backward, (dy, x, weight, needed))


def test_a_second_derivative_is_refused_in_one_line(kernel: str) -> None:  # noqa: F811
    x, weight, bias, _ = Case((1, 16, 4, 4), 16).operands()
    x.requires_grad_()
    (dx,) = torch.autograd.grad(conv3x3(x, weight, bias).square().sum(), x, create_graph=True)
    if kernel == "reference":  # PyTorch's convolution, which has one
        dx.square().sum().backward()
        assert x.grad is not None
        return
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dx.square().sum().backward()


def test_the_reference_is_conv2d() -> None:
    x, weight, bias, _ = Case((2, 16, 6, 7), 20).operands()
    assert torch.equal(reference.native_forward(x, weight, bias), F.conv2d(x, weight, bias, padding=1))


def refusals() -> dict[str, tuple[Callable[[], Any], str]]:
    x, weight = torch.randn(2, 16, 4, 4), torch.randn(24, 16, 3, 3)
    needed = [True, True, True]
    return {
        "integers": (lambda: conv3x3(x.long(), weight), r"x is torch.int64 \[2, 16, 4, 4\]"),
        "dimensions": (lambda: conv3x3(x[0], weight), r"x is torch.float32 \[16, 4, 4\]"),
        "weight": (lambda: conv3x3(x, weight[:, :15]), r"weight has shape \[24, 15, 3, 3\]; \[K, 16, 3, 3\]"),
        "taps": (lambda: conv3x3(x, weight[:, :, :1]), r"weight has shape \[24, 16, 1, 3\]"),
        "bias": (lambda: conv3x3(x, weight, torch.randn(16)), r"bias has shape \[16\]; \[24\] is needed"),
        "the op's weight": (lambda: conv3x3_native(x, weight[:, :15], None), r"weight \[24, 15, 3, 3\]"),
        "the op's bias": (lambda: conv3x3_native(x, weight, torch.randn(3)), r"bias is \[3\]; \[24\]"),
        "dy": (lambda: conv3x3_native_backward(x, x, weight, needed), r"dy is \[2, 16, 4, 4\] for 24 features"),
    }


@pytest.mark.parametrize("name", refusals())
def test_refusals_name_what_was_found(name: str) -> None:
    call, message = refusals()[name]
    with pytest.raises(ValueError, match=message):
        call()
