"""Evaluations and guided runs of whole networks, by us and by everyone that `benchmarks.peers` knows.

Left out, since all of it should take a quarter of an hour on two cores: batch 128 of the larger networks and batch 32 of the
largest; runs of the largest, and of the middle one at more than batch 2; and of torch.compile, whose best setting takes minutes
to compile a shape, all but three evaluations and one run.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.guided_run import Process, by_scheduler
from benchmarks.measuring import DEVICE, SECONDS_OF_NETWORK, describe, measure
from benchmarks.networks import NETWORKS, STEPS
from benchmarks.peers import COMPILED, PEERS
from benchmarks.tables import EVALUATION, GUIDED_RUN
from tests import tolerances

if DEVICE.type != "cpu":
    pytest.skip("the peers are set up for CPUs", allow_module_level=True)
pytest.importorskip("diffusers")

BATCHES = {"16x16": (1, 8, 32, 128), "32x32": (1, 8, 32), "64x64": (1, 8)}
COMPILED_CASES = {COMPILED[0]: [("16x16", 8), ("16x16", 32)], COMPILED[1]: [("16x16", 32)]}
RUNS = {
    "16x16": (16, tuple(name for name in PEERS if name != COMPILED[1])),
    "32x32": (2, tuple(name for name in PEERS if name not in COMPILED)),
}
ROW = 20  # of the run, where evaluations are compared and timed
COMPARED = 2  # images of a batch that are evaluated in float64 too
RUN_ROUNDS = 2


def evaluations() -> list[tuple[str, int, str]]:
    """(network, batch, peer) of every bench."""
    return [
        (network, batch, peer)
        for network, batches in BATCHES.items()
        for batch in batches
        for peer in PEERS
        if (network, batch) in COMPILED_CASES.get(peer, [(network, batch)])
    ]


def require(peer: str) -> None:
    reason = PEERS[peer].missing()
    if reason is not None:
        pytest.skip(f"{peer}: {reason}")


@cache
def weights_of(network: str) -> dict[str, Tensor]:
    return dict(NETWORKS[network].ours().state_dict())


def timesteps() -> Tensor:
    """Those of the runs, noisiest first."""
    from fastcond.diffusion import NoiseSchedule, ddim

    return ddim(NoiseSchedule.linear(), STEPS).timesteps


@cache
def truth(network: str, images: int) -> Tensor:
    """diffusers' module in float64 on the first images of any batch."""
    found = NETWORKS[network]
    x, label = found.noise(images).double(), found.labels(images)
    with torch.no_grad():
        return found.theirs(weights_of(network)).double()(x, timesteps()[ROW], class_labels=label).sample  # type: ignore[no-any-return]


def relative_error(out: Tensor, network: str) -> float:
    """The largest error of the compared images, over the largest output."""
    expected = truth(network, min(len(out), COMPARED))
    return tolerances.largest_error(out[:COMPARED], expected) / float(expected.abs().max())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("network", "batch", "peer"), [pytest.param(*case, id="{}, batch {}-{}".format(*case)) for case in evaluations()]
)
def bench_evaluation(benchmark: Any, network: str, batch: int, peer: str) -> None:
    require(peer)
    label, x = NETWORKS[network].labels(batch), NETWORKS[network].noise(batch)
    weights, rows = weights_of(network), timesteps()
    with torch.no_grad():
        started = time.perf_counter()
        evaluate = PEERS[peer].prepare(NETWORKS[network], weights, rows, label, torch.get_num_threads())
        out = evaluate(x, ROW)
        ready = time.perf_counter() - started
        error = relative_error(out, network)
        allowed = {"fp32": tolerances.NETWORK_RELATIVE, "bf16": tolerances.BF16_NETWORK_RELATIVE}[PEERS[peer].precision]
        assert error <= allowed, f"{peer}: error {error:.3g} against float64, {allowed:.3g} allowed"
        figures = {"relative_error": error, "prepare_s": round(ready, 2)}
        case, seconds = f"{network}, batch {batch}", SECONDS_OF_NETWORK
        measure(benchmark, EVALUATION, case, peer, lambda: evaluate(x, ROW), seconds=seconds, **figures)


@cache
def images_of_diffusers(network: str, images: int) -> np.ndarray:
    """What every run is compared with, drawn in this process."""
    found, weights = NETWORKS[network], weights_of(network)
    run = by_scheduler(PEERS["diffusers"].prepare, found, weights, found.noise(images), torch.get_num_threads())
    with torch.no_grad():
        return np.asarray(run())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights and noise of the runs, by network."""
    folder = tmp_path_factory.mktemp("networks")
    for network, (images, _) in RUNS.items():
        NETWORKS[network].write(folder / network, images)
    return {network: folder / network for network in RUNS}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("network", "images", "peer"),
    [
        pytest.param(network, images, peer, id=f"{network}, batch {images}-{peer}")
        for network, (images, peers) in RUNS.items()
        for peer in peers
    ],
)
def bench_guided_run(benchmark: Any, network: str, images: int, peer: str, files: dict[str, Path], tmp_path: Path) -> None:
    require(peer)
    case = f"{network}, batch {images}"
    process = Process(peer, network, files[network], torch.get_num_threads(), tmp_path)
    describe(benchmark, GUIDED_RUN, case, peer)
    benchmark.pedantic(process.draw, rounds=RUN_ROUNDS)
    took, drawn = process.finish()
    off = float(np.abs(drawn - images_of_diffusers(network, images)).max())
    if PEERS[peer].precision == "fp32":
        assert off <= tolerances.GUIDED_RUN, f"{peer}: {off:.3g} off diffusers' images, {tolerances.GUIDED_RUN:.3g} allowed"
    figures = {"cold_start_s": process.cold, "off": off, **took}
    if not benchmark.disabled:
        figures["images_per_s"] = images / benchmark.stats["median"]
    describe(benchmark, GUIDED_RUN, case, peer, **figures)
