"""Dynamic thresholding against diffusers' and its equation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcond.diffusion import dynamic_threshold

SHAPE = (4, 3, 5, 7)


def predictions(seed: int = 0, size: float = 2.0) -> torch.Tensor:
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.linspace(0.1, size, SHAPE[0])[:, None, None, None]


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
def test_it_is_diffusers(percentile: float) -> None:
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(
        thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=1e6
    )
    x_0 = predictions()
    torch.testing.assert_close(dynamic_threshold(x_0, percentile), scheduler._threshold_sample(x_0))


@given(seed=st.integers(0, 99), percentile=st.floats(0.01, 1.0), size=st.floats(0.1, 30))
def test_an_image_is_clamped_at_its_own_percentile(seed: int, percentile: float, size: float) -> None:
    x_0 = predictions(seed, size).double()
    thresholded = dynamic_threshold(x_0, percentile)
    assert float(thresholded.abs().max()) <= 1
    for image, result in zip(x_0, thresholded, strict=True):
        s = max(1.0, float(torch.quantile(image.abs(), percentile)))
        torch.testing.assert_close(result, image.clamp(-s, s) / s)
        assert torch.equal(dynamic_threshold(image[None], percentile)[0], result), "whatever the batch"


def test_images_within_the_range_are_left_alone() -> None:
    x_0 = predictions().clamp(-1, 1)
    assert torch.equal(dynamic_threshold(x_0, 0.995), x_0)


@pytest.mark.parametrize("percentile", [0.0, -0.5, 1.01, float("nan")])
def test_a_percentile_that_is_none_is_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match=f"dynamic threshold is {percentile}; give a percentile"):
        dynamic_threshold(predictions(), percentile)
