"""UNet2DConditionModel of diffusers told one label token as a ConditionalUNet: outputs, plain and frozen, and gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcond.engine.frozen_unet import FrozenUNet
from fastcond.interop import load_diffusers
from fastcond.nn import ConditionalUNet
from tests.support.label_networks import Told, small_told
from tests.tolerances import (
    WINOGRAD_GRADIENT_AMPLIFICATION,
    assert_gradient_parity,
    assert_network_close,
    assert_parity,
)

pytest.importorskip("diffusers", reason="diffusers is not installed")

LABELS = torch.tensor([0, 3, 4])
SOFT = torch.tensor([[0.5, 0.5, 0, 0, 0], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0]])
# What softmax over one key makes: no part in the result there, buffers here.
DEAD = ("attn2.to_q.", "attn2.to_k.", "transformer_blocks.0.norm2.")
SHAPES: dict[str, dict[str, Any]] = {
    "square": {},
    "non-square": {"sample_size": (8, 12)},
    "gray": {"in_channels": 1, "out_channels": 1},
    "four channels": {"in_channels": 4, "out_channels": 4},
    "non-square, gray": {"sample_size": (12, 8), "in_channels": 1, "out_channels": 1},
    "non-square, four channels, three levels": {
        "sample_size": (8, 16),
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 24, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
}


def call(model: ConditionalUNet) -> tuple[Tensor, Tensor]:
    """x_t and timesteps for three images."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, model.config.in_channels, *model.config.image_size, generator=generator)
    return x, torch.tensor([0, 412, 999])


@pytest.mark.parametrize("name", SHAPES)
def test_any_shape_and_number_of_channels(tmp_path: Path, name: str) -> None:
    """One-hot, by class, and soft; as it is trained and as it is sampled from."""
    told = small_told(**SHAPES[name])
    model = load_diffusers(told.save(tmp_path))
    size = SHAPES[name].get("sample_size", 8)
    assert model.config.image_size == ((size, size) if isinstance(size, int) else size)
    x, timestep = call(model)
    with torch.no_grad():
        one_hot = told(x, timestep, nn.functional.one_hot(LABELS, 5).float())
        soft = told(x, timestep, SOFT)
        assert float((one_hot - soft).abs().max()) > 0.01 * float(one_hot.abs().max()), "the label acts"
        assert_network_close(model(x, timestep, LABELS), one_hot)
        assert_network_close(model(x, timestep, SOFT), soft)
        for row, (t, label) in enumerate(zip(timestep, LABELS, strict=True)):
            frozen = FrozenUNet(model).denoiser(t[None], label[None])(x[row : row + 1], torch.tensor([0]))
            assert_network_close(frozen, one_hot[row : row + 1])


def gradients(model: nn.Module, x: Tensor, timestep: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of a weighted sum of it by x_t and by every parameter."""
    x = x.requires_grad_()
    output = model(x, timestep, label)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output.dtype)
    leaves = {"x_t": x, **dict(model.named_parameters())}
    found = torch.autograd.grad(output, list(leaves.values()), upstream)
    return output.detach(), dict(zip(leaves, found, strict=True))


def named_as_ours(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Theirs by our names, without the dead ones, which are 0 but for rounding."""
    renamed = {}
    largest = max(float(value.abs().max()) for value in found.values())
    for name, value in found.items():
        if any(part in name for part in DEAD):
            assert float(value.abs().max()) <= 1e-6 * largest, name
            continue
        name = (
            name.removeprefix("unet.")
            .replace("mlp.0.", "label_embedding.linear_1.")
            .replace("mlp.2.", "label_embedding.linear_2.")
        )
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("labels", ["classes", "soft rows"])
@pytest.mark.parametrize("name", ["square", "non-square, four channels, three levels"])
def test_output_and_gradients_of_all_parameters(tmp_path: Path, name: str, labels: str) -> None:
    """Of the label MLP too, through the fold: what trains the blog's system trains the same here."""
    told = small_told(**SHAPES[name])
    model = load_diffusers(told.save(tmp_path)).requires_grad_(True).train()
    x, timestep = call(model)
    rows = SOFT if labels == "soft rows" else nn.functional.one_hot(LABELS, 5).float()
    exact_told: Told = copy.deepcopy(told).double()
    output, ours = gradients(model, x, timestep, LABELS if labels == "classes" else SOFT)
    their_output, theirs = gradients(told, x.detach(), timestep, rows)
    exact_output, exact = gradients(exact_told, x.detach().double(), timestep, rows.double())
    assert_parity("output", output, their_output, exact_output)
    assert "label_embedding.linear_1.weight" in ours and "encoder_hid_proj.weight" in ours
    assert_gradient_parity(
        ours, named_as_ours(theirs), named_as_ours(exact), torch.float32, amplification=WINOGRAD_GRADIENT_AMPLIFICATION
    )
