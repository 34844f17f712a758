"""A run's step as a file that runs without this package, torch.export's .pt2 or ONNX: checked before it stands in its place."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcond.diffusion import StepTable
from fastcond.diffusion.step_table import COLUMNS
from fastcond.engine.composed_step import composed_step
from fastcond.engine.frozen_unet import FrozenUNet
from fastcond.interop.step_program import StepProgram
from fastcond.nn import ConditionalUNet
from fastcond.ops import philox_normal
from fastcond.ops.philox import INITIAL_NOISE, STEP_NOISE

SUFFIXES = (".pt2", ".onnx")
METADATA_NAME = "fastcond.json"  # in a .pt2; in ONNX the property of that name
FORMAT_VERSION = 1
OUTPUTS = ("x_next", "x_0")
_LARGEST_BATCH = 2**16
_GUIDANCE = 2.5
# Two float32 networks that sum the same terms in another order, relative to the largest output.
_NETWORK_RELATIVE = 1e-5
# And a sum of six float32 products.
_STEP_RELATIVE = 1e-6

Program = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Exported:
    """What was written. checked: whether it was run; error: the largest difference from ours, in units of what is allowed."""

    path: Path
    inputs: tuple[str, ...]
    checked: bool
    error: float


def export_step(
    model: ConditionalUNet,
    table: StepTable,
    path: str | Path,
    *,
    class_names: Sequence[str],
    sampler: str,
    batch_size: int | None = None,
    guided: bool | None = None,
) -> Exported:
    """Write network and sampler as one program, (x, row, label, ...) -> (x of the next row, x_0 prediction).

    Args:
        model: the denoiser, which is left as it was. table: of the run, N rows.
        path: of a file that does not exist, NAME.pt2 (torch.export) or NAME.onnx (needs onnx and onnxscript).
        class_names: K of them. sampler: its name. Both go into the metadata alone.
        batch_size: images a call; None: any number from 1.
        guided: with both halves of guidance; None: where the network has a null label.
    The program's inputs, by name, of which `inputs` in the metadata lists those that this sampler has:
        x float32 [B, C, H, W], at first normal noise times initial_scale; row int64 [1]; label int64 [B], 0 .. K-1, or K for the
        null label; guidance float32 [B], w in u + w (c - u); noise float32 like x, fresh in each row; history float32 like x, the
        x_0 of the row before, at first zeros. Outputs: x_next, x_0.
    The metadata is JSON, in a .pt2 the extra file fastcond.json, in ONNX the property of that name: class names, image shape,
    rows, timesteps, coefficients (null for infinity), inputs and outputs. Timesteps and coefficients are constants of the program
    too.
    Raises: ValueError for a network or sampler that makes no such program, or a program whose results are not ours;
        FileExistsError. No file is left behind then.
    """
    path = Path(path)
    check_path(path)
    if len(class_names) != model.config.num_classes:
        raise ValueError(f"there are {len(class_names)} class names for {model.config.num_classes} classes")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch size is {batch_size}; it must be at least 1")
    guided = model.config.has_null_label if guided is None else guided
    step = StepProgram(model, table, guided=guided).eval()
    metadata = json.dumps(_metadata(model, table, step.inputs, class_names, sampler, batch_size))
    # Not 1 and not the number of anything else, which tracing would take to be the same number.
    example = _Example(model, table, step.inputs, batch_size or 5)
    program = _traced(step, example.inputs(0), batch_size)
    partial = path.with_name(f".partial-{path.name}")
    try:
        if path.suffix == ".onnx":
            _save_onnx(program, step.inputs, metadata, partial)
            loaded = _onnx_program(partial)
        else:
            torch.export.save(program, partial, extra_files={METADATA_NAME: metadata})
            loaded = _exported_program(partial)
        error = math.nan
        if loaded is not None:
            check = example if batch_size else _Example(model, table, step.inputs, 3)
            error = max(check.difference(loaded, row) for row in sorted({0, table.num_rows - 1}))
            if not error <= 1.0:
                raise ValueError(
                    f"the exported program's results are not the network's: {error:.3g} times the difference that rounding "
                    f"makes; {path} was not written"
                )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path, step.inputs, loaded is not None, error)


def check_path(path: Path) -> None:
    """Raises: ValueError for another ending, a missing folder, or ONNX without its packages; FileExistsError."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in neither {' nor '.join(SUFFIXES)}; the ending says what is written")
    if path.exists():
        raise FileExistsError(f"{path} already exists; choose another place")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder")
    if path.suffix == ".onnx":
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ValueError(f"writing ONNX needs onnx and onnxscript ({error}); pip install 'fastcond[export]'") from error


def _metadata(
    model: ConditionalUNet,
    table: StepTable,
    inputs: Sequence[str],
    class_names: Sequence[str],
    sampler: str,
    batch_size: int | None,
) -> dict[str, Any]:
    config = model.config
    rows = [[value if math.isfinite(value) else None for value in row] for row in table.coefficients.tolist()]
    return {
        "format_version": FORMAT_VERSION,
        "inputs": list(inputs),
        "outputs": list(OUTPUTS),
        "batch_size": batch_size,
        "image_shape": [config.in_channels, *config.image_size],
        "class_names": list(class_names),
        "null_label": config.null_label if config.has_null_label else None,
        "prediction": model.diffusion.prediction,
        "sampler": sampler,
        "rows": table.num_rows,
        "initial_scale": table.initial_scale,
        "timesteps": table.timesteps.tolist(),
        "columns": list(COLUMNS),
        "coefficients": rows,
    }


class _Example:
    """Inputs of a batch, and what our own kernels make of them."""

    def __init__(self, model: ConditionalUNet, table: StepTable, inputs: Sequence[str], batch: int) -> None:
        self._model, self._table, self._inputs = model, table, inputs
        self._shape = (model.config.in_channels, *model.config.image_size)
        self._seeds = torch.stack([torch.zeros(batch, dtype=torch.int64), torch.arange(batch)], dim=1)
        self._labels = torch.arange(batch) % model.config.num_classes

    def inputs(self, row: int) -> dict[str, Tensor]:
        """By name, in order."""
        at = torch.tensor([row])
        values = {
            "x": philox_normal(self._seeds, self._shape, stream=INITIAL_NOISE),
            "row": at,
            "label": self._labels,
            "guidance": torch.full((len(self._labels),), _GUIDANCE),
            "noise": philox_normal(self._seeds, self._shape, step=at, stream=STEP_NOISE),
            "history": philox_normal(self._seeds, self._shape, step=1).clamp(-1, 1),
        }
        return {name: values[name] for name in self._inputs}

    @torch.no_grad()
    def difference(self, program: Program, row: int) -> float:
        """The largest difference between the program's results and ours, in units of what rounding makes; NaN counts as that."""
        given = self.inputs(row)
        x, at, table = given["x"], given["row"], self._table
        label, cond, uncond = given["label"], x, None
        if "guidance" in given:
            label, cond = torch.cat([label, torch.full_like(label, self._model.config.null_label)]), torch.cat([x, x])
        out = FrozenUNet(self._model).denoiser(table.timesteps, label)(cond, at)
        scale = float(out.abs().max())
        of_v, largest_noise = scale, 0.0
        if "guidance" in given:
            out, uncond = out.chunk(2)
            scale *= _GUIDANCE + abs(_GUIDANCE - 1)
        ours = torch.empty_like(x), torch.empty_like(x)
        channels, w = x.shape[1], given.get("guidance", torch.ones(len(x)))
        if table.learned_noise is None:
            out, uncond = out[:, :channels], None if uncond is None else uncond[:, :channels]
        composed_step(
            x,
            out,
            uncond,
            table,
            at,
            seeds=self._seeds,
            guidance=w,
            history=given.get("history"),
            out=ours[0],
            out_x_0=ours[1],
        )
        _, p_o, _, k_x, k_0, k_o, k_h, k_n = table.coefficients[row].abs().tolist()
        of_x_0 = _NETWORK_RELATIVE * p_o * scale
        of_x = _NETWORK_RELATIVE * (k_0 * p_o + k_o) * scale
        terms = (k_x + k_h + k_n) * float(x.abs().max()) + k_0 * float(ours[1].abs().max()) + k_o * scale
        if table.learned_noise is not None:
            largest_noise = float((table.learned_noise.std(out[:, channels:], at) * given["noise"]).abs().max())
            # exp(l_0 + l_1 v) is off by l_1 times what v is.
            of_x += _NETWORK_RELATIVE * float(table.learned_noise.coefficients[row, 2]) * of_v * largest_noise
        terms += largest_noise
        allowed = (of_x + _STEP_RELATIVE * terms, of_x_0 + _STEP_RELATIVE * float(ours[1].abs().max()))
        worst = 0.0
        for theirs, own, most in zip(program(given), ours, allowed, strict=True):
            if theirs.shape != own.shape or not bool(torch.isfinite(theirs).all()):
                return math.inf
            worst = max(worst, float((theirs - own).abs().max()) / max(most, torch.finfo(torch.float32).tiny))
        return worst


def _traced(step: StepProgram, inputs: Mapping[str, Tensor], batch_size: int | None) -> torch.export.ExportedProgram:
    """The step in ATen operations alone."""
    shapes: dict[str, Any] | None = None
    if batch_size is None:
        batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
        shapes = {name: None if name == "row" else {0: batch} for name in inputs}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # PyTorch's, of what it does within itself
        program = torch.export.export(step, (), dict(inputs), dynamic_shapes=shapes)
    foreign = sorted(
        {str(node.target) for node in program.graph.nodes if node.op == "call_function" and "fastcond" in str(node.target)}
    )
    assert not foreign, f"ops that another program does not have: {foreign}"
    return program


def _exported_program(path: Path) -> Program:
    module = torch.export.load(path).module()
    return lambda inputs: module(**inputs)


def _save_onnx(program: torch.export.ExportedProgram, inputs: Sequence[str], metadata: str, path: Path) -> None:
    logging.disable(logging.WARNING)  # torch's exporter says which packages it could have used too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = torch.onnx.export(program, (), dynamo=True, verbose=False, input_names=inputs, output_names=OUTPUTS)
    finally:
        logging.disable(logging.NOTSET)
    assert converted is not None, "what dynamo=True returns"
    converted.model.metadata_props[METADATA_NAME] = metadata
    converted.save(path, external_data=False)


def _onnx_program(path: Path) -> Program | None:
    """None where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: [torch.from_numpy(y) for y in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


__all__ = ["Exported", "check_path", "export_step"]
