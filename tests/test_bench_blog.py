"""benchmarks/blog_run.py: the blog's own networks, drawn alike by its pipeline and by ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.blog_run import BLOG_NETWORKS, PIPELINES, by_fastcond
from benchmarks.guided_run import Process
from benchmarks.tables import BLOG_NAMES
from tests.tolerances import GRAY_LEVELS

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
STEPS = 6
PUBLISHED = {
    "02": ("conditional_unet.config.json", "emb_net.pth"),
    "03": ("better_conditional_unet.config.json", "better_emb_net.pth"),
}


@pytest.mark.parametrize("name", BLOG_NETWORKS)
def test_the_networks_are_the_published_ones(name: str, shared_data: Path) -> None:
    config, mlp = (shared_data / "blog" / file for file in PUBLISHED[name])
    network = BLOG_NETWORKS[name]
    published = json.loads(config.read_text(encoding="utf-8"))
    ours = dict(diffusers.UNet2DConditionModel(**network.unet).config)
    assert {key for key in published if key[0] != "_" and ours[key] != _as_tuple(published[key])} == set()
    state = torch.load(mlp, "cpu", weights_only=True)
    assert {key: value.shape for key, value in network.label_mlp().state_dict().items()} == {
        key: value.shape for key, value in state.items()
    }


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("name", BLOG_NETWORKS)
def test_every_pipeline_draws_the_same_images(name: str, tmp_path: Path) -> None:
    assert tuple(PIPELINES) == BLOG_NAMES
    BLOG_NETWORKS[name].write(tmp_path)
    images = {peer: prepare(tmp_path, BLOG_NETWORKS[name])(STEPS).astype(int) for peer, prepare in PIPELINES.items()}
    ours = images["ours"]
    assert all(np.abs(others - ours).max() <= GRAY_LEVELS for others in images.values())
    assert ours.shape == (20, 16, 16, 3) and len(np.unique(ours.reshape(20, -1), axis=0)) == 20
    assert ((ours > 2) & (ours < 253)).mean() > 0.3, "pixels that are not clamped, which would hide a difference"


def test_a_process_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "02"
    BLOG_NETWORKS["02"].write(folder)
    process = Process("ours", "02", folder, 1, tmp_path, "benchmarks.blog_run")
    process.draw()
    took, images = process.finish()
    assert 0 < took["prepare_s"] < process.cold and 50 < took["peak_mib"] < 50_000
    here = by_fastcond(folder, BLOG_NETWORKS["02"])(BLOG_NETWORKS["02"].steps)
    assert np.abs(images.astype(int) - here.astype(int)).max() <= GRAY_LEVELS
