"""token_attention: output and gradients by the parity rule, where PyTorch's attention runs instead, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcond.ops import token_attention
from fastcond.ops.token_attention import reference
from fastcond.ops.token_attention.op import token_attention_native, token_attention_native_backward, token_attention_op
from tests.ops.test_conv3x3 import ops_of
from tests.support.kernels import kernel  # noqa: F401  (each test with the native library and without)
from tests.support.token_attention import Case, check_parity, run

CASES = [
    Case((2, 64, 128), 16),
    Case((2, 64, 128), 2),
    Case((3, 16, 64), 2),
    Case((1, 256, 32), 1),
    # No multiple of the 16 lanes of a register or the 32 of a panel, neither tokens nor a head's channels.
    Case((2, 70, 48), 3),
    Case((3, 33, 21), 7),
    Case((1, 1, 5), 5),
    Case((2, 17, 40), 1),
    Case((2, 15, 34), 2, one_tensor=True),
    # Scores of 20 and more: one key takes nearly all.
    Case((2, 40, 32), 2, size=3.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: Case) -> None:
    check_parity(case)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 80),
    heads=st.integers(1, 4),
    dimension=st.integers(1, 40),
    one_tensor=st.booleans(),
)
def test_parity_at_random(batch: int, tokens: int, heads: int, dimension: int, one_tensor: bool) -> None:
    check_parity(Case((batch, tokens, heads * dimension), heads, one_tensor=one_tensor))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    check_parity(Case((2, 20, 24), 2, dtype=dtype))


def test_gradient_of_the_reference() -> None:
    operands = [value.requires_grad_() for value in Case((2, 5, 6), 2, dtype=torch.float64).operands()[:3]]
    assert torch.autograd.gradcheck(lambda *qkv: token_attention(*qkv, 2), operands)
    assert torch.autograd.gradcheck(lambda *qkv: token_attention_native(*qkv, 2)[0], operands)


def test_one_key_is_its_value() -> None:
    q, k, v, dy = Case((3, 1, 8), 2).operands()
    y, dq, dk, dv = run(token_attention, q, k, v, dy, 2)
    assert torch.equal(y, v) and torch.equal(dv, dy)
    torch.testing.assert_close(torch.stack((dq, dk)), torch.zeros(2, 3, 1, 8), atol=1e-6, rtol=0)


def test_large_scores_neither_overflow_nor_vanish() -> None:
    """Scores of 1e4: the softmax is one key's, and the gradient of v is dy's."""
    q = torch.eye(16)[None] * 300
    y, dq, dk, dv = run(token_attention, q, q, torch.randn(1, 16, 16), torch.ones(1, 16, 16), 1)
    assert all(value.isfinite().all() for value in (y, dq, dk, dv))
    torch.testing.assert_close(dv, torch.ones(1, 16, 16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_lost(value: float) -> None:
    q, k, v, dy = Case((1, 20, 16), 2).operands()
    q[0, 3, 2] = value
    found, truth = run(token_attention, q, k, v, dy, 2), run(reference.forward, q, k, v, dy, 2)
    for ours, pytorch in zip(found, truth, strict=True):
        assert not (~pytorch.isfinite() & ours.isfinite()).any()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_elsewhere_it_is_pytorchs_attention(device: str) -> None:
    """Other devices and other dtypes: the very same ops, so that a compiler sees scaled_dot_product_attention."""
    dtype = torch.float64 if device == "cpu" else torch.float32
    operands = [torch.randn(2, 9, 16, device=device, dtype=dtype) for _ in range(3)]
    found = ops_of(lambda: token_attention(*operands, 2))
    assert found == ops_of(lambda: reference.forward(*operands, 2))
    assert any("scaled_dot_product" in name or "matmul" in name or "bmm" in name for name in found)


def test_autocast_is_pytorchs() -> None:
    q, k, v, _ = Case((2, 20, 24), 2).operands()
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = token_attention(q, k, v, 2), reference.forward(q, k, v, 2)
    assert y.dtype == expected.dtype and torch.equal(y, expected)


def test_empty() -> None:
    q = torch.empty(0, 4, 8, requires_grad=True)
    y = token_attention(q, q, q, 2)
    assert y.shape == (0, 4, 8)
    y.sum().backward()


@pytest.mark.parametrize("one_tensor", [False, True])
def test_opcheck(one_tensor: bool) -> None:
    *operands, dy = Case((2, 9, 12), 3, one_tensor=one_tensor).operands()
    leaves = [value.detach().requires_grad_() for value in operands]
    for op in (token_attention_op, token_attention_native):
        torch.library.opcheck(op, (*leaves, 3))
    y, softmax = token_attention_native(*operands, 3)
    torch.library.opcheck(token_attention_native_backward, (dy, *operands, y, softmax, 3))


def test_a_second_derivative_is_refused_in_one_line() -> None:
    q, k, v, _ = Case((1, 6, 8), 2).operands()
    y, _ = token_attention_native(q.requires_grad_(), k, v, 2)
    (dq,) = torch.autograd.grad(y.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dq.square().sum().backward()


def refusals() -> dict[str, tuple[Callable[[], Any], str]]:
    q = torch.randn(2, 6, 8)
    y, softmax = token_attention_native(q, q, q, 2)
    return {
        "integers": (lambda: token_attention(q.long(), q, q, 2), r"q is torch.int64 \[2, 6, 8\]"),
        "dimensions": (lambda: token_attention(q[0], q[0], q[0], 2), r"q is torch.float32 \[6, 8\]"),
        "k": (lambda: token_attention(q, q[:, :5], q, 2), r"k and v have shapes \[2, 5, 8\] and \[2, 6, 8\]"),
        "heads": (lambda: token_attention(q, q, q, 3), "heads is 3; a divisor of 8"),
        "no heads": (lambda: token_attention(q, q, q, 0), "heads is 0"),
        "the op's k": (lambda: token_attention_native(q, q[:, :5], q, 2), r"q, k, v are \[2, 6, 8\], \[2, 5, 8\]"),
        "the op's heads": (lambda: token_attention_native(q, q, q, 3), "8 channels cannot be divided into 3 heads"),
        "dy": (
            lambda: token_attention_native_backward(q[:, :5], q, q, q, y, softmax, 2),
            r"dy, y, softmax are \[2, 5, 8\], \[2, 6, 8\]",
        ),
    }


@pytest.mark.parametrize("name", ["integers", "dimensions", "k", "heads", "no heads", "the op's k", "the op's heads", "dy"])
def test_refusals_name_what_was_found(name: str) -> None:
    if name.startswith("the op's") or name == "dy":
        pytest.importorskip("fastcond._native")
    call, message = refusals()[name]
    with pytest.raises(ValueError, match=message):
        call()
