"""linear: output and gradients by the parity rule, by our products and by PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastcond.ops import linear
from fastcond.ops.linear import cpu
from fastcond.ops.linear.op import linear_native, linear_native_backward, linear_op
from tests.ops.test_conv3x3 import ops_of
from tests.support.linear import CASES, NATIVE_CASES, Case, check_parity, native
from tests.tolerances import assert_network_close


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: Case) -> None:
    check_parity(case)


@pytest.mark.parametrize("case", NATIVE_CASES, ids=str)
def test_parity_of_the_op_behind_it(case: Case) -> None:
    check_parity(case, native)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    check_parity(Case((2, 20, 40), 36, dtype=dtype))


def test_gradient() -> None:
    """Of both ways, in float64, the second with a second derivative too."""
    x, weight, bias, _ = (value.double().requires_grad_() for value in Case((2, 3, 4), 5).operands())
    assert torch.autograd.gradcheck(linear, (x, weight, bias))
    assert torch.autograd.gradgradcheck(linear, (x, weight, bias))


def test_a_second_derivative_is_refused() -> None:
    x, weight, bias, _ = Case((2, 64, 64), 64).operands()
    (dx,) = torch.autograd.grad(linear(x.requires_grad_(), weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(dx.square().sum(), x)


def test_layouts_and_gaps() -> None:
    """Tokens of a turned map, a weight with gaps, an expanded gradient."""
    x, weight, bias, _ = Case((2, 100, 32), 48).operands()
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    gaps = torch.stack((weight, weight), dim=2)[:, :, 0].requires_grad_()
    y = linear(turned.requires_grad_(), gaps, bias)
    assert_network_close(y, F.linear(x, weight, bias))
    assert y.is_contiguous()
    y.sum().backward()
    assert_network_close(turned.grad, weight.sum(dim=0).expand_as(x))
    assert_network_close(gaps.grad, x.sum(dim=(0, 1)).expand_as(weight))


@pytest.mark.parametrize(
    "case", [Case((2, cpu.LEAST_PRODUCTS // 64**2 - 1, 64), 64), Case((2, 999, 31), 32), Case((2, 999, 32), 15)], ids=str
)
def test_small_and_odd_ones_are_f_linear(case: Case) -> None:
    x, weight, bias, _ = case.operands()
    assert ops_of(lambda: linear(x, weight, bias)) == ops_of(lambda: F.linear(x, weight, bias))


def test_elsewhere_it_is_f_linear() -> None:
    x, weight, bias, _ = (value.to("meta") for value in Case((2, 64, 64), 64).operands())
    assert ops_of(lambda: linear(x, weight, bias)) == ops_of(lambda: F.linear(x, weight, bias))


def test_autocast_is_f_linears() -> None:
    x, weight, bias, _ = Case((2, 64, 64), 64).operands()
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)


def test_opcheck() -> None:
    for case in (Case((2, 64, 64), 64), Case((2, 4, 6), 5)):
        x, weight, bias, dy = case.operands()
        for op in (linear_op, linear_native):
            torch.library.opcheck(op, (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()))
            torch.library.opcheck(op, (x.detach(), weight.detach(), None))
        torch.library.opcheck(linear_native_backward, (dy, x.detach(), weight.detach(), [True, False, True]))


def refusals() -> dict[str, tuple[Callable[[], Any], str]]:
    x, weight = torch.randn(2, 6, 8), torch.randn(5, 8)
    return {
        "integers": (lambda: linear(x.long(), weight), r"x is torch.int64 \[2, 6, 8\]"),
        "dimensions": (lambda: linear(x[0], weight), r"x is torch.float32 \[6, 8\]"),
        "weight": (lambda: linear(x, weight[:, :7]), r"weight has shape \[5, 7\]; \[K, 8\]"),
        "bias": (lambda: linear(x, weight, torch.randn(8)), r"bias has shape \[8\]; \[5\]"),
    }


@pytest.mark.parametrize("name", refusals())
def test_refusals_name_what_was_found(name: str) -> None:
    call, message = refusals()[name]
    with pytest.raises(ValueError, match=message):
        call()
