"""generate: an image depends on its label, seed and index only; guidance costs what it must; refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcond.config import DiffusionConfig
from fastcond.diffusion import SAMPLERS, NoiseSchedule, ddim, ddpm
from fastcond.engine import generate, release, step_table, to_uint8
from fastcond.engine.frozen_unet import FrozenUNet
from fastcond.nn import ConditionalUNet
from fastcond.ops import philox_normal
from tests.support.networks import small_unet
from tests.tolerances import GRAY_LEVELS

STEPS = 4
LABELS = [0, 1, 2, 3, 1]  # 3 is the null label


@pytest.fixture(scope="module")
def model() -> ConditionalUNet:
    return small_unet().eval()


def draw(model: ConditionalUNet, labels: Any = LABELS, **options: Any) -> np.ndarray:
    return generate(model, labels, **{"steps": STEPS, "guidance": 2.0, **options})


def assert_same_images(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape and actual.dtype == expected.dtype == np.uint8
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= GRAY_LEVELS


def calls_of(call: Callable[[], Any]) -> list[tuple[Tensor, int, Tensor]]:
    """(x_t, timestep, label) of every evaluation of the network."""
    calls: list[tuple[Tensor, int, Tensor]] = []
    make = FrozenUNet.denoiser

    def spying(frozen: FrozenUNet, timesteps: Tensor, labels: Tensor) -> Any:
        denoiser = make(frozen, timesteps, labels)

        def evaluate(x_t: Tensor, row: Tensor, copies: int = 1) -> Tensor:
            calls.append((x_t.clone(), int(timesteps[row]), labels[: len(x_t)]))
            return denoiser(x_t, row, copies)

        return evaluate

    with mock.patch.object(FrozenUNet, "denoiser", spying):
        call()
    return calls


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_are_uint8_and_the_same_every_time(model: ConditionalUNet, sampler: str) -> None:
    images = draw(model, sampler=sampler)
    assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
    assert np.array_equal(images, draw(model, sampler=sampler))
    assert all(images[i].std() > 5 for i in range(5)), "images, not flat colours"
    assert not np.array_equal(images[1], images[4]), "one label, two indices: two images"
    assert not np.array_equal(images, draw(model, sampler=sampler, seed=1))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batch_size_does_not_matter(model: ConditionalUNet, batch_size: int) -> None:
    assert_same_images(draw(model, batch_size=batch_size), draw(model))


def test_number_of_images_and_other_labels_do_not_matter(model: ConditionalUNet) -> None:
    images = draw(model)
    assert_same_images(draw(model, LABELS[:2]), images[:2])
    assert_same_images(draw(model, [2, 1, 0, 0, 1])[[1, 4]], images[[1, 4]])


def test_indices_choose_the_noise(model: ConditionalUNet) -> None:
    images = draw(model)
    assert_same_images(draw(model, [1, 2, 0], indices=[4, 2, 0]), images[[4, 2, 0]])
    same_noise = draw(model, [1, 1], indices=np.array([7, 7]))
    assert_same_images(same_noise[:1], same_noise[1:])


def test_noise_of_an_image_is_bit_equal_in_any_batch(model: ConditionalUNet) -> None:
    """x_T as the network sees it, in both halves."""
    whole = calls_of(lambda: draw(model, seed=9))[0][0]
    assert torch.equal(whole[:5], whole[5:])
    assert torch.equal(whole[:5], philox_normal(torch.tensor([[9, i] for i in range(5)]), (3, 8, 8)))
    alone = calls_of(lambda: draw(model, [0], seed=9, indices=[3], batch_size=1))[0][0]
    assert torch.equal(alone[0], whole[3])


@pytest.mark.parametrize("labels", [LABELS, tuple(LABELS), np.array(LABELS, dtype=np.uint8), torch.tensor(LABELS)])
def test_labels_may_be_any_list_of_integers(model: ConditionalUNet, labels: Any) -> None:
    assert np.array_equal(draw(model, labels), draw(model))


def test_no_labels_give_no_images(model: ConditionalUNet) -> None:
    assert draw(model, []).shape == (0, 8, 8, 3)


def test_guided_halves_are_the_labels_and_the_null_label(model: ConditionalUNet) -> None:
    calls = calls_of(lambda: draw(model))
    assert len(calls) == STEPS
    table = step_table(model, "ddpm", STEPS)
    for (x, timestep, label), expected in zip(calls, table.timesteps, strict=True):
        assert len(x) == 10 and torch.equal(x[:5], x[5:])
        assert label.tolist() == LABELS + [3] * 5
        assert timestep == int(expected)


def test_without_guidance_only_the_conditional_half_is_computed(model: ConditionalUNet) -> None:
    calls = calls_of(lambda: draw(model, guidance=1.0))
    assert [label.tolist() for _, _, label in calls] == [LABELS] * STEPS
    assert_same_images(draw(model, guidance=1.0), draw(model, guidance=[1.0, 1.0, 1.0, 1.0, 1.0]))


def test_outside_the_guidance_interval_only_the_conditional_half_is_computed(model: ConditionalUNet) -> None:
    calls = calls_of(lambda: draw(model, guidance_interval=(0.25, 0.75)))
    assert [len(x) for x, _, _ in calls] == [5, 10, 10, 5]
    assert not np.array_equal(draw(model, guidance_interval=(0.25, 0.75)), draw(model))
    assert np.array_equal(draw(model, guidance_interval=(0.0, 1.0)), draw(model))


def test_both_evaluations_of_a_timestep_are_guided_or_none(model: ConditionalUNet) -> None:
    """Heun's corrector and the predictor behind it see the same noise: the interval counts timesteps."""
    calls = calls_of(lambda: draw(model, sampler="heun", steps=10, guidance_interval=(0.25, 0.75)))
    visited = [timestep for _, timestep, _ in calls]
    assert visited[:4] == [999, 899, 899, 799] and len(visited) == 19
    guided = {timestep for timestep, (x, _, _) in zip(visited, calls, strict=True) if len(x) == 10}
    assert guided == {799, 699, 599, 499, 399}
    assert sum(len(x) == 10 for x, _, _ in calls) == 2 * len(guided)


def test_guidance_per_image(model: ConditionalUNet) -> None:
    scales = [1.0, 0.0, 2.0, 3.0, 7.5]
    together = draw(model, guidance=scales)
    for i, w in enumerate(scales):
        assert_same_images(draw(model, guidance=w)[i : i + 1], together[i : i + 1])
    sizes = [len(x) for x, _, _ in calls_of(lambda: draw(model, guidance=[1, 1, 2, 1, 1], batch_size=2, steps=1))]
    assert sizes == [2, 4, 1], "batches of unguided images stay unguided"


def test_guidance_zero_ignores_the_label(model: ConditionalUNet) -> None:
    assert_same_images(draw(model, [0, 1, 2], guidance=0.0), draw(model, [3, 3, 3], guidance=1.0))
    guided, plain = draw(model, [0] * 5), draw(model, [0] * 5, guidance=1.0)
    assert not np.array_equal(guided, plain)
    assert_same_images(draw(model, [3] * 5), draw(model, [3] * 5, guidance=1.0))


def test_sampler_may_be_a_name_a_function_or_a_table(model: ConditionalUNet) -> None:
    expected = draw(model, sampler="ddim")
    assert np.array_equal(draw(model, sampler=ddim), expected)
    table = ddim(NoiseSchedule.from_config(model.diffusion), STEPS)
    assert np.array_equal(draw(model, sampler=table, steps=999), expected)
    stochastic = partial(ddim, eta=1.0)
    assert not np.array_equal(draw(model, sampler=stochastic), expected)


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_the_models_own_process_is_sampled(prediction: Any) -> None:
    diffusion = DiffusionConfig(schedule="cosine", num_timesteps=50, zero_terminal_snr=prediction != "eps", prediction=prediction)
    model = small_unet(diffusion)
    table = step_table(model, "ddpm", STEPS)
    expected = ddpm(NoiseSchedule.from_config(diffusion), STEPS, prediction=prediction)
    assert torch.equal(table.coefficients, expected.coefficients) and torch.equal(table.timesteps, expected.timesteps)
    assert draw(model).shape == (5, 8, 8, 3)


@pytest.mark.parametrize("changes", [{"in_channels": 1, "out_channels": 1}, {"image_size": (4, 12)}])
def test_grayscale_and_non_square_images(changes: dict[str, Any]) -> None:
    model = small_unet(**changes)
    images = draw(model)
    assert images.shape == (5, *model.config.image_size, model.config.out_channels)
    assert_same_images(draw(model, batch_size=1), images)


def test_the_result_is_the_last_x_0_prediction_and_steps_are_reported(model: ConditionalUNet) -> None:
    reported: list[tuple[int, int, Tensor]] = []
    images = draw(model, batch_size=3, on_step=lambda row, first, x_0: reported.append((row, first, x_0.clone())))
    assert [(row, first) for row, first, _ in reported] == [(row, first) for first in (0, 3) for row in range(STEPS)]
    assert all(x_0.dtype == torch.float32 and x_0.abs().max() <= 1 for _, _, x_0 in reported)
    last = np.concatenate([to_uint8(x_0) for row, _, x_0 in reported if row == STEPS - 1])
    assert_same_images(images, last)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_left_as_it_was(training: bool) -> None:
    model = small_unet(dropout=0.5).train(training)
    assert np.array_equal(draw(model), draw(model)), "no dropout"
    assert model.training is training

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(model, on_step=fail)
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_module_that_was_frozen_by_hand_stays_so() -> None:
    model = small_unet().train()
    model.mid_block.eval()
    draw(model)
    assert model.training and not model.mid_block.training


def test_pixels_are_rounded_to_the_nearest_level() -> None:
    levels = torch.arange(256, dtype=torch.float64)
    x = (levels / 255 * 2 - 1).float().reshape(1, 1, 16, 16)
    assert np.array_equal(to_uint8(x).ravel(), levels.numpy())
    assert np.array_equal(to_uint8(x + 0.9 / 255).ravel(), levels.numpy())
    assert np.array_equal(to_uint8(x + 1.1 / 255).ravel(), np.minimum(levels.numpy() + 1, 255))
    assert to_uint8(torch.tensor([-9.0, 9.0]).reshape(1, 1, 1, 2)).ravel().tolist() == [0, 255]
    colour = to_uint8(torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1))
    assert colour.shape == (1, 1, 1, 3) and colour.ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [0, 4]}, "labels holds 4; values lie in 0 to 3"),
        ({"labels": [-1]}, "labels holds -1"),
        ({"labels": [0.5]}, "labels is float64"),
        ({"labels": 1}, r"labels is int64 \[\]"),
        ({"labels": [[0, 1]]}, r"labels is int64 \[1, 2\]"),
        ({"indices": [0, 1]}, "there are 2 indices for 5 labels"),
        ({"indices": [0, 1, 2, 3, -1]}, "indices holds -1"),
        ({"indices": [0, 1, 2, 3, 2**32]}, "indices holds 4294967296"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"guidance": [1.0, 2.0]}, r"guidance has shape \[2\]; give one number or 5"),
        ({"guidance": float("nan")}, "guidance is nan; it must be finite"),
        ({"guidance": [1, 1, 1, 1, float("inf")]}, "it must be finite"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance interval is 0.5 to 0.2"),
        ({"guidance_rescale": 1.5}, r"guidance rescale is 1.5; it must lie in \[0, 1\]"),
        ({"dynamic_threshold": 0.0}, "dynamic threshold is 0.0; give a percentile"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"sampler": "euler"}, "sampler is 'euler'; choose one of ddpm, ddim"),
        ({"steps": 1001}, "steps is 1001; this model was trained with 1000 timesteps"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_refuses_in_one_line(model: ConditionalUNet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        draw(model, **options)
    assert "\n" not in str(caught.value)


def test_a_network_of_other_output_channels_cannot_be_sampled() -> None:
    with pytest.raises(ValueError, match="maps 3 to 5 channels"):
        draw(small_unet(out_channels=5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp2m"])
def test_the_default_dtype_changes_nothing(model: ConditionalUNet, sampler: str, dtype: torch.dtype) -> None:
    """A native kernel would otherwise write float32 into memory of half its size."""
    expected = draw(model, sampler=sampler, seed=5)
    release(model)  # what is packed anew is packed under the other default
    torch.set_default_dtype(dtype)
    try:
        found = draw(model, sampler=sampler, seed=5)
    finally:
        torch.set_default_dtype(torch.float32)
        release(model)
    assert np.array_equal(found, expected)
