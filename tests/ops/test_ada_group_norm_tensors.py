"""What the native ada_group_norm reads of tensors: what it can compute it takes; what it would misread it refuses, untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.ops import ada_group_norm, native
from fastcond.ops.ada_group_norm import reference

if native.native is None:
    pytest.skip("the native library was not built", allow_module_level=True)

B, C, G, SIZE = 2, 6, 3, (2, 6, 4, 5)
OTHERS: dict[str, Callable[[], Tensor]] = {
    "not a tensor": lambda: [0.0] * C,  # type: ignore[return-value]
    "meta": lambda: torch.empty(B, C, device="meta"),
    "sparse": lambda: torch.randn(B, C).to_sparse(),
    "mkldnn": lambda: torch.randn(B, C).to_mkldnn(),
    "zeros without memory": lambda: torch._efficientzerotensor(B, C),
    "float64": lambda: torch.randn(B, C, dtype=torch.float64),
    "bfloat16": lambda: torch.randn(B, C, dtype=torch.bfloat16),
    "complex": lambda: torch.randn(B, C, dtype=torch.complex64),
    "too few images": lambda: torch.randn(B - 1, C),
    "too few channels": lambda: torch.randn(B, C - 1),
    "a row": lambda: torch.randn(C),
    "a map": lambda: torch.randn(B, C, 1, 1),
    "every second channel": lambda: torch.randn(B, 2 * C)[:, ::2],
}


def forward(**changed: Any) -> tuple[bool, dict[str, Any]]:
    """The native function's answer, and what it was given: a call that fits but for what is `changed`."""
    given: dict[str, Any] = {
        **dict(x=torch.randn(SIZE), scale=torch.randn(B, C), shift=torch.randn(B, C), weight=torch.randn(C), bias=torch.randn(C)),
        **dict(num_groups=G, eps=1e-5, silu=True, threads=1),
        **dict(y=torch.full(SIZE, 7.0), mean=torch.full((2, B, G), 7.0), rstd=torch.full((B, G), 7.0)),
        **changed,
    }
    return native.native.ada_group_norm(**given), given


def backward(**changed: Any) -> tuple[bool, dict[str, Any]]:
    x = torch.randn(SIZE)
    _, mean, rstd = reference.forward(x, None, None, None, None, G, 1e-5, True)
    given: dict[str, Any] = {
        **dict(dy=torch.randn(SIZE), x=x, scale=torch.randn(B, C), shift=torch.randn(B, C)),
        **dict(weight=torch.randn(C), bias=torch.randn(C), mean=mean, rstd=rstd, num_groups=G, silu=True, threads=1),
        **dict(dx=torch.full(SIZE, 7.0), dscale=torch.full((B, C), 7.0), dshift=torch.full((B, C), 7.0)),
        **dict(dweight=torch.full((C,), 7.0), dbias=torch.full((C,), 7.0)),
        **changed,
    }
    return native.native.ada_group_norm_backward(**given), given


def untouched(given: dict[str, Any], *names: str) -> bool:
    """Whether what was full of sevens still is; what was not given as a dense tensor cannot have been written to."""
    dense = [given[name] for name in names if isinstance(given[name], Tensor) and given[name].is_contiguous()]
    return all(bool((value == 7.0).all()) for value in dense)


def test_a_call_that_fits_is_done() -> None:
    done, given = forward()
    expected = reference.forward(*(given[name] for name in ("x", "scale", "shift", "weight", "bias")), G, 1e-5, True)
    assert done
    for name, value in zip(("y", "mean", "rstd"), expected, strict=True):
        torch.testing.assert_close(given[name], value)


def test_a_gradient_that_fits_is_done() -> None:
    done, given = backward()
    operands = (given[name] for name in ("dy", "x", "scale", "shift", "weight", "bias", "mean", "rstd"))
    expected = reference.backward(*operands, G, True, [True] * 5)
    assert done
    for name, value in zip(("dx", "dscale", "dshift", "dweight", "dbias"), expected, strict=True):
        torch.testing.assert_close(given[name], value)


def test_both_statistics_may_be_one_tensor() -> None:
    _, apart = forward()
    given = {name: apart[name] for name in ("x", "scale", "shift", "weight", "bias")}
    done, together = forward(**given, mean=torch.empty(3, B, G), rstd=None)
    assert done and torch.equal(together["mean"], torch.cat([apart["mean"], apart["rstd"][None]]))
    statistics = {"mean": apart["mean"], "rstd": apart["rstd"]}
    dy = torch.randn(SIZE)
    _, first = backward(**given, dy=dy, **statistics)
    done, second = backward(**given, dy=dy, mean=together["mean"], rstd=None)
    assert done and torch.equal(first["dx"], second["dx"])


@pytest.mark.parametrize("what", OTHERS)
def test_an_operand_of_another_kind_is_refused(what: str) -> None:
    for name in ("scale", "shift"):
        done, given = forward(**{name: OTHERS[what]()})
        assert not done and untouched(given, "y", "mean", "rstd")
        assert not native.native.ada_group_norm_takes(*(given[key] for key in ("x", "scale", "shift", "weight", "bias")), G)
    if what != "a row":
        for name in ("weight", "bias"):
            assert not forward(**{name: OTHERS[what]()})[0]
    for name in ("dscale", "dshift"):
        done, given = backward(**{name: OTHERS[what]()})
        assert not done and untouched(given, "dx", "dweight", "dbias")


@pytest.mark.parametrize(
    "changed",
    [
        dict(x=torch.randn(B, C, 5, 4).transpose(2, 3)),
        dict(x=torch.randn(SIZE).double(), y=torch.full(SIZE, 7.0).double()),
        dict(x=torch.randn(B, 0, 4, 5), y=torch.empty(B, 0, 4, 5)),
        dict(x=torch.randn(SIZE).to(memory_format=torch.channels_last)),  # y is not
        dict(y=torch.full((B, C, 4, 4), 7.0)),
        dict(y=torch.full(SIZE, 7.0, dtype=torch.bfloat16)),
        dict(num_groups=4),
        dict(num_groups=0),
        dict(num_groups=-3),
        dict(mean=torch.full((3, B, G), 7.0)),
        dict(mean=torch.full((2, B, G + 1), 7.0)),
        dict(rstd=torch.full((B, G - 1), 7.0)),
        dict(rstd=None),
        dict(rstd=torch.full((B, G), 7.0, dtype=torch.float64)),
    ],
    ids=str,
)
def test_a_call_that_does_not_fit_leaves_everything_as_it_was(changed: dict[str, Any]) -> None:
    done, given = forward(**changed)
    assert not done and untouched(given, "y", "mean", "rstd")


@pytest.mark.parametrize(
    "changed",
    [
        dict(dy=torch.randn(B, C, 4, 4)),
        dict(dy=torch.randn(SIZE, dtype=torch.bfloat16)),
        dict(dy=torch.randn(SIZE).to(memory_format=torch.channels_last)),
        dict(dx=torch.full((1, *SIZE[1:]), 7.0)),
        dict(mean=torch.randn(3, B, G)),
        dict(mean=torch.randn(2, B, G), rstd=None),
        dict(dweight=torch.full((C + 1,), 7.0)),
        dict(dscale=torch.full((B, 2 * C), 7.0)[:, :C]),
    ],
    ids=str,
)
def test_a_gradient_that_does_not_fit_leaves_everything_as_it_was(changed: dict[str, Any]) -> None:
    done, given = backward(**changed)
    assert not done and untouched(given, "dx", "dscale", "dshift", "dweight", "dbias")


@pytest.mark.parametrize("name", ["x", "scale", "shift", "weight", "bias"])
def test_a_tensor_that_is_negated_on_reading_is_negated(name: str) -> None:
    sizes: dict[str, tuple[int, ...]] = {"x": SIZE, "scale": (B, C), "shift": (B, C), "weight": (C,), "bias": (C,)}
    values = {operand: torch.randn(size) for operand, size in sizes.items()}
    expected = ada_group_norm(num_groups=G, **{**values, name: -values[name]})
    assert torch.equal(ada_group_norm(num_groups=G, **{**values, name: torch._neg_view(values[name])}), expected)


def test_groups_that_are_no_int_are_refused_as_ever() -> None:
    with pytest.raises(RuntimeError, match="num_groups"):
        ada_group_norm(torch.randn(SIZE), num_groups=3.0)  # type: ignore[arg-type]
