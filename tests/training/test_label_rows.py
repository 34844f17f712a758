"""Training on label rows: soft, several classes at once, or none, through the label MLP of "label_attention"."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcond.config import DiffusionConfig, RunConfig
from fastcond.data import LabelledImages
from fastcond.diffusion import diffusion_loss
from fastcond.engine import generate
from fastcond.training import RunDirectory
from fastcond.training.metrics import read_metrics
from tests.support.networks import perturb
from tests.support.tiny_runs import last_checkpoint, make_trainer, tiny_config
from tests.tolerances import FP64

FACTORS = ("bright", "striped")


def two_factors(count: int = 32) -> LabelledImages:
    """8x8 gray images of two independent factors: how bright, and how strong the stripes are; the row says how much of each."""
    rng = np.random.default_rng(0)
    rows = rng.choice(np.array([0.0, 0.5, 1.0], dtype=np.float32), (count, 2))
    stripes = np.where(np.arange(8) % 4 < 2, 1.0, -1.0)[None, None, :, None]
    images = 70 + 100 * rows[:, 0, None, None, None] + 60 * rows[:, 1, None, None, None] * stripes
    images = np.broadcast_to(images, (count, 8, 8, 1)) + rng.integers(-8, 8, (count, 8, 8, 1))
    return LabelledImages(images.clip(0, 255).astype(np.uint8), rows, FACTORS)


def config_of(label_dropout: float = 0.0, **training: object) -> RunConfig:
    config = tiny_config(**training)
    more = {
        "conditioning": "label_attention",
        "label_attention_heads": 2,
        "label_context_dim": 16,
        "label_dropout": label_dropout,
    }
    network = dataclasses.replace(config.network, dropout=0.0, **more)
    return dataclasses.replace(config, network=network, diffusion=DiffusionConfig(schedule="cosine", prediction="v"))


@pytest.mark.parametrize("label_dropout", [0.0, 0.3])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, label_dropout: float) -> None:
    """With the label MLP's own dropout too, where the network has no other."""
    config, data = config_of(label_dropout), two_factors()
    torch.manual_seed(1)
    assert make_trainer(tmp_path / "whole", config, data).train()
    first = make_trainer(tmp_path / "parts", config, data)
    first.on_progress = lambda progress: first.stop() if progress.step == 5 else None
    assert not first.train()
    torch.manual_seed(123)  # whatever the process did before
    second = make_trainer(tmp_path / "parts", data=data)
    second.resume()
    assert second.train()
    assert last_checkpoint(tmp_path / "whole") == last_checkpoint(tmp_path / "parts")


def test_the_loss_falls_and_the_factors_are_told_apart(tmp_path: Path) -> None:
    """Drawn by rows, images are as bright and as striped as the rows say, a soft one between the others."""
    trainer = make_trainer(tmp_path / "run", config_of(steps=400, ema_decay=0.97, learning_rate=4e-3), two_factors())
    trainer.train()
    losses = [record["loss"] for record in read_metrics(trainer.directory.metrics_path)]
    assert losses[-1] < 0.5 * losses[0]
    rows = np.array([[0, 1], [0.5, 0], [1, 0]], dtype=np.float32)
    images = generate(trainer.average, rows.repeat(8, axis=0), sampler="ddim", steps=20).astype(float).reshape(3, 8, 8, 8)
    brightness = images.mean(axis=(1, 2, 3))
    assert brightness[0] + 15 < brightness[1] < brightness[2] - 15
    stripes = np.abs(images.mean(axis=2)[:, :, [0, 1, 4, 5]].mean(2) - images.mean(axis=2)[:, :, [2, 3, 6, 7]].mean(2)).mean(1)
    assert stripes[0] > 3 * stripes[1:].max()


def test_the_gradient_is_that_of_the_definition(tmp_path: Path) -> None:
    """Of a mixed row, the first product is the mixture of its columns; column k's gradient is sum_b row[b, k] d[b]."""
    trainer = make_trainer(tmp_path / "run", config_of(label_dropout=0.0), two_factors())
    model = trainer.model.double()
    perturb(model)
    batch = trainer.batches.draw(0, 0, 8)
    assert batch.label.dtype == torch.float32 and len(batch.label.unique()) == 3
    seen: list[torch.Tensor] = []

    def keep(module: object, arguments: object, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handle = model.label_embedding.linear_1.register_forward_hook(keep)
    losses = []
    for label in (batch.label, batch.label.double()):
        model.zero_grad()
        loss = diffusion_loss(
            model,
            batch.x_0.double(),
            label,
            batch.timestep,
            batch.eps.double(),
            alphas_cumprod=trainer.alphas_cumprod.double(),
            weights=trainer.weights.double(),
            prediction="v",
        )
        loss.backward()
        losses.append(float(loss.detach()))
    handle.remove()
    assert losses[0] == losses[1]
    linear = model.label_embedding.linear_1
    rows, delta = batch.label.double(), seen[-1].grad
    mixed = sum(rows[:, k, None] * linear.weight[None, :, k] for k in range(2)) + linear.bias
    torch.testing.assert_close(seen[-1], mixed, **FP64)
    assert delta is not None and float(delta.abs().max()) > 0
    torch.testing.assert_close(linear.weight.grad, torch.einsum("bh,bk->hk", delta, rows), **FP64)


def test_rows_are_for_label_attention(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels are rows of 2 numbers, and conditioning adagn takes classes; rows are for"):
        make_trainer(tmp_path / "run", tiny_config(), two_factors())


def test_a_run_on_rows_is_one_of_its_classes(tmp_path: Path) -> None:
    make_trainer(tmp_path / "run", config_of(), two_factors()).train()
    assert RunDirectory(tmp_path / "run").read_class_names() == FACTORS
