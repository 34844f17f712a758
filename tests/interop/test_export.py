"""The exported step: what it computes, what it is made of, and that nothing is left of one that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcond.diffusion import SAMPLERS, NoiseSchedule, from_diffusers_config
from fastcond.interop import exporting
from fastcond.interop.exporting import _Example, export_step
from fastcond.interop.step_program import StepProgram, _ada_group_norm
from fastcond.nn import ConditionalUNet
from fastcond.ops.ada_group_norm import reference
from tests.support.networks import SKIP_BLOCKS, small_unet
from tests.tolerances import assert_within_floor

LINEAR = NoiseSchedule.linear(1000)
NETWORKS: dict[str, dict[str, Any]] = {
    "adagn": {},
    "scale_shift": {"conditioning": "scale_shift", "resample": "resnet"},
    "bias": {"conditioning": "bias", "class_embedding_mlp": True},
    "label_attention": {"conditioning": "label_attention", "label_attention_heads": 2, "label_context_dim": 24},
    "no null label": {"has_null_label": False},
    "fourier": {"conditioning": "bias", "time_embedding": "fourier", "has_null_label": False},
    "learned timesteps": {"conditioning": "bias", "time_embedding": "learned", "num_timesteps": 1000},
    "no classes": {"class_embedding": "none", "has_null_label": False, "conditioning": "scale_shift"},
    "labels as timesteps": {"class_embedding": "timestep", "has_null_label": False, "conditioning": "bias"},
    "centred input": {"center_input": True, "conditioning": "bias"},
    "skip blocks": SKIP_BLOCKS,
}


def network(name: str = "adagn") -> ConditionalUNet:
    return small_unet(**NETWORKS[name]).eval()


def as_program(step: StepProgram) -> exporting.Program:
    def call(inputs: Any) -> Any:
        with torch.no_grad():
            return step(**inputs)

    return call


@pytest.mark.parametrize(
    ("name", "sampler"), [*((name, "ddpm") for name in NETWORKS), *(("adagn", s) for s in ("ddim", "dpmpp2m", "heun"))]
)
def test_the_step_is_the_engines(name: str, sampler: str) -> None:
    """Every row, by the measure by which a file is let through."""
    model = network(name)
    table = SAMPLERS[sampler](LINEAR, 4)
    step = StepProgram(model, table, guided=model.config.has_null_label)
    assert ("guidance" in step.inputs) == model.config.has_null_label
    assert ("noise" in step.inputs) == (sampler == "ddpm") and ("history" in step.inputs) == (sampler == "dpmpp2m")
    example = _Example(model, table, step.inputs, 3)
    for row in range(table.num_rows):
        assert example.difference(as_program(step), row) <= 1.0


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("sampler", ["learned", "fixed_small", "ddim"])
def test_a_network_that_predicts_its_variance(sampler: str, guided: bool, tmp_path: Path) -> None:
    """Whose second half ddpm takes for the noise's size, and others leave alone."""
    model = small_unet(out_channels=6).eval()
    tables = {
        "learned": SAMPLERS["ddpm"](LINEAR, 4, variance="learned_range"),
        "fixed_small": SAMPLERS["ddpm"](LINEAR, 4),
        "ddim": SAMPLERS["ddim"](LINEAR, 4),
    }
    table = tables[sampler]
    step = StepProgram(model, table, guided=guided)
    assert ("noise" in step.inputs) == (sampler != "ddim")
    example = _Example(model, table, step.inputs, 3)
    for row in range(table.num_rows):
        assert example.difference(as_program(step), row) <= 1.0
        if sampler == "learned":
            inputs = example.inputs(row)
            other = as_program(step)({**inputs, "noise": inputs["noise"] * 1.001})
            assert (example.difference(lambda _, other=other: other, row) > 1.0) == (row < 3), "the last row has no noise"
    if guided and sampler == "learned":
        written = export_step(model, table, tmp_path / "step.pt2", class_names="abc", sampler="ddpm")
        assert written.checked and written.inputs == ("x", "row", "label", "guidance", "noise")


def test_the_measure_sees_a_wrong_program() -> None:
    model, table = network(), SAMPLERS["ddim"](LINEAR, 4)
    example = _Example(model, table, ("x", "row", "label", "guidance"), 3)
    right = StepProgram(model, table, guided=True)
    other = network()
    with torch.no_grad():
        other.conv_out.bias += 1e-3
    nan = StepProgram(model, table, guided=True)
    nan.coefficients.fill_(torch.nan)
    for wrong in (
        as_program(StepProgram(other, table, guided=True)),
        as_program(nan),
        lambda inputs: [value[:1] for value in as_program(right)(inputs)],
        lambda inputs: as_program(right)({**inputs, "guidance": inputs["guidance"] + 0.01}),
        lambda inputs: as_program(right)({**inputs, "label": inputs["label"].flip(0)}),
    ):
        assert example.difference(wrong, 3) > 1.0


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_the_norm_that_a_program_has_is_the_definition(modulated: bool, affine: bool, silu: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 5, 3, generator=draw)
    scale, shift = torch.randn(2, 2, 12, generator=draw) if modulated else (None, None)
    weight, bias = torch.randn(2, 12, generator=draw) if affine else (None, None)
    arguments = (scale, shift, weight, bias)
    theirs = _ada_group_norm(x, *arguments, 3, 1e-5, silu)
    wide = (None if value is None else value.double() for value in arguments)
    definition = reference.forward(x.double(), *wide, 3, 1e-5, silu)
    assert_within_floor("y", theirs[0], definition[0], magnitude=20.0)
    assert_within_floor("mean", theirs[1][0], definition[1][0])
    assert_within_floor("rstd", theirs[2], definition[2])


class _Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_a_wrong_program_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, table = network(), SAMPLERS["ddim"](LINEAR, 4)
    monkeypatch.setattr(exporting, "_traced", lambda *_: torch.export.export(_Nothing(), (torch.ones(1),)))
    monkeypatch.setattr(exporting, "_exported_program", lambda path: lambda inputs: (inputs["x"], inputs["x"]))
    with pytest.raises(ValueError, match=r"are not the network's.*was not written"):
        export_step(model, table, tmp_path / "step.pt2", class_names="abc", sampler="ddim")
    assert not list(tmp_path.iterdir())

    def broken(path: Path) -> exporting.Program:
        raise RuntimeError("cannot be loaded")

    monkeypatch.setattr(exporting, "_exported_program", broken)
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        export_step(model, table, tmp_path / "step.pt2", class_names="abc", sampler="ddim")
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path: Path) -> None:
    path, table = tmp_path / "step.pt2", SAMPLERS["ddim"](LINEAR, 4)

    def export(model: ConditionalUNet, table: Any = table, path: Path = path, **settings: Any) -> None:
        export_step(model, table, path, **{"class_names": "abc", "sampler": "ddim", **settings})

    ranged, learned = (
        from_diffusers_config({"_class_name": "DDPMScheduler", "variance_type": kind}) for kind in ("learned_range", "learned")
    )
    for call, message in [
        (lambda: export(network(), path=tmp_path / "step.txt"), "ends in neither .pt2 nor .onnx"),
        (lambda: export(network(), class_names="ab"), "2 class names for 3 classes"),
        (lambda: export(network(), batch_size=0), "batch size is 0"),
        (lambda: export(network("no null label"), guided=True), "without a null label"),
        (lambda: export(small_unet(out_channels=5)), "maps 3 to 5 channels"),
        (lambda: export(network(), ranged.sampler(ranged.schedule, 4, prediction="eps")), "3 channels, none for the sampler's"),
        (
            lambda: export(small_unet(out_channels=6), learned.sampler(learned.schedule, 4, prediction="eps")),
            "more than a row of coefficients",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        export(network(), path=tmp_path / "none" / "step.pt2")
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="already exists"):
        export(network())
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]
