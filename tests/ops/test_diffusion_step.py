"""diffusion_step: its formula in float64, diffusers' schedulers over whole runs, buffers that alias, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcond.diffusion import NoiseSchedule, StepTable, ddim, ddpm
from fastcond.ops import diffusion_step, philox_normal, short_way
from fastcond.ops.diffusion_step.op import diffusion_step_functional
from fastcond.ops.diffusion_step.op import diffusion_step_into as diffusion_step_into_op
from fastcond.ops.philox import STEP_NOISE
from tests.support.kernels import kernel  # noqa: F401  (runs every test behind each CPU kernel)
from tests.support.samplers import DIFFUSERS_PREDICTION, run_scheduler, run_table, seeds_of, wavy_network
from tests.tolerances import ONE_STEP, TRAJECTORY

ROWS = 4
SHAPE = (3, 2, 5, 4)
TRAJECTORY_SHAPE = (2, 2, 4, 4)
CHANNELS_LAST = {False: torch.contiguous_format, True: torch.channels_last}


def full_table(clip: float = 1.5, seed: int = 0) -> StepTable:
    """Random coefficients in every column: nothing is multiplied by zero, so nothing can be left out."""
    columns = torch.rand(8, ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.3
    names = ("p_x", "p_o", "k_x", "k_0", "k_o", "k_h", "k_n")
    signed = {name: column * (-1) ** index for index, (name, column) in enumerate(zip(names, columns, strict=False))}
    return StepTable.from_columns(torch.arange(ROWS).flip(0), {**signed, "c": torch.full((ROWS,), clip).double()})


def inputs(
    shape: tuple[int, ...] = SHAPE, *, channels_last: bool = False, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    names = ("x", "out_cond", "out_uncond", "history")
    drawn = {name: torch.randn(shape, generator=generator) for name in names}
    drawn = {name: value.contiguous(memory_format=CHANNELS_LAST[channels_last]) for name, value in drawn.items()}
    return {name: value.to(dtype) if name.startswith("out") else value for name, value in drawn.items()}


def step(table: StepTable, row: int, given_inputs: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    arguments = {**given_inputs, **options}
    x, cond, uncond = arguments.pop("x"), arguments.pop("out_cond"), arguments.pop("out_uncond")
    seeds = arguments.pop("seeds", seeds_of(x.shape[0]))
    return diffusion_step(x, cond, uncond, table, torch.tensor([row]), seeds=seeds, **arguments)


def formula(
    table: StepTable, row: int, given_inputs: dict[str, Tensor], guidance: float | Tensor, z: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """The definition in float64 numpy, one scalar coefficient at a time."""
    x, cond, h = (given_inputs[name].double().numpy() for name in ("x", "out_cond", "history"))
    w = np.asarray(guidance, dtype=np.float64).reshape(-1, 1, 1, 1)
    g = cond
    if given_inputs["out_uncond"] is not None:
        u = given_inputs["out_uncond"].double().numpy()
        g = (1 - w) * u + w * cond
    coefficient = {name: float(table.column(name)[row]) for name in ("p_x", "p_o", "c", "k_x", "k_0", "k_o", "k_h", "k_n")}
    x_0 = np.clip(coefficient["p_x"] * x + coefficient["p_o"] * g, -coefficient["c"], coefficient["c"])
    terms = (("k_x", x), ("k_0", x_0), ("k_o", g), ("k_h", h), ("k_n", z.double().numpy()))
    return sum(coefficient[name] * value for name, value in terms), x_0


def assert_follows_formula(table: StepTable, row: int, given_inputs: dict[str, Any], guidance: float | Tensor = 1.0) -> None:
    x = given_inputs["x"]
    z = philox_normal(seeds_of(x.shape[0]), x.shape[1:], step=row, stream=STEP_NOISE)
    expected = formula(table, row, given_inputs, guidance, z)
    for actual, truth in zip(step(table, row, given_inputs, guidance=guidance), expected, strict=True):
        assert actual.dtype == torch.float32 and actual.stride() == x.stride()
        np.testing.assert_allclose(actual.double().numpy(), truth, **ONE_STEP)


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    guidance=st.sampled_from([0.0, 1.0, 2.5, -1.0, None]),
    clip=st.sampled_from([1.0, 1.5, float("inf")]),
    row=st.integers(0, ROWS - 1),
    seed=st.integers(0, 99),
)
def test_a_row_is_its_formula(
    shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype, guidance: float | None, clip: float, row: int, seed: int
) -> None:
    given_inputs: dict[str, Any] = inputs(shape, channels_last=channels_last, dtype=dtype)
    if guidance is None:
        given_inputs["out_uncond"] = None
    assert_follows_formula(full_table(clip, seed), row, given_inputs, 1.0 if guidance is None else guidance)


def test_guidance_may_differ_from_image_to_image() -> None:
    guidance = torch.tensor([1.0, 0.0, 4.0])
    together = step(full_table(), 1, inputs(), guidance=guidance)
    assert_follows_formula(full_table(), 1, inputs(), guidance)
    for image, w in enumerate(guidance.tolist()):
        alone = step(full_table(), 1, inputs(), guidance=w)
        assert all(torch.equal(one[image], other[image]) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("guidance", [1.0, 7.0])
def test_without_out_uncond_guidance_is_not_read(guidance: float) -> None:
    unguided = {**inputs(), "out_uncond": None}
    assert_follows_formula(full_table(), 2, unguided, guidance)


def test_noise_depends_on_seed_image_and_row_only() -> None:
    """k_n alone is not zero: x' is the noise, whatever x, the outputs, the batch and the layout are."""
    noise_only = StepTable.from_columns(torch.arange(ROWS), {"k_n": torch.full((ROWS,), 1.0).double()})
    whole, _ = step(noise_only, 3, inputs())
    assert torch.equal(whole, philox_normal(seeds_of(3), SHAPE[1:], step=3, stream=STEP_NOISE))
    other = {name: 2 * value for name, value in inputs(channels_last=True).items()}
    assert torch.equal(step(noise_only, 3, other)[0], whole)
    last = {name: value[2:] for name, value in inputs().items()}
    assert torch.equal(step(noise_only, 3, last, seeds=seeds_of(3)[2:])[0], whole[2:])
    for row, seeds in ((2, seeds_of(3)), (3, seeds_of(3, run_seed=12)), (3, seeds_of(3).flip(0))):
        assert int((step(noise_only, row, inputs(), seeds=seeds)[0][0] == whole[0]).sum()) == 0


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_last_row_adds_no_noise(variance: Any) -> None:
    table = ddpm(NoiseSchedule.linear(), 10, variance=variance)
    results = [step(table, 9, inputs(), seeds=seeds_of(3, run_seed)) for run_seed in (0, 1)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][0], results[0][1]), "after the last row comes the x_0 prediction"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("halves", [1, 2])
def test_writing_form_equals_the_functional_one_though_buffers_alias(halves: int, guided: bool, channels_last: bool) -> None:
    given_inputs = inputs(channels_last=channels_last)
    if not guided:
        given_inputs["out_uncond"] = None
    expected = step(full_table(), 1, given_inputs, guidance=2.0)
    buffer = torch.full((halves * 3, *SHAPE[1:]), torch.nan).contiguous(memory_format=CHANNELS_LAST[channels_last])
    x = buffer[:3].copy_(given_inputs["x"])
    x_0 = given_inputs["history"].clone()
    aliased = {**given_inputs, "x": x, "history": x_0}
    result = step(full_table(), 1, aliased, guidance=2.0, out=buffer, out_x_0=x_0)
    assert result[0] is buffer and result[1] is x_0
    for half in buffer.chunk(halves):
        assert torch.equal(half, expected[0])
    assert torch.equal(x_0, expected[1])


def test_arguments_are_left_as_they_were() -> None:
    given_inputs = inputs()
    before = {name: value.clone() for name, value in given_inputs.items()}
    step(full_table(), 0, given_inputs, guidance=3.0)
    assert all(torch.equal(given_inputs[name], before[name]) for name in before)


def scheduler_options(prediction: str, spacing: str) -> dict[str, Any]:
    return {"num_train_timesteps": 1000, "prediction_type": DIFFUSERS_PREDICTION[prediction], "timestep_spacing": spacing}


# fixed_large with trailing spacing is left out: diffusers adds noise after its last timestep unless that is 0.
@pytest.mark.parametrize(
    ("variance", "spacing"), [("fixed_small", "leading"), ("fixed_small", "trailing"), ("fixed_large", "leading")]
)
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_fifty_steps_of_ddpm_follow_diffusers(
    prediction: Any, variance: Any, spacing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    scheduler = module.DDPMScheduler(variance_type=variance, **scheduler_options(prediction, spacing))
    scheduler.set_timesteps(50)

    def step_with(output: Tensor, timestep: Tensor, x: Tensor, z: Tensor) -> Any:
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: z)
        return scheduler.step(output, timestep, x)

    table = ddpm(NoiseSchedule.linear(), 50, prediction=prediction, spacing=spacing, variance=variance)
    ours = run_table(table, wavy_network, TRAJECTORY_SHAPE)
    theirs = run_scheduler(scheduler, wavy_network, TRAJECTORY_SHAPE, step_with)
    for visited, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(visited, expected, **TRAJECTORY)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_fifty_steps_of_ddim_follow_diffusers(prediction: Any, eta: float, spacing: Any) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**scheduler_options(prediction, spacing))
    scheduler.set_timesteps(50)

    def step_with(output: Tensor, timestep: Tensor, x: Tensor, z: Tensor) -> Any:
        return scheduler.step(output, timestep, x, eta=eta, variance_noise=z if eta else None)

    table = ddim(NoiseSchedule.linear(), 50, prediction=prediction, spacing=spacing, eta=eta)
    ours = run_table(table, wavy_network, TRAJECTORY_SHAPE)
    theirs = run_scheduler(scheduler, wavy_network, TRAJECTORY_SHAPE, step_with)
    for visited, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(visited, expected, **TRAJECTORY)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("with_history", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
def test_opcheck(layout: str, with_history: bool, guided: bool) -> None:
    drawn = inputs(channels_last=layout == "channels_last")
    if layout == "permuted":
        drawn["x"] = torch.randn(5, 3, 4, 2).permute(1, 3, 0, 2)
    uncond, guidance = (drawn["out_uncond"], torch.full((3,), 2.0)) if guided else (None, None)
    history = drawn["history"] if with_history else None
    coefficients, row = full_table().coefficients, torch.tensor([2])
    operands = (drawn["x"], drawn["out_cond"], uncond, history, coefficients, row, guidance, seeds_of(3), True)
    torch.library.opcheck(diffusion_step_functional, operands)
    torch.library.opcheck(diffusion_step_into_op, (*operands, torch.empty(6, *SHAPE[1:]), torch.empty(SHAPE)))


def test_compiles_whole_in_both_forms() -> None:
    table = full_table()

    def two_steps(x: Tensor, cond: Tensor, uncond: Tensor, history: Tensor, seeds: Tensor, buffer: Tensor) -> Tensor:
        for row in (0, 1):
            x, history = diffusion_step(x, cond, uncond, table, torch.tensor([row]), seeds=seeds, guidance=2.0, history=history)
        x_0 = history.clone()
        diffusion_step(x, cond, None, table, torch.tensor([2]), seeds=seeds, history=x_0, out=buffer, out_x_0=x_0)
        return buffer + x_0.repeat(2, 1, 1, 1)

    torch.compiler.reset()
    compiled = torch.compile(two_steps, fullgraph=True, backend="aot_eager")
    for batch, channels_last in ((3, False), (2, True), (4, True)):
        drawn = inputs((batch, *SHAPE[1:]), channels_last=channels_last)
        buffers = [torch.empty(2 * batch, *SHAPE[1:]) for _ in range(2)]
        results = [
            function(*drawn.values(), seeds_of(batch), buffer)
            for function, buffer in zip((compiled, two_steps), buffers, strict=True)
        ]
        assert torch.equal(*results) and torch.equal(*buffers)


@pytest.mark.parametrize("writing", [False, True])
def test_a_gradient_is_refused(writing: bool) -> None:
    drawn = inputs()
    drawn["out_cond"].requires_grad_()
    buffers = {"out": torch.empty(SHAPE), "out_x_0": torch.empty(SHAPE)} if writing else {}
    with pytest.raises(NotImplementedError, match="no gradient"):
        step(full_table(), 0, drawn, guidance=2.0, **buffers)[0].sum().backward()


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("overwritten", ["out", "out_x_0"])
def test_a_backward_through_what_a_buffer_held_before_is_refused(
    overwritten: str, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not short:
        monkeypatch.setattr(short_way, "is_short", lambda *tensors: False)
    buffers = {"out": torch.empty(SHAPE), "out_x_0": torch.empty(SHAPE)}
    weight = torch.randn(SHAPE, requires_grad=True)
    loss = (weight * buffers[overwritten]).sum()
    step(full_table(), 0, inputs(), guidance=2.0, **buffers)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def refusals() -> dict[str, tuple[dict[str, Any], str]]:
    drawn, meta = inputs(), torch.empty(SHAPE, device="meta")
    narrow = StepTable(torch.zeros(ROWS, 7), torch.arange(ROWS))
    wide = StepTable(torch.zeros(ROWS, 8, dtype=torch.float64), torch.arange(ROWS))
    buffer = torch.empty(SHAPE)
    return {
        "fp16 x": ({"x": drawn["x"].half()}, "x is torch.float16"),
        "out_cond shape": ({"out_cond": drawn["x"][:1]}, r"out_cond is torch.float32 \[1, 2, 5, 4\]"),
        "integer out_cond": ({"out_cond": drawn["x"].long()}, "out_cond is torch.int64"),
        "out_uncond shape": ({"out_uncond": drawn["x"][:, :1]}, r"out_uncond is torch.float32 \[3, 1, 5, 4\]"),
        "seven columns": ({"table": narrow}, r"table.coefficients is torch.float32 \[4, 7\]"),
        "fp64 table": ({"table": wide}, "table.coefficients is torch.float64"),
        "row dtype": ({"row": torch.tensor([0.0])}, "row is torch.float32"),
        "row shape": ({"row": torch.tensor(0)}, r"row is torch.int64 \[\]"),
        "seeds dtype": ({"seeds": seeds_of(3).int()}, "seeds is torch.int32"),
        "seeds shape": ({"seeds": seeds_of(2)}, r"seeds is torch.int64 \[2, 2\]; int64 \[3, 2\]"),
        "out_cond elsewhere": ({"out_cond": meta}, "out_cond is on meta and x on cpu"),
        "out_uncond elsewhere": ({"out_uncond": meta}, "out_uncond is on meta and x on cpu"),
        "row elsewhere": ({"row": torch.zeros(1, dtype=torch.int64, device="meta")}, "row is on meta"),
        "no history": ({"history": None}, "pass it as history"),
        "history dtype": ({"history": drawn["x"].half()}, "history is torch.float16"),
        "history shape": ({"history": drawn["x"][:1]}, r"history is torch.float32 \[1, 2, 5, 4\]"),
        "history elsewhere": ({"history": meta}, "history is on meta"),
        "guidance shape": ({"guidance": torch.ones(2)}, r"guidance is torch.float32 \[2\]"),
        "guidance dtype": ({"guidance": torch.ones(3).double()}, "guidance is torch.float64"),
        "guidance elsewhere": ({"guidance": torch.ones(3, device="meta")}, "guidance is on meta"),
        "out dtype": ({"out": buffer.half(), "out_x_0": buffer}, "out is torch.float16"),
        "out of three halves": ({"out": buffer.repeat(3, 1, 1, 1), "out_x_0": buffer}, r"out is torch.float32 \[9, 2"),
        "out image shape": ({"out": buffer[:, :1], "out_x_0": buffer}, r"out is torch.float32 \[3, 1"),
        "out elsewhere": ({"out": meta, "out_x_0": buffer}, "out is on meta"),
        "out alone": ({"out": buffer}, "without out_x_0"),
        "out_x_0 shape": ({"out": buffer, "out_x_0": buffer[:1]}, r"out_x_0 is torch.float32 \[1"),
    }


@pytest.mark.parametrize("case", refusals())
def test_refuses_in_one_line(case: str) -> None:
    changed, message = refusals()[case]
    arguments: dict[str, Any] = {**inputs(), "table": full_table(), "row": torch.tensor([0]), "seeds": seeds_of(3)}
    arguments = {**arguments, "guidance": 2.0, **changed}
    with pytest.raises(ValueError, match=message) as caught:
        diffusion_step(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu() -> None:
    drawn, table = inputs(), full_table()
    on_gpu = {name: value.cuda() for name, value in drawn.items()}
    expected = step(table, 1, drawn, guidance=2.0)
    actual = diffusion_step(
        on_gpu["x"],
        on_gpu["out_cond"],
        on_gpu["out_uncond"],
        table.to("cuda"),
        torch.tensor([1], device="cuda"),
        seeds=seeds_of(3).cuda(),
        guidance=2.0,
        history=on_gpu["history"],
    )
    for value, truth in zip(actual, expected, strict=True):
        torch.testing.assert_close(value.cpu(), truth, **ONE_STEP)
