"""Twenty images as the blog draws them, by its pipeline around diffusers' network and by ours: `benchmarks.blog_run` says what.

A run of diffusers takes up to half a minute: of 200 steps one is timed. Before it, a run of two steps has made everything ready.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.blog_run import BLOG_NETWORKS, CLASSES, OF_EACH
from benchmarks.guided_run import Process
from benchmarks.measuring import DEVICE, describe
from benchmarks.tables import BLOG_NAMES, BLOG_RUN
from tests import tolerances

if DEVICE.type != "cpu":
    pytest.skip("on a GPU noise of torch.Generator keeps a run from being recorded", allow_module_level=True)
pytest.importorskip("diffusers")

ROUNDS = {"ours": 5}
THEIR_ROUNDS = {"02": 1, "03": 3}
DIFFUSERS = "diffusers"


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """What diffusers drew, by network."""
    return {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pipelines' folders, by network."""
    folder = tmp_path_factory.mktemp("blog")
    for name, network in BLOG_NETWORKS.items():
        network.write(folder / name)
    return {name: folder / name for name in BLOG_NETWORKS}


# diffusers first: the others' images are compared with its.
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "peer"), [(name, peer) for name in BLOG_NETWORKS for peer in sorted(BLOG_NAMES, key=lambda peer: peer != DIFFUSERS)]
)
def bench_twenty_images(
    benchmark: Any, name: str, peer: str, folders: dict[str, Path], drawn: dict[str, np.ndarray], tmp_path: Path
) -> None:
    case = f"tutorial {name}: {BLOG_NETWORKS[name].case}"
    process = Process(peer, name, folders[name], torch.get_num_threads(), tmp_path, "benchmarks.blog_run")
    describe(benchmark, BLOG_RUN, case, peer)
    benchmark.pedantic(process.draw, rounds=ROUNDS.get(peer, THEIR_ROUNDS[name]))
    took, images = process.finish()
    if peer == DIFFUSERS:
        drawn[name] = images
    elif name not in drawn:
        pytest.skip("the images of diffusers, to compare with, are of the bench before")
    off = int(np.abs(images.astype(int) - drawn[name].astype(int)).max())
    assert off <= tolerances.GRAY_LEVELS, f"{peer}: {off} gray levels off diffusers' images, {tolerances.GRAY_LEVELS} allowed"
    figures = {"ready_s": process.cold, "off": off, **took}
    if not benchmark.disabled:
        figures["images_per_s"] = CLASSES * OF_EACH / benchmark.stats["median"]
    describe(benchmark, BLOG_RUN, case, peer, **figures)
