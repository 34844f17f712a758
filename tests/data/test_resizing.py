"""Scaling to cover and cutting to the centre."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcond.data.resizing import fit_image, fit_images

SIDE = st.integers(1, 40)


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@given(SIDE, SIDE, SIDE, SIDE, st.integers(1, 5))
def test_any_size_to_any_size(height, width, new_height, new_width, channels):
    """The wanted shape, and nothing from outside: a constant image stays that constant to its border."""
    pixels = np.full((height, width, channels), 173, np.uint8)
    fitted = fit_image(pixels, (new_height, new_width))
    assert fitted.dtype == np.uint8 and fitted.shape == (new_height, new_width, channels)
    assert (fitted == 173).all()


@given(SIDE, SIDE, st.integers(1, 5))
def test_a_whole_enlargement_repeats_pixels(height, width, times):
    pixels = noise(height, width)
    fitted = fit_image(pixels, (height * times, width * times))
    np.testing.assert_array_equal(fitted, pixels.repeat(times, 0).repeat(times, 1))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_a_whole_reduction_averages_blocks_on_the_pixel_grid(height, width, times, spare):
    pixels = noise(height * times + spare % times, width * times)  # rows to spare are cut before averaging
    top = spare % times // 2
    blocks = pixels[top : top + height * times].reshape(height, times, width, times, 3)
    np.testing.assert_allclose(fit_image(pixels, (height, width)), blocks.mean(axis=(1, 3)), atol=0.5)


def test_an_enlargement_is_cut_on_the_new_pixel_grid():
    pixels = noise(5, 8)
    fitted = fit_image(pixels, (10, 14))  # doubled to 10 x 16, then one column off each side
    np.testing.assert_array_equal(fitted, pixels.repeat(2, 0).repeat(2, 1)[:, 1:15])


def test_the_centre_is_kept():
    pixels = np.zeros((10, 30, 1), np.uint8)
    pixels[:, 10:20] = 255
    assert (fit_image(pixels, (10, 10)) == 255).all()
    assert (fit_image(pixels.transpose(1, 0, 2), (10, 10)) == 255).all()


def test_the_centre_is_kept_by_other_factors():
    pixels = np.zeros((15, 45, 1), np.uint8)
    pixels[:, 15:30] = 255
    for turned in (pixels, pixels.transpose(1, 0, 2)):
        fitted = fit_image(turned, (10, 10))
        np.testing.assert_array_equal(fitted, fitted[::-1, ::-1])
        assert fitted.min() > 200


def test_other_factors_keep_proportions():
    """A gradient 0..240 over 25 columns, brought to 10: its values are the gradient's at the new pixels' centres."""
    pixels = np.broadcast_to((np.arange(25, dtype=np.uint8) * 10)[None, :, None], (25, 25, 1))
    expected = ((np.arange(10) + 0.5) * 2.5 - 0.5) * 10
    np.testing.assert_allclose(fit_image(pixels, (10, 10))[5, 2:8, 0], expected[2:8], atol=3)


def test_images_of_the_right_size_are_not_copied():
    images = np.stack([noise(4, 6)] * 2)
    assert fit_images(images, None) is images and fit_images(images, (4, 6)) is images
    assert fit_images(images, (2, 3)).shape == (2, 2, 3, 3)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_do_not_mix(channels):
    pixels = noise(7, 9, channels)
    together = fit_image(pixels, (5, 5))
    for channel in range(channels):
        alone = fit_image(pixels[..., channel : channel + 1], (5, 5))
        np.testing.assert_array_equal(together[..., channel : channel + 1], alone)
