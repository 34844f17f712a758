"""Batches are functions of (seed, step), whatever the micro-batches and processes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcond.config import TrainingConfig
from fastcond.data import LabelledImages
from fastcond.training.batches import BatchSource, _fits

CPU = torch.device("cpu")


def numbered_images(counts: tuple[int, ...] = (5, 9, 3)) -> LabelledImages:
    """Image i is filled with gray level i; `counts` images a class."""
    total = sum(counts)
    images = np.arange(total, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(6, 2).repeat(1, 3)
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    return LabelledImages(images, labels, tuple(f"class {k}" for k in range(len(counts))))


def source(data: LabelledImages | None = None, **settings: Any) -> BatchSource:
    data = data or numbered_images()
    config = dataclasses.replace(TrainingConfig(steps=1, batch_size=8), **settings)
    return BatchSource(data, config, 1000, data.num_classes, CPU)


def numbers(x_0: torch.Tensor) -> list[int]:
    """Which of the numbered images a batch holds."""
    return ((x_0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    used, fresh = source(), source()
    for step in range(7):
        used.draw(step, 0, 8)
    again, first_time = used.draw(7, 0, 8), fresh.draw(7, 0, 8)
    for field in ("x_0", "label", "timestep", "eps"):
        assert torch.equal(getattr(again, field), getattr(first_time, field)), field
    other_step, other_seed = fresh.draw(8, 0, 8), source(seed=1).draw(7, 0, 8)
    for other in (other_step, other_seed):
        assert not torch.equal(other.eps, again.eps)
        assert not torch.equal(other.timestep, again.timestep)
        assert numbers(other.x_0) != numbers(again.x_0)


@pytest.mark.parametrize("balanced", [False, True])
def test_micro_batches_are_parts_of_the_batch(balanced: bool) -> None:
    batches = source(balanced=balanced, flip=True)
    whole, parts = batches.draw(3, 0, 8), [batches.draw(3, first, 2) for first in (0, 2, 4, 6)]
    for field in ("x_0", "label", "timestep", "eps"):
        assert torch.equal(getattr(whole, field), torch.cat([getattr(part, field) for part in parts])), field


def test_every_epoch_visits_every_image_once_in_another_order() -> None:
    data = numbered_images()
    batches = source(data, batch_size=8)
    visited = [n for step in range(17) for n in numbers(batches.draw(step, 0, 8).x_0)]
    epochs = [visited[first : first + len(data)] for first in range(0, len(visited), len(data))]
    assert all(sorted(epoch) == list(range(len(data))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_a_batch_may_be_larger_than_the_data() -> None:
    batches = source(numbered_images((2, 1)), batch_size=8)
    assert Counter(numbers(batches.draw(0, 0, 8).x_0)[:6]) == {0: 2, 1: 2, 2: 2}


def test_labels_stay_with_their_images() -> None:
    data = numbered_images()
    batch = source(data, label_dropout=0.0, batch_size=8).draw(2, 0, 8)
    assert batch.label.tolist() == data.labels[numbers(batch.x_0)].tolist()


def test_balanced_draws_each_class_equally_often() -> None:
    batches = source(numbered_images((50, 5, 1)), balanced=True, label_dropout=0.0, batch_size=3000)
    share = torch.bincount(batches.draw(0, 0, 3000).label, minlength=3) / 3000
    # Three standard deviations of a share of 1/3 in 3,000 draws are 0.026.
    assert (share - 1 / 3).abs().max() < 0.03


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_label_dropout_hides_that_share_of_labels(rate: float) -> None:
    batch = source(label_dropout=rate, batch_size=4000).draw(0, 0, 4000)
    # Four standard deviations at 0.1 are 0.019.
    assert abs(float((batch.label == 3).float().mean()) - rate) < (0.02 if 0 < rate < 1 else 1e-9)


def test_timesteps_are_uniform_over_all_of_them() -> None:
    timestep = source(batch_size=20_000).draw(0, 0, 20_000).timestep
    assert int(timestep.min()) >= 0 and int(timestep.max()) <= 999
    assert len(timestep.unique()) == 1000
    assert abs(float(timestep.float().mean()) - 499.5) < 4 * 288.7 / 20_000**0.5


def test_noise_is_standard_normal_and_differs_by_image() -> None:
    eps = source(batch_size=512).draw(0, 0, 512).eps
    assert eps.shape == (512, 1, 4, 6) and eps.dtype == torch.float32
    assert abs(float(eps.mean())) < 0.04 and abs(float(eps.std()) - 1) < 0.03
    assert len(eps.flatten(1).unique(dim=0)) == 512


def test_flip_mirrors_about_half_left_to_right() -> None:
    data = numbered_images((1,))
    data.images[0, :, :3] = 200
    x_0 = source(data, flip=True, batch_size=1000).draw(0, 0, 1000).x_0
    plain = source(data, batch_size=1000).draw(0, 0, 1).x_0
    mirrored = (x_0 == plain.flip(3)).flatten(1).all(1)
    assert ((x_0 == plain).flatten(1).all(1) | mirrored).all()
    assert 0.44 < float(mirrored.float().mean()) < 0.56


def test_images_map_to_minus_one_and_one() -> None:
    images = np.array([0, 255], dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)
    data = LabelledImages(images, np.array([0, 0]), ("both",))
    x_0 = source(data, batch_size=2).draw(0, 0, 2).x_0
    assert sorted(x_0[:, 0, 0, 0].tolist()) == [-1.0, 1.0]


def test_a_memory_map_is_read_as_the_array_is(tmp_path: Any) -> None:
    data = numbered_images()
    np.save(tmp_path / "images.npy", data.images)
    mapped = LabelledImages(np.load(tmp_path / "images.npy", mmap_mode="r"), data.labels, data.class_names)
    assert torch.equal(source(mapped).draw(5, 0, 8).x_0, source(data).draw(5, 0, 8).x_0)


def test_the_images_lie_on_a_gpu_as_uint8_where_they_take_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    images, cuda = np.zeros((10, 8, 8, 3), dtype=np.uint8), torch.device("cuda")
    for free, fits in ((4 * images.nbytes, True), (4 * images.nbytes - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**12))
        assert _fits(images, cuda) is fits
    placed = source()._images
    assert placed is not None and placed.dtype == torch.uint8


def test_images_on_disk_stay_there_on_a_cpu(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((10, 8, 8, 3), dtype=np.uint8))
    assert not _fits(np.load(tmp_path / "images.npy", mmap_mode="r"), CPU) and _fits(np.load(tmp_path / "images.npy"), CPU)


ROWS = np.array([[0.5, 0.5, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.1, -2.0, 0.25]], dtype=np.float32)


def images_with_rows() -> LabelledImages:
    data = numbered_images((5,))
    return LabelledImages(data.images, ROWS, ("a", "b", "c"))


def test_rows_stay_with_their_images() -> None:
    batch = source(images_with_rows(), label_dropout=0.0, flip=True, batch_size=16).draw(2, 0, 16)
    assert batch.label.dtype == torch.float32
    assert torch.equal(batch.label, torch.from_numpy(ROWS)[numbers(batch.x_0)])


def test_a_dropped_row_is_zeros_and_the_others_are_as_they_were() -> None:
    """What the null label is to an MLP on the row; which are dropped does not depend on the labels' kind."""
    shown, hidden = (source(images_with_rows(), label_dropout=rate, batch_size=64).draw(1, 0, 64).label for rate in (0.0, 0.4))
    integers = LabelledImages(images_with_rows().images, np.arange(5) % 3, ("a", "b", "c"))
    dropped = source(integers, label_dropout=0.4, batch_size=64).draw(1, 0, 64).label == 3
    assert 0 < int(dropped.sum()) < 64
    assert torch.equal(hidden, torch.where(dropped[:, None], 0.0, shown))


def test_micro_batches_of_rows_are_parts_of_the_batch() -> None:
    batches = source(images_with_rows())
    parts = [batches.draw(3, first, 4).label for first in (0, 4)]
    assert torch.equal(batches.draw(3, 0, 8).label, torch.cat(parts))


def test_rows_name_no_class_to_balance() -> None:
    with pytest.raises(ValueError, match="--balance draws every class equally often, and labels that are rows name no class"):
        source(images_with_rows(), balanced=True)
