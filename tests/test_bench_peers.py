"""benchmarks/peers.py and guided_run.py: everyone that is installed computes the same network and draws the same images."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.guided_run import Process, by_generate, by_scheduler
from benchmarks.networks import NETWORKS, STEPS, Network, read
from benchmarks.peers import COMPILED, PEERS
from benchmarks.tables import PEER_NAMES, TRAINING_NAMES
from tests import tolerances
from tests.support.networks import small_config

SMALL = Network("8x8", small_config(conditioning="scale_shift", block_out_channels=(16, 32)))
THREADS = 1
# To compile a network takes too long here; tests/test_compile.py has compiled ours.
QUICK = [name for name in PEERS if name not in COMPILED]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A peer sets PyTorch's threads, which are the whole process's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_report_has_a_row_for_every_peer() -> None:
    assert tuple(PEERS) == PEER_NAMES and set(TRAINING_NAMES) < set(PEER_NAMES)
    assert [name for name, peer in PEERS.items() if peer.precision == "bf16"] == [name for name in PEERS if "bf16" in name]


def test_a_peer_that_is_not_installed_is_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    reason = PEERS["OpenVINO"].missing()
    assert reason is not None and "openvino" in reason and "`peers`" in reason
    assert PEERS["ours"].missing() is None


@pytest.mark.parametrize("peer", QUICK)
def test_every_peer_evaluates_the_same_network(peer: str) -> None:
    pytest.importorskip("diffusers")
    if (reason := PEERS[peer].missing()) is not None:
        pytest.skip(f"{peer}: {reason}")
    weights, labels, x = dict(SMALL.ours().state_dict()), SMALL.labels(3), SMALL.noise(3)
    timesteps = torch.tensor([981, 500, 21])
    with torch.no_grad():
        evaluate = PEERS[peer].prepare(SMALL, weights, timesteps, labels, THREADS)
        wide = SMALL.theirs(weights).double()
        allowed = {"fp32": tolerances.NETWORK_RELATIVE, "bf16": tolerances.BF16_NETWORK_RELATIVE}[PEERS[peer].precision]
        for row in (1, 0, 2, 1):
            expected = wide(x.double(), timesteps[row], class_labels=labels).sample
            error = tolerances.largest_error(evaluate(x, row), expected)
            assert error <= allowed * float(expected.abs().max()), (row, error)


@pytest.mark.parametrize("peer", [name for name in QUICK if PEERS[name].precision == "fp32" and name != "ours"])
def test_runs_from_the_same_noise_end_in_the_same_images(peer: str) -> None:
    pytest.importorskip("diffusers")
    if (reason := PEERS[peer].missing()) is not None:
        pytest.skip(f"{peer}: {reason}")
    weights, noise = dict(SMALL.ours().state_dict()), SMALL.noise(2)
    with torch.no_grad():
        ours = by_generate(SMALL, weights, 2, THREADS)()
        theirs = by_scheduler(PEERS[peer].prepare, SMALL, weights, noise, THREADS)()
    assert tolerances.largest_error(ours, theirs) <= tolerances.GUIDED_RUN
    assert (theirs.abs() < 0.99).float().mean() > 0.5, "most pixels are not clamped, which would hide a difference"
    assert tolerances.largest_error(theirs[:1], theirs[1:]) > 0.1, "two images"


def test_a_run_in_a_process_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    network = NETWORKS["16x16"]
    network.write(file, 1)
    process = Process("ours", "16x16", file, THREADS, tmp_path)
    process.draw()
    took, images = process.finish()
    assert process.cold > 0.1 and 0 < took["prepare_s"] < process.cold and 50 < took["peak_mib"] < 50_000
    weights, noise = read(file)
    assert torch.equal(noise, network.noise(1)) and weights.keys() == network.ours().state_dict().keys()
    with torch.no_grad():
        here = by_generate(network, weights, 1, THREADS)()
    assert np.abs(images - here.numpy()).max() <= tolerances.GUIDED_RUN
    assert STEPS == 50  # the table's title says so


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    SMALL.write(tmp_path / "weights", 1)
    with pytest.raises(RuntimeError, match="KeyError: 'no such peer'"):
        Process("no such peer", "16x16", tmp_path / "weights", THREADS, tmp_path)
