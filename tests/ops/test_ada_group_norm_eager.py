"""ada_group_norm's short way past the dispatcher: the op's bits and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
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


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_ways_give_the_same_bits(dtype: torch.dtype, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((2, 6, 3, 5), 3, dtype, channels_last=last)
    operands = case.operands()
    short = value_and_gradients(case.ours(operands), operands, case.upstream())
    monkeypatch.setattr(eager, "nobody_looks", lambda: False)
    other = value_and_gradients(case.ours(operands), operands, case.upstream())
    assert short.keys() == other.keys()
    assert all(torch.equal(short[name], other[name]) for name in short)


def test_a_mode_sees_the_op() -> None:
    with Seen() as seen, torch.no_grad():
        CASE.ours(CASE.operands())
    assert ada_group_norm_forward in seen.ops


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
            monkeypatch.setattr(eager, "nobody_looks", lambda: False)
        expected = value_and_gradients(CASE.ours(operands), operands, dy)
        torch.set_default_dtype(torch.float64)
        try:
            found = value_and_gradients(CASE.ours(operands), operands, dy)
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
