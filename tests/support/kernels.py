"""Running a whole module of tests once with the native library, where it was built, and once with the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastcond.ops import native

needs_native = pytest.mark.skipif(native.native is None, reason="the native library is not built")


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "reference"], scope="module", autouse=True)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Import it into a test module: each test then runs behind each CPU kernel."""
    built = native.native
    native.native = built if request.param == "native" else None
    yield request.param
    native.native = built
