"""ada_group_norm's short way past the dispatcher: the op's bits and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastcond.ops import ada_group_norm, native
from fastcond.ops.ada_group_norm import cpu, eager
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


def of_x_and_scale(x: Tensor, scale: Tensor) -> Tensor:
    return ada_group_norm(x, scale, num_groups=3, activation="silu")


def test_gradients_may_come_in_a_batch() -> None:
    x, scale = (torch.randn(size, requires_grad=True) for size in ((2, 6, 3, 5), (2, 6)))
    dy = torch.randn(4, 2, 6, 3, 5)
    y = of_x_and_scale(x, scale)
    batched = torch.autograd.grad(y, (x, scale), dy, is_grads_batched=True, retain_graph=True)
    for i in range(4):
        alone = torch.autograd.grad(y, (x, scale), dy[i], retain_graph=True)
        assert all(torch.equal(gradients[i], gradient) for gradients, gradient in zip(batched, alone, strict=True))


def test_a_jacobian_may_be_vectorized() -> None:
    inputs = torch.randn(1, 6, 2), torch.randn(1, 6)
    found, expected = (torch.autograd.functional.jacobian(of_x_and_scale, inputs, vectorize=way) for way in (True, False))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("last", [False, True])
def test_a_gradient_of_a_subclass_goes_by_the_op(last: bool) -> None:
    x, scale = (torch.randn(size, requires_grad=True) for size in ((2, 6, 3, 5), (2, 6)))
    y = of_x_and_scale(x, scale)
    memory_format = torch.channels_last if last else torch.contiguous_format
    first, second = (torch.randn(2, 6, 3, 5).contiguous(memory_format=memory_format) for _ in range(2))
    found = torch.autograd.grad(y, (x, scale), TwoTensor(first, second), retain_graph=True)
    for part, dy in (("a", first), ("b", second)):
        expected = torch.autograd.grad(y, (x, scale), dy, retain_graph=True)
        assert all(torch.equal(getattr(one, part), other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_operands_are_copied_only_where_the_kernel_takes_x(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Tensor] = []
    as_taken = cpu.as_taken
    monkeypatch.setattr(cpu, "as_taken", lambda value: copied.append(value) or as_taken(value))
    operands = tuple(torch.randn(size, dtype=torch.bfloat16, device=where) for size in ((2, 6), (2, 6), (6,), (6,)))
    assert eager.ada_group_norm(torch.randn(2, 6, 3, 5, dtype=torch.float64, device=where), operands, 3, 1e-5, True) is None
    assert not copied
    if where == "cpu":
        assert eager.ada_group_norm(torch.randn(2, 6, 3, 5), operands, 3, 1e-5, True) is not None
        assert len(copied) == 4


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
