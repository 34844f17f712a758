"""What every test shares: determinism, the GPU marker, the folder of shared data."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

# Two threads: enough to find what depends on their number, and small tensors are slower on many. One where tests run beside
# others: threads that wait for a busy processor are slower than none. What depends on their number is tested with numbers.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

# The same examples in every run, so that a red test is red again; no deadline, because machines differ.
hypothesis.settings.register_profile("fastcond", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fastcond")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets, kept beside the checkout where a machine has them."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder
