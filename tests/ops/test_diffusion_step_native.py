"""The native diffusion_step alone: the reference's bits, on every instruction set, with any number of threads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fastcond.ops import diffusion_step, native, philox_normal, short_way
from fastcond.ops.diffusion_step import cpu, reference
from fastcond.ops.philox import STEP_NOISE
from tests.support.samplers import seeds_of

if native.native is None:
    pytest.skip("the native library was not built", allow_module_level=True)

SETS = native.native.instruction_sets()


@dataclass(frozen=True)
class Case:
    """One call; `row_noise` is k_n of the row."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    guided: bool = True
    history: bool = True
    draws: bool = True
    row_noise: float = 0.7

    def operands(self) -> tuple[Tensor | bool | None, ...]:
        generator = torch.Generator().manual_seed(sum(self.shape))
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format

        def drawn() -> Tensor:
            return torch.randn(self.shape, generator=generator).contiguous(memory_format=memory_format)

        x, cond, uncond, history = drawn(), drawn().to(self.dtype), drawn().to(self.dtype), drawn()
        coefficients = torch.rand(5, 8, generator=generator) + 0.3
        coefficients[3, 7] = self.row_noise
        w = torch.linspace(0.5, 4, self.shape[0])
        return (
            *(x, cond, uncond if self.guided else None, history if self.history else None),
            *(coefficients, torch.tensor([3]), w if self.guided else None, seeds_of(self.shape[0]), self.draws),
        )


SHAPES = [(3, 3, 16, 16), (2, 3, 5, 7), (5, 1, 9, 3), (2, 20, 6, 11), (2, 17, 8, 8), (70, 3, 16, 16), (1, 3, 96, 64)]
CASES = [Case(shape, channels_last=last) for shape in SHAPES for last in (False, True)]
VARIANTS = [
    *CASES,
    *(replace(case, dtype=dtype) for case in CASES[:6] for dtype in (torch.bfloat16, torch.float16, torch.float64)),
    *(replace(case, guided=False) for case in CASES[:4]),
    *(replace(case, history=False) for case in CASES[:4]),
    *(replace(case, draws=False) for case in CASES[:4]),
    *(replace(case, row_noise=0.0) for case in CASES[:4]),
]


@pytest.fixture(autouse=True)
def best_instruction_set() -> Iterator[None]:
    yield
    native.native.use_instruction_set(SETS[-1])
    torch.set_num_threads(2)


def equal(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_every_instruction_set_and_thread_count_gives_the_bits_of_the_reference(case: Case) -> None:
    operands = case.operands()
    expected = reference.step(*operands)
    for name in SETS:
        for threads in (1, 2, 5):
            native.native.use_instruction_set(name)
            torch.set_num_threads(threads)
            assert equal(cpu.step(*operands), expected), (name, threads)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_image_has_the_same_bits_in_any_batch(case: Case) -> None:
    x, cond, uncond, history, coefficients, row, w, seeds, draws = case.operands()
    whole = cpu.step(x, cond, uncond, history, coefficients, row, w, seeds, draws)
    for i in range(min(case.shape[0], 3)):
        at = slice(i, i + 1)
        alone = cpu.step(x[at], cond[at], uncond[at], history[at], coefficients, row, w[at], seeds[at], draws)
        assert torch.equal(alone[0][0], whole[0][i]) and torch.equal(alone[1][0], whole[1][i])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (3, 5, 7, 9)])
def test_its_noise_is_that_of_philox_normal(shape: tuple[int, ...], channels_last: bool) -> None:
    x, cond, _, _, coefficients, row, _, seeds, _ = Case(shape, channels_last=channels_last).operands()
    noise_only = torch.zeros_like(coefficients)
    noise_only[:, 7] = 1
    stepped, _ = cpu.step(x, cond, None, None, noise_only, row, None, seeds, True)
    assert torch.equal(stepped, philox_normal(seeds, shape[1:], step=3, stream=STEP_NOISE))


def test_every_half_precision_number_is_read_exactly() -> None:
    cond = torch.arange(65536).to(torch.int16).view(torch.float16).reshape(1, 1, 256, 256)
    take_cond = torch.tensor([[0.0, 1.0, float("inf"), 0.0, 1.0, 0.0, 0.0, 0.0]])
    operands = (torch.zeros(cond.shape), cond, None, None, take_cond, torch.tensor([0]), None, seeds_of(1), False)
    _, x_0 = cpu.step(*operands)
    expected = cond.float()
    assert torch.equal(x_0.isnan(), expected.isnan())
    assert torch.equal(x_0.nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.parametrize("clip", [1.0, float("inf")])
def test_nan_and_infinity_go_where_the_reference_sends_them(clip: float) -> None:
    x, cond, uncond, history, coefficients, row, w, seeds, draws = Case((2, 3, 8, 8)).operands()
    coefficients[:, 2] = clip
    for tensor, value in ((x, float("nan")), (cond, float("inf")), (uncond, float("-inf")), (history, float("nan"))):
        tensor.view(-1)[:: 7 + tensor.numel() % 5] = value
        operands = (x, cond, uncond, history, coefficients, row, w, seeds, draws)
        for ours, expected in zip(cpu.step(*operands), reference.step(*operands), strict=True):
            assert torch.equal(ours.isnan(), expected.isnan()) and torch.equal(ours.nan_to_num(3), expected.nan_to_num(3))


def test_buffers_that_overlap_otherwise_than_element_for_element() -> None:
    _, cond, uncond, history, coefficients, row, w, seeds, draws = Case((3, 3, 8, 8)).operands()
    memory = torch.randn(5, 3, 8, 8)
    x, x_next, x_0 = memory[:3], memory[1:4], torch.empty(3, 3, 8, 8)
    expected = reference.step(x.clone(), cond, uncond, history, coefficients, row, w, seeds, draws)
    cpu.step_into(x, cond, uncond, history, coefficients, row, w, seeds, draws, x_next, x_0)
    assert equal((x_next, x_0), expected)


def test_what_does_not_fit_is_refused_at_the_op() -> None:
    x, cond, uncond, history, coefficients, row, w, seeds, draws = Case((2, 3, 4, 4)).operands()
    with pytest.raises(IndexError, match="row is 5; the table has 5 rows"):
        cpu.step(x, cond, uncond, history, coefficients, row + 2, w, seeds, draws)
    with pytest.raises(ValueError, match=r"seeds: .*found -1"):
        cpu.step(x, cond, uncond, history, coefficients, row, w, seeds - 1 - seeds[:, :1], draws)
    with pytest.raises(ValueError, match=r"an operand of diffusion_step is \[1, 3, 4, 4\]"):
        cpu.step(x, cond[:1], uncond, history, coefficients, row, w, seeds, draws)
    with pytest.raises(ValueError, match="guided steps carry their scale"):
        cpu.step(x, cond, uncond, history, coefficients, row, None, seeds, draws)
    with pytest.raises(ValueError, match=r"x_next is \[6, 3, 4, 5\]"):
        cpu.step_into(x, cond, uncond, history, coefficients, row, w, seeds, draws, torch.empty(6, 3, 4, 5), torch.empty_like(x))


def test_the_native_kernel_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fall-back that nobody notices would make every test of this file empty."""
    monkeypatch.setattr(reference, "step_into", None)
    for case in CASES:
        cpu.step(*case.operands())


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_past_the_dispatcher_it_gives_the_bits_that_the_op_gives(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    x, cond, uncond, history, coefficients, row, w, seeds, draws = case.operands()
    table = SimpleNamespace(coefficients=coefficients, keeps_history=True, draws_noise=draws)

    def run() -> tuple[Tensor, Tensor]:
        out, x_0 = torch.cat((x, x)), torch.empty_like(x)
        return diffusion_step(x, cond, uncond, table, row, seeds=seeds, guidance=w, history=history, out=out, out_x_0=x_0)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[diffusion_step.__module__], "diffusion_step_into", None)
        past = run()
    with monkeypatch.context() as patch:
        patch.setattr(short_way, "is_short", lambda *tensors: False)
        by_op = run()
    assert equal(past, by_op)
