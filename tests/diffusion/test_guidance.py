"""Which rows of a run are guided."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcond.diffusion import guidance_per_row, rescale_guidance


def test_without_an_interval_every_row_is_guided() -> None:
    assert guidance_per_row(2.5, 4) == [2.5] * 4


@pytest.mark.parametrize(
    ("interval", "rows", "guided"),
    [
        ((0.0, 1.0), 10, range(10)),
        ((0.2, 0.7), 10, range(2, 7)),
        ((0.0, 0.25), 10, range(2)),
        ((0.29, 0.57), 100, range(29, 57)),  # 0.29 * 100 is 28.999... in floating point
        ((0.95, 1.0), 10, range(9, 10)),
        ((0.01, 0.02), 10, range(0)),
    ],
)
def test_rows_inside_the_interval_are_guided(interval: tuple[float, float], rows: int, guided: range) -> None:
    assert guidance_per_row(3.0, rows, interval) == [3.0 if row in guided else 1.0 for row in range(rows)]


@given(first=st.integers(0, 99), rows=st.integers(1, 100))
def test_whole_fractions_fall_on_the_row_that_was_meant(first: int, rows: int) -> None:
    first = min(first, rows - 1)
    assert guidance_per_row(2.0, rows, (first / rows, 1.0)) == [1.0] * first + [2.0] * (rows - first)


@pytest.mark.parametrize("w", [float("nan"), float("inf")])
def test_guidance_must_be_a_number(w: float) -> None:
    with pytest.raises(ValueError, match=f"guidance is {w}; it must be a finite number"):
        guidance_per_row(w, 4)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1.0)])
def test_what_is_no_interval_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="guidance interval is"):
        guidance_per_row(2.0, 4, interval)


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
def test_rescale_is_diffusers(phi: float) -> None:
    guiders = pytest.importorskip("diffusers.guiders.guider_utils")
    generator = torch.Generator().manual_seed(0)
    guided, conditional = (size * torch.randn(4, 3, 5, 7, generator=generator) + 0.2 for size in (3.0, 1.0))
    ours = rescale_guidance(guided, conditional, phi)
    torch.testing.assert_close(ours, guiders.rescale_noise_cfg(guided, conditional, phi))
    assert torch.allclose(rescale_guidance(guided[2:3], conditional[2:3], phi), ours[2:3]), "whatever the batch"


def test_rescale_gives_the_contrast_of_the_conditional_output() -> None:
    guided, conditional = torch.tensor([[0.0, 4.0, 8.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    assert rescale_guidance(guided, conditional, 1.0).std().item() == pytest.approx(conditional.std().item())
    constant = torch.full((1, 3), 5.0)
    assert torch.equal(rescale_guidance(constant, conditional, 0.7), constant), "no contrast to rescale, and no NaN"


@pytest.mark.parametrize("phi", [-0.1, 1.1, float("nan")])
def test_a_rescale_outside_its_range_is_refused(phi: float) -> None:
    with pytest.raises(ValueError, match=f"guidance rescale is {phi}; it must lie in"):
        rescale_guidance(torch.ones(1, 3), torch.ones(1, 3), phi)
