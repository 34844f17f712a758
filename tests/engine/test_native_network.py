"""A network as one native call: its bits depend on nothing but the image, and its memory is used again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastcond.engine.frozen_unet import FrozenUNet
from tests.support.frozen_networks import assert_equals_the_model, inputs
from tests.support.kernels import instruction_set, needs_native  # noqa: F401  (a fixture)
from tests.support.networks import SKIP_BLOCKS, small_unet

pytestmark = needs_native


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_on_every_instruction_set(instruction_set: str) -> None:  # noqa: F811
    for channels in ((8, 24), (32, 32)):
        model = small_unet(block_out_channels=channels, conditioning="scale_shift").eval()
        assert_equals_the_model(model, *inputs(model))


def test_skip_blocks_on_every_instruction_set(instruction_set: str) -> None:  # noqa: F811
    for changes in ({}, {"conditioning": "scale_shift", "image_size": (4, 12), "mid_block_scale_factor": 2**0.5}):
        model = small_unet(**{**SKIP_BLOCKS, **changes}).eval()
        assert_equals_the_model(model, *inputs(model))


@pytest.mark.parametrize("changes", [{}, SKIP_BLOCKS], ids=["plain", "skip blocks"])
def test_an_image_s_bits_depend_on_neither_batch_nor_threads(threads: None, changes: dict[str, Any]) -> None:
    model = small_unet(**{**changes, "block_out_channels": (32, 64), "image_size": (16, 16)}).eval()
    network, (x_t, slots) = FrozenUNet(model).native_network(16, 16), inputs(model, batch=9)
    columns = torch.randn(4, sum(site.width for site in FrozenUNet(model).walk.sites))
    torch.set_num_threads(1)
    together = network.evaluate(x_t, columns, slots)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert torch.equal(network.evaluate(x_t, columns, slots), together)
        for i in (0, 4, 8):
            assert torch.equal(network.evaluate(x_t[i : i + 1], columns, slots[i : i + 1]), together[i : i + 1])


def test_parts_of_a_batch_are_the_batch() -> None:
    model = small_unet().eval()
    x_t, label = inputs(model, batch=11)
    frozen = FrozenUNet(model)
    whole = frozen(x_t, 3, label)
    for images in (1, 2, 4, 5, 10):
        frozen.native_network(8, 8).images_at_a_time = images
        assert torch.equal(frozen(x_t, 3, label), whole)


@pytest.mark.parametrize(("batch", "size"), [(8, 8), (11, 11), (13, 7), (19, 10), (20, 10), (21, 7)])
def test_a_batch_goes_into_the_nearest_number_of_parts(batch: int, size: int) -> None:
    model = small_unet().eval()
    frozen = FrozenUNet(model)
    network = frozen.native_network(8, 8)
    network.images_at_a_time = 8
    frozen(*(lambda x_t, label: (x_t, 3, label))(*inputs(model, batch=batch)))
    assert network._capacity == size


@pytest.mark.parametrize("changes", [{}, SKIP_BLOCKS], ids=["plain", "skip blocks"])
def test_copies_are_computed_alike(changes: dict[str, Any]) -> None:
    """What no condition enters runs once for both halves of a guided batch."""
    model = small_unet(**changes).eval()
    x_t, _ = inputs(model)
    denoiser = FrozenUNet(model).denoiser(torch.tensor([7]), torch.tensor([0, 1, 2, 3, 3, 3]))
    both, row = torch.cat([x_t, x_t]), torch.tensor([0])
    assert torch.equal(denoiser(both, row, copies=2), denoiser(both, row))
    assert torch.equal(denoiser(x_t, row), denoiser(both, row)[:3])


def test_copies_share_what_comes_before_their_labels() -> None:
    """With scale_shift that is the first block's first convolution; its output is handed on to the copies."""
    network = FrozenUNet(small_unet(conditioning="scale_shift")).native_network(8, 8)
    labelled = next(i for i, step in enumerate(network._steps) if step.method == "add_channel_norm" and step.numbers[0] >= 0)
    assert labelled in network._segments
    shared = network._steps[:labelled]
    assert [step.method for step in shared].count("add_norm_conv") == 1
    made = shared[-1].operands[8]
    assert made in network._handed_on[network._segments.index(labelled)]


@pytest.mark.parametrize("changes", [{}, SKIP_BLOCKS], ids=["plain", "skip blocks"])
def test_all_that_is_read_of_the_memory_was_written(changes: dict[str, Any]) -> None:
    """It is poisoned between two evaluations."""
    model = small_unet(**{**changes, "layers_per_block": 2}).eval()
    frozen = FrozenUNet(model)
    x_t, label = inputs(model)
    first = frozen(x_t, 3, label)
    frozen.native_network(8, 8)._memory.fill_(float("nan"))
    assert torch.equal(frozen(x_t, 3, label), first)


def test_weights_are_those_at_freezing() -> None:
    model = small_unet().eval()
    frozen = FrozenUNet(model)
    x_t, label = inputs(model)
    before = frozen(x_t, 3, label)
    with torch.no_grad():
        model.mid_block.resnets[0].conv1.weight.mul_(2)
    assert torch.equal(frozen(x_t, 3, label), before)
    assert not torch.equal(FrozenUNet(model)(x_t, 3, label), before)


def test_memory_is_used_again() -> None:
    """A network of n blocks needs no n maps."""
    network = FrozenUNet(small_unet(layers_per_block=6)).native_network(8, 8)
    private = [sum(buffer.floats for buffer in of_segment) for of_segment in network._private]
    of_all = sum(buffer.floats for buffer in network._plan.start) + sum(private)
    assert network._plan.floats + max(private) < of_all / 4


def test_memory_is_for_the_images_that_there_are_not_for_every_thread() -> None:
    network = FrozenUNet(small_unet(block_out_channels=(16, 64), image_size=(32, 32))).native_network(32, 32)
    network._lay_out(2, threads=64)
    many = network._memory.numel()
    network._lay_out(2, threads=1000)
    assert network._memory.numel() == many
    # At most one image less than a thread wants more than the batch, in any segment.
    together = max(network._network.images_together(i) for i in range(len(network._private)))
    most = max(sum(buffer.floats + 16 for buffer in of_segment) for of_segment in network._private)
    assert many <= 2 * (network._plan.floats + 16) + (together + 1) * most + 64


def test_images_go_through_in_groups_of_any_number(threads: None) -> None:
    """Several groups a thread, threads that come and go, both copies of a guided batch; memory is poisoned before each."""
    model = small_unet(block_out_channels=(64, 64), image_size=(16, 16)).eval()
    frozen = FrozenUNet(model)
    x_t, slots = inputs(model, batch=40)
    columns = torch.randn(4, sum(site.width for site in frozen.walk.sites))
    torch.set_num_threads(1)
    alone = torch.cat([frozen.native_network(16, 16).evaluate(x_t[i : i + 1], columns, slots[i : i + 1]) for i in range(40)])
    network = FrozenUNet(model).native_network(16, 16)
    network.images_at_a_time = 40
    for count, batch in ((3, 40), (1, 40), (4, 37), (2, 40), (5, 40), (2, 3)):
        torch.set_num_threads(count)
        network._memory.fill_(float("nan"))
        assert torch.equal(network.evaluate(x_t[:batch], columns, slots[:batch]), alone[:batch])
    torch.set_num_threads(2)
    both = network.evaluate(torch.cat([x_t[:20], x_t[:20]]), columns, torch.cat([slots[:20], slots[:20]]), copies=2)
    assert torch.equal(both, torch.cat([alone[:20], alone[:20]]))
