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


class Subclass(Tensor):
    pass


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
        look = native.native.ada_group_norm_look(*(given[key] for key in ("x", "scale", "shift", "weight", "bias")), G)
        assert look != native.native.TAKEN
    if what != "a row":
        for name in ("weight", "bias"):
            assert not forward(**{name: OTHERS[what]()})[0]
    for name in ("dscale", "dshift"):
        done, given = backward(**{name: OTHERS[what]()})
        assert not done and untouched(given, "dx", "dweight", "dbias")


CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "strided x": lambda: dict(x=torch.randn(B, C, 5, 4).transpose(2, 3)),
    "float64 x": lambda: dict(x=torch.randn(SIZE).double(), y=torch.full(SIZE, 7.0).double()),
    "no channels": lambda: dict(x=torch.randn(B, 0, 4, 5), y=torch.empty(B, 0, 4, 5)),
    "y in another memory format": lambda: dict(x=torch.randn(SIZE).to(memory_format=torch.channels_last)),
    "y of another size": lambda: dict(y=torch.full((B, C, 4, 4), 7.0)),
    "y of another dtype": lambda: dict(y=torch.full(SIZE, 7.0, dtype=torch.bfloat16)),
    "4 groups": lambda: dict(num_groups=4),
    "0 groups": lambda: dict(num_groups=0),
    "-3 groups": lambda: dict(num_groups=-3),
    "mean with rstd, and rstd": lambda: dict(mean=torch.full((3, B, G), 7.0)),
    "mean of more groups": lambda: dict(mean=torch.full((2, B, G + 1), 7.0)),
    "rstd of fewer groups": lambda: dict(rstd=torch.full((B, G - 1), 7.0)),
    "mean without rstd": lambda: dict(rstd=None),
    "rstd without mean": lambda: dict(mean=None),
    "float64 rstd": lambda: dict(rstd=torch.full((B, G), 7.0, dtype=torch.float64)),
}
GRADIENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "dy of another size": lambda: dict(dy=torch.randn(B, C, 4, 4)),
    "dy of another dtype": lambda: dict(dy=torch.randn(SIZE, dtype=torch.bfloat16)),
    "dy in another memory format": lambda: dict(dy=torch.randn(SIZE).to(memory_format=torch.channels_last)),
    "dx of fewer images": lambda: dict(dx=torch.full((1, *SIZE[1:]), 7.0)),
    "mean with rstd, and rstd": lambda: dict(mean=torch.randn(3, B, G)),
    "mean without rstd": lambda: dict(mean=torch.randn(2, B, G), rstd=None),
    "dweight of more channels": lambda: dict(dweight=torch.full((C + 1,), 7.0)),
    "strided dscale": lambda: dict(dscale=torch.full((B, 2 * C), 7.0)[:, :C]),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_that_does_not_fit_leaves_everything_as_it_was(what: str) -> None:
    done, given = forward(**CALLS[what]())
    assert not done and untouched(given, "y", "mean", "rstd")


@pytest.mark.parametrize("what", GRADIENTS)
def test_a_gradient_that_does_not_fit_leaves_everything_as_it_was(what: str) -> None:
    done, given = backward(**GRADIENTS[what]())
    assert not done and untouched(given, "dx", "dscale", "dshift", "dweight", "dbias")


def test_a_look_tells_what_a_copy_would_mend() -> None:
    library = native.native

    def look(x: Tensor, scale: Any, weight: Any = None, groups: int = G) -> int:
        return int(library.ada_group_norm_look(x, scale, None, weight, None, groups))

    x, copies = torch.randn(SIZE), (torch.randn(B, C).double(), torch.randn(B, C).half(), torch.randn(B, 2 * C)[:, ::2])
    assert look(x, torch.randn(B, C)) == look(x, torch.randn(B, 2 * C)[:, C:], torch.randn(C)) == library.TAKEN
    assert all(look(x, copy) == library.TAKEN_AS_COPIES for copy in copies)
    others = (torch.randn(1, C), torch.randn(B, C, 1, 1), torch.ones(B, C, dtype=torch.int64), copies[0].as_subclass(Subclass))
    assert all(look(x, other) not in (library.TAKEN, library.TAKEN_AS_COPIES) for other in others)
    assert look(x, copies[0], torch.randn(C + 1)) not in (library.TAKEN, library.TAKEN_AS_COPIES)
    assert look(x.double(), copies[0]) not in (library.TAKEN, library.TAKEN_AS_COPIES)


@pytest.mark.parametrize("name", ["x", "scale", "shift", "weight", "bias"])
def test_a_tensor_that_is_negated_on_reading_is_negated(name: str) -> None:
    sizes: dict[str, tuple[int, ...]] = {"x": SIZE, "scale": (B, C), "shift": (B, C), "weight": (C,), "bias": (C,)}
    values = {operand: torch.randn(size) for operand, size in sizes.items()}
    expected = ada_group_norm(num_groups=G, **{**values, name: -values[name]})
    assert torch.equal(ada_group_norm(num_groups=G, **{**values, name: torch._neg_view(values[name])}), expected)


def test_groups_without_number_are_refused_as_ever() -> None:
    with pytest.raises(ValueError, match="cannot be divided"):
        ada_group_norm(torch.randn(SIZE), num_groups=1 << 70)
    with pytest.raises(RuntimeError, match="num_groups"):
        ada_group_norm(torch.randn(SIZE), num_groups=3.0)  # type: ignore[arg-type]
