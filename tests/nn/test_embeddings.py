"""Timestep embedding and label dropout."""

from __future__ import annotations

import math

import pytest
import torch

from fastcond.nn import drop_labels
from fastcond.nn.embeddings import sinusoidal_embedding
from tests.tolerances import SINUSOID


@pytest.mark.parametrize("dim", [2, 48, 192])
def test_timesteps_are_embedded_as_diffusers_does(dim: int) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    timestep = torch.tensor([0, 1, 17, 500, 999])
    expected = embeddings.get_timestep_embedding(timestep, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal_embedding(timestep, dim), expected, **SINUSOID)


def test_timesteps_are_embedded_by_the_formula() -> None:
    row = sinusoidal_embedding(torch.tensor([3.5]), 8)[0].tolist()
    for i in range(4):
        angle = 3.5 * 10_000 ** (-i / 4)
        assert row[i] == pytest.approx(math.cos(angle), abs=1e-6)
        assert row[4 + i] == pytest.approx(math.sin(angle), abs=1e-6)


def test_dropped_labels_become_the_null_label_and_no_others() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    dropped = torch.tensor([True, False, False, True])
    assert drop_labels(labels, dropped, 4).tolist() == [4, 1, 2, 4]
    assert labels.tolist() == [0, 1, 2, 3]
