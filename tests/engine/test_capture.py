"""One step of sampling can be captured in a CUDA graph, for all that a CPU can tell; and the linter finds what could not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcond.config import CONDITIONINGS
from fastcond.diffusion import SAMPLERS, NoiseSchedule, StepTable, ddim, ddpm
from fastcond.engine.frozen_unet import FrozenUNet
from fastcond.engine.sampling_step import SamplingStep
from fastcond.engine.torch_operations import TorchOperations
from tests.support.capture_linter import CaptureViolation, lint_capture
from tests.support.kernels import kernel  # noqa: F401  (runs every test behind each CPU kernel)
from tests.support.networks import SKIP_BLOCKS, small_unet

SCHEDULE = NoiseSchedule.linear(1000)
TABLES = {
    **{name: sampler(SCHEDULE, 10) for name, sampler in SAMPLERS.items()},
    "ddim eta 1": ddim(SCHEDULE, 10, eta=1.0),
}


def sampling_step(table: StepTable, options: dict[str, float] | None = None, **changes: Any) -> SamplingStep:
    images = 3
    seeds = torch.stack((torch.full((images,), 5), torch.arange(images)), dim=1)
    label, guidance = torch.tensor([0, 1, 3]), torch.tensor([1.0, 2.0, 4.0])
    model = small_unet(**changes).eval()
    both = torch.cat([label, torch.full_like(label, model.config.null_label)])
    denoiser = FrozenUNet(model, use_native=False).denoiser(table.timesteps, both)
    return SamplingStep(denoiser, table, (3, 8, 8), seeds=seeds, guidance=guidance, **(options or {}))  # type: ignore[arg-type]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("sampler", TABLES)
def test_a_step_of_every_sampler_can_be_captured(sampler: str, guided: bool) -> None:
    """With history: dpmpp2m, heun. With noise: ddpm, ddim eta 1."""
    step = sampling_step(TABLES[sampler])
    lint_capture(lambda: step(guided), step.static_tensors)
    assert step.row.tolist() == [2], "the row advances by itself"


@pytest.mark.parametrize("options", [{"guidance_rescale": 0.7}, {"dynamic_threshold": 0.9}])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp2m"])
def test_composed_steps_can_be_captured(sampler: str, options: dict[str, float]) -> None:
    step = sampling_step(TABLES[sampler], options)
    lint_capture(lambda: step(True), step.static_tensors)


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_step_of_every_network_can_be_captured(conditioning: str, mlp: bool) -> None:
    for resample in ("conv", "resnet"):
        step = sampling_step(TABLES["ddpm"], conditioning=conditioning, class_embedding_mlp=mlp, resample=resample)
        lint_capture(lambda step=step: step(True), step.static_tensors)


def test_a_step_of_skip_blocks_can_be_captured() -> None:
    step = sampling_step(TABLES["ddpm"], **SKIP_BLOCKS)
    lint_capture(lambda: step(True), step.static_tensors)


def test_a_whole_run_can_be_captured() -> None:
    step = sampling_step(TABLES["heun"])

    def run() -> None:
        step.start()
        for row in range(TABLES["heun"].num_rows):
            step(row % 3 > 0)

    lint_capture(run, step.static_tensors)


class Planted:
    """A step over one buffer; `plant` is done to it on the way."""

    def __init__(self, plant: Callable[[Planted], Any]) -> None:
        self.x, self.row, self.table = torch.ones(2, 3), torch.zeros(1, dtype=torch.int64), torch.arange(12.0).reshape(4, 3)
        self.plant, self.kept, self.host_row = plant, [], 0
        self.elsewhere = torch.ones(3)

    def __call__(self) -> Any:
        self.x.mul_(self.table.index_select(0, self.row))
        result = self.plant(self)
        self.row.add_(1)
        return result

    def static(self) -> dict[str, Tensor]:
        return {"x": self.x, "row": self.row, "table": self.table}


def lint(plant: Callable[[Planted], Any]) -> None:
    planted = Planted(plant)
    lint_capture(planted, planted.static)


def test_a_clean_step_passes() -> None:
    lint(lambda step: None)
    lint(lambda step: step.x.copy_((step.x + 1).sum(dim=0, keepdim=True)))
    lint(lambda step: step.x.copy_(torch.full((3,), 2.0, device=step.x.device).to(torch.float64)))
    lint(lambda step: step.x[0])


def host_branch(step: Planted) -> None:
    if step.x.sum() > 0:
        step.x.add_(1)


def python_row(step: Planted) -> None:
    step.x.mul_(step.table[step.host_row])
    step.host_row += 1


def first_run_only(step: Planted) -> None:
    if not step.kept:
        step.x.add_(1)
        step.kept.append(0)


def rebound(step: Planted) -> None:
    step.x = step.x * 2


def moved(step: Planted) -> None:
    step.x.set_(torch.zeros(2, 3, device=step.x.device))


def escapes_as_a_view(step: Planted) -> None:
    step.kept.append((step.x * 2)[0])


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda step: step.x.sum().item(), r"reads a value on the host: Tensor.item at test_capture.py:\d+: .*item\(\)"),
        (lambda step: float(step.x.sum()), "reads a value on the host: Tensor.__float__"),
        (lambda step: step.table[int(step.row)], "reads a value on the host: Tensor.__int__"),
        (lambda step: [0, 1, 2][step.row], "reads a value on the host: Tensor.__index__"),
        (lambda step: step.x.tolist(), "reads a value on the host: Tensor.tolist"),
        (lambda step: step.x.numpy(), "reads a value on the host: Tensor.numpy"),
        (lambda step: step.x.cpu(), "reads a value on the host: Tensor.cpu"),
        (lambda step: torch.quantile(step.x, 0.5) and None, "reads a value on the host: aten._local_scalar_dense"),
        (host_branch, r"a host branch on data: Tensor.__bool__ at test_capture.py:\d+: if step.x.sum\(\) > 0:"),
        (lambda step: step.x[step.x > 1].sum() and None, "depends on data, which needs the host: aten.index.Tensor"),
        (lambda step: step.x.nonzero().sum() and None, "depends on data, which needs the host: aten.nonzero"),
        (lambda step: torch.equal(step.x, step.x), "depends on data, which needs the host: aten.equal"),
        (lambda step: step.x.add_(torch.tensor([1.0, 2.0, 3.0])), "brings data from the host: torch.tensor at test_capture.py"),
        (lambda step: step.x.add_(torch.as_tensor([1.0, 2.0, 3.0])), "brings data from the host: torch.as_tensor"),
        (lambda step: step.x.add_(step.x.new_tensor([1.0, 2.0, 3.0])), "brings data from the host: Tensor.new_tensor"),
        (lambda step: step.x.add_(torch.ones(3)), "makes a tensor on the host, for want of device=: torch.ones"),
        (lambda step: step.x.to("cpu"), "copies between devices: torch.Tensor.to"),
        (lambda step: step.x.copy_(step.elsewhere), "neither static nor made in the step: aten.copy_"),
        (lambda step: step.elsewhere.copy_(step.x[0]), "neither static nor made in the step: aten.copy_"),
        (
            lambda step: step.kept.append(step.x * 2),
            r"an allocation escapes the step, stored somewhere: aten.mul.Tensor at test_capt",
        ),
        (escapes_as_a_view, r"escapes the step, stored somewhere: aten.mul.Tensor at test_capture.py:\d+: step.kept"),
        (lambda step: step.x * 2, "returns a tensor that the step allocated: aten.mul.Tensor at test_capture.py"),
        (lambda step: {"x": (step.x, step.x + 1)}, "returns a tensor that the step allocated: aten.add.Tensor"),
        (rebound, "an allocation escapes the step"),
        (moved, "an allocation escapes the step"),
        (lambda step: step.x.resize_(7, 9), "moved static tensor x"),
        (python_row, "differs between two runs: aten.select"),
        (first_run_only, "differs between two runs|the first run is"),
    ],
)
def test_what_no_capture_allows_is_found(plant: Callable[[Planted], Any], message: str) -> None:
    with pytest.raises(CaptureViolation, match=message):
        lint(plant)


def planted_in_a_network(monkeypatch: pytest.MonkeyPatch, plant: Callable[[Tensor], Any]) -> None:
    """Lint the real step with `plant` done to a map that a skip joins, deep inside."""
    step = sampling_step(TABLES["ddpm"])
    with monkeypatch.context() as patch:
        patch.setattr(TorchOperations, "join", lambda self, x, skip: plant(torch.cat([x, skip], dim=1)))
        lint_capture(lambda: step(True), step.static_tensors)


def test_what_is_planted_in_the_real_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []
    planted_in_a_network(monkeypatch, lambda x: x * 1)
    with pytest.raises(CaptureViolation, match=r"Tensor.item at test_capture.py"):
        planted_in_a_network(monkeypatch, lambda x: x * x.max().item())
    with pytest.raises(CaptureViolation, match=r"a host branch on data: Tensor.__bool__ at test_capture.py"):
        planted_in_a_network(monkeypatch, lambda x: x if x.max() > 0 else -x)
    with pytest.raises(CaptureViolation, match=r"an allocation escapes the step, stored somewhere: aten"):
        planted_in_a_network(monkeypatch, lambda x: kept.append(x) or x)


def test_the_row_as_the_host_knows_it_would_be_found() -> None:
    """What generate's loop did before: the timestep indexed by Python's row."""
    step, rows = sampling_step(TABLES["ddpm"]), iter(range(10))

    def old_step() -> None:
        step._table.timesteps[next(rows)].expand(3).sum()
        step(False)

    with pytest.raises(CaptureViolation, match=r"differs between two runs: aten\.select"):
        lint_capture(old_step, step.static_tensors)


def test_a_violation_leaves_no_mode_behind() -> None:
    with pytest.raises(CaptureViolation):
        lint(lambda step: step.x.sum().item())
    assert torch.ones(3).sum().item() == 3 and ddpm(SCHEDULE, 3).num_rows == 3
