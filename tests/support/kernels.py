"""Which kernel runs behind a test: the native library, where it was built, or the reference; and each build of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fastcond.ops import native

needs_native = pytest.mark.skipif(native.native is None, reason="the native library is not built")


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "reference"], scope="module", autouse=True)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Import it into a test module: each test then runs behind each CPU kernel."""
    built = native.native
    native.native = built if request.param == "native" else None
    yield request.param
    native.native = built


@pytest.fixture(params=native.native.instruction_sets() if native.native is not None else [])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Import it into a module of native tests: each test that asks for it runs on every build of the library."""
    native.native.use_instruction_set(request.param)
    yield request.param
    native.native.use_instruction_set(native.native.instruction_sets()[-1])


@pytest.fixture
def library_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the library's kernels, as they are called; not of what only looks at tensors."""
    called: list[str] = []
    library = native.native

    class Spy:
        def __getattr__(self, name: str) -> object:
            if name not in ("are_plain", "ada_group_norm_look", "TAKEN", "TAKEN_AS_COPIES"):
                called.append(name)
            return getattr(library, name)

    monkeypatch.setattr(native, "native", Spy())
    return called


def check_bits(run: Callable[..., list[Tensor]], x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor) -> None:
    """No bit of what `run` gives depends on the number of threads or the run; of an image's y and dx, the first two, none on the
    batch.

    Args: x, dy: of five images.
    """
    torch.set_num_threads(1)
    try:
        whole = run(x, weight, bias, dy)
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            again = run(x, weight, bias, dy)
            assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True)), threads
            for images in (slice(0, 1), slice(2, 4)):
                y, dx, *_ = run(x[images], weight, bias, dy[images])
                assert torch.equal(y, whole[0][images]) and torch.equal(dx, whole[1][images]), (threads, images)
    finally:
        torch.set_num_threads(2)
