"""When a call may take the short way past the dispatcher: a plain one alone, and none that somebody looks into."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcond.ops import native, short_way

if native.native is None:
    pytest.skip("the native library was not built", allow_module_level=True)


class Subclass(Tensor):
    pass


def test_plain_calls_take_it() -> None:
    x = torch.randn(2, 6, 3, 5)
    assert short_way.is_short(x, torch.randn(2, 6).requires_grad_())
    assert short_way.is_short(torch.nn.Parameter(x.detach()), None)
    with torch.inference_mode():
        assert short_way.is_short(torch.randn(2, 2))


def test_a_pytorch_that_cannot_be_asked_goes_by_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_way, "_CAN_ASK", False)
    assert not short_way.is_short(torch.randn(2, 2))


OTHERS = {
    "an operand on another device": lambda: torch.empty(6, device="meta"),
    "an operand of a subclass": lambda: torch.empty(6).as_subclass(Subclass),
    "a negated operand": lambda: torch._neg_view(torch.randn(6)),
    "a sparse operand": lambda: torch.randn(6).to_sparse(),
    "zeros without memory": lambda: torch._efficientzerotensor(6),
    "a functional operand": lambda: torch._to_functional_tensor(torch.randn(6)),
    "no tensor": lambda: 1.0,
}


@pytest.mark.parametrize("what", OTHERS)
def test_with_an_operand_that_is_not_plain_it_goes_by_the_op(what: str) -> None:
    x = torch.randn(2, 6, 3, 5)
    assert short_way.is_short(x, torch.randn(6))
    assert not short_way.is_short(x, torch.randn(6), OTHERS[what]())
    assert not short_way.is_short(OTHERS[what]())


@pytest.mark.parametrize("what", ["meta", "subclass", "vmap", "profiler", "tracing"])
def test_everything_else_goes_by_the_op(what: str) -> None:
    x = torch.randn(2, 6, 3, 5)
    found: list[bool] = []

    def look(value: Tensor) -> Tensor:
        found.append(short_way.is_short(value))
        return value

    if what == "meta":
        look(x.to("meta"))
    elif what == "subclass":
        look(x.as_subclass(Subclass))
    elif what == "vmap":
        torch.func.vmap(look)(x)
    elif what == "profiler":
        with torch.profiler.profile():
            look(x)
    else:
        torch.jit.trace(look, x, check_trace=False)
    assert found == [False]
