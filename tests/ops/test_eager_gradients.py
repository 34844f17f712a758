"""The short ways of conv3x3, linear and token_attention past the dispatcher: the ops' bits, and who does not take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.ops import conv3x3, linear, native, short_way, token_attention
from fastcond.ops.conv3x3 import cpu as of_conv3x3
from fastcond.ops.linear import cpu as of_linear
from fastcond.ops.token_attention import cpu as of_token_attention
from tests.support.conv3x3 import Case as Convolution
from tests.support.linear import Case as Linear
from tests.support.token_attention import Case as Attention

if native.native is None:
    pytest.skip("the native library was not built", allow_module_level=True)

OPS = {"conv3x3": of_conv3x3, "linear": of_linear, "token_attention": of_token_attention}
each_op = pytest.mark.parametrize("name", OPS)


def case_of(name: str) -> tuple[Callable[..., Tensor], list[Tensor], Tensor]:
    """The op of its tensors alone, these, and a gradient of its result."""
    if name == "conv3x3":
        x, weight, bias, dy = Convolution((2, 17, 6, 5), 18).operands()
        assert bias is not None
        return conv3x3, [x, weight, bias], dy
    if name == "linear":
        *operands, dy = Linear((2, 64, 48), 50).operands()
        return linear, operands, dy
    q, k, v, dy = Attention((2, 5, 12), 3, one_tensor=True).operands()
    return lambda *tensors: token_attention(*tensors, 3), [q, k, v], dy


def outcome(name: str) -> list[Tensor]:
    """Output and gradients."""
    call, tensors, dy = case_of(name)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y = call(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.fixture
def short_calls(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launchers that are called the short way: the op was registered with the functions themselves."""
    calls: list[str] = []

    def noted(launcher: str) -> Callable[..., Any]:
        run = getattr(OPS[name], launcher)

        def call(*arguments: Any) -> Any:
            calls.append(launcher)
            return run(*arguments)

        return call

    for launcher in ("forward", "backward"):
        monkeypatch.setattr(OPS[name], launcher, noted(launcher))
    return calls


@each_op
def test_a_plain_call_takes_it(name: str, short_calls: list[str]) -> None:
    outcome(name)
    with torch.no_grad():
        call, tensors, _ = case_of(name)
        call(*tensors)
    assert short_calls == ["forward", "backward", "forward"]


@each_op
def test_both_ways_give_the_same_bits(name: str, short_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    short = outcome(name)
    monkeypatch.setattr(short_way, "is_short", lambda *tensors: False)
    assert same(outcome(name), short) and short_calls == ["forward", "backward"]


@each_op
def test_only_the_gradients_that_are_asked_for(name: str) -> None:
    _, *expected = outcome(name)
    call, tensors, dy = case_of(name)
    for i, tensor in enumerate(tensors):
        leaves = [other.detach() for other in tensors]
        leaves[i] = tensor.detach().requires_grad_()
        (found,) = torch.autograd.grad(call(*leaves), leaves[i], dy)
        assert torch.equal(found, expected[i])


@each_op
def test_autocast_goes_by_the_op(name: str, short_calls: list[str]) -> None:
    call, tensors, _ = case_of(name)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(*(tensor.requires_grad_() for tensor in map(torch.clone, tensors))).dtype == torch.bfloat16
    assert not short_calls


@each_op
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("short", [True, False])
def test_the_default_dtype_changes_nothing(name: str, short: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bfloat16, results of the default dtype would have half of the memory that a kernel writes."""
    expected = outcome(name)
    if not short:
        monkeypatch.setattr(short_way, "is_short", lambda *tensors: False)
    call, tensors, dy = case_of(name)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    torch.set_default_dtype(dtype)
    try:
        y = call(*leaves)
        found = [y.detach(), *torch.autograd.grad(y, leaves, dy)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(found, expected)


@each_op
def test_a_second_derivative_is_refused(name: str) -> None:
    call, tensors, dy = case_of(name)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    grads = torch.autograd.grad(call(*leaves), leaves, dy.requires_grad_(), create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(grads[0].sum(), leaves[0], allow_unused=True)


@each_op
def test_what_was_changed_meanwhile_is_refused(name: str) -> None:
    call, tensors, dy = case_of(name)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    y = call(*leaves)
    with torch.no_grad():
        leaves[1].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)
