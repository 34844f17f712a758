"""The short way past the dispatcher: taken by plain calls alone, with the op's bits, and by none that somebody looks into."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastcond.ops import ada_group_norm, native
from fastcond.ops.ada_group_norm import eager
from fastcond.ops.ada_group_norm.op import ada_group_norm_forward
from tests.support.ada_group_norm import Case, value_and_gradients

if native.native is None:
    pytest.skip("the native library was not built", allow_module_level=True)

CASE = Case((2, 6, 3, 5), 3)


class Seen(TorchDispatchMode):
    """The ops that a mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.ops.append(func)
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_ways_give_the_same_bits(dtype: torch.dtype, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((2, 6, 3, 5), 3, dtype, channels_last=last)
    operands = case.operands()
    short = value_and_gradients(case.ours(operands), operands, case.upstream())
    monkeypatch.setattr(eager, "is_short", lambda *tensors: False)
    other = value_and_gradients(case.ours(operands), operands, case.upstream())
    assert short.keys() == other.keys()
    assert all(torch.equal(short[name], other[name]) for name in short)


def test_plain_calls_take_it() -> None:
    x, *others = CASE.operands()
    assert eager.is_short(x, *others)
    assert eager.is_short(torch.nn.Parameter(x.detach()), None)
    with torch.inference_mode():
        assert eager.is_short(torch.randn(2, 2))


def test_a_pytorch_that_cannot_be_asked_goes_by_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "_CAN_ASK", False)
    assert not eager.is_short(torch.randn(2, 2))


def test_a_mode_sees_the_op() -> None:
    with Seen() as seen, torch.no_grad():
        CASE.ours(CASE.operands())
    assert ada_group_norm_forward in seen.ops


@pytest.mark.parametrize("what", ["meta", "subclass", "operand", "vmap", "profiler", "tracing"])
def test_everything_else_goes_by_the_op(what: str) -> None:
    x = torch.randn(2, 6, 3, 5)
    found: list[bool] = []

    def look(value: Tensor) -> Tensor:
        found.append(eager.is_short(value))
        return value

    if what == "meta":
        look(x.to("meta"))
    elif what == "subclass":
        look(x.as_subclass(Subclass))
    elif what == "operand":
        found.append(eager.is_short(x, torch.empty(6, device="meta")))
    elif what == "vmap":
        torch.func.vmap(look)(x)
    elif what == "profiler":
        with torch.profiler.profile():
            look(x)
    else:
        torch.jit.trace(look, x, check_trace=False)
    assert found == [False]


def test_what_was_saved_may_come_back_in_another_layout() -> None:
    x = torch.randn(2, 6, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = torch.autograd.grad(ada_group_norm(x, num_groups=3, activation="silu").sum(), x)[0]
    with torch.autograd.graph.saved_tensors_hooks(lambda value: value.clone(), lambda value: value.contiguous()):
        y = ada_group_norm(x, num_groups=3, activation="silu")
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], expected)


def test_the_default_dtype_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    operands, dy = CASE.operands(), CASE.upstream()
    for short in (True, False):
        if not short:
            monkeypatch.setattr(eager, "is_short", lambda *tensors: False)
        expected = value_and_gradients(CASE.ours(operands), operands, dy)
        torch.set_default_dtype(torch.float64)
        try:
            found = value_and_gradients(CASE.ours(operands), operands, dy)
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
