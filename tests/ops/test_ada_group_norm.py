"""ada_group_norm: parity with PyTorch's composition, exactness where exactness is defined, batch invariance, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastcond.ops import ada_group_norm
from fastcond.ops.ada_group_norm.op import ada_group_norm_backward, ada_group_norm_forward
from tests.support.ada_group_norm import OPERANDS, Case, check_parity, exactly, largest_terms, leaf, value_and_gradients
from tests.support.kernels import kernel  # noqa: F401  (runs every test behind each CPU kernel)
from tests.tolerances import assert_within_floor

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
CASES = st.builds(
    lambda batch, groups, per_group, positions, **rest: Case((batch, groups * per_group, *positions), groups, **rest),
    batch=st.integers(1, 5),
    groups=st.sampled_from([1, 2, 3, 5]),
    per_group=st.sampled_from([1, 2, 3, 7, 98]),
    positions=st.sampled_from([(), (1,), (7,), (211,), (1, 1), (1, 13), (5, 7), (16, 16), (31, 17), (1, 1, 1), (2, 3, 5)]),
    dtype=st.sampled_from(DTYPES),
    channels_last=st.booleans(),
    conditioning=st.sampled_from(["none", "chunk", "row", "map"]),
    affine=st.booleans(),
    silu=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-6]),
)
# Above 32768 numbers PyTorch shares a sum out among threads; the last element of a vector register is another case.
LARGE_GROUP = Case((2, 3, 128, 131), 1, conditioning="chunk")
LARGE_CHANNEL = Case((2, 1, 128, 300), 1, conditioning="chunk")


@settings(max_examples=150)
@given(case=CASES)
@example(LARGE_GROUP)
def test_output_and_every_gradient_follow_the_parity_rule(case: Case) -> None:
    check_parity(case)


@settings(max_examples=60)
@given(case=CASES)
def test_sixteen_bits_lose_one_rounding_of_fp32_arithmetic(case: Case) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        operands = replace(case, dtype=dtype).operands()
        wide = [leaf(operand, torch.float32) for operand in operands]
        exact = [exactly(operand) for operand in operands]
        magnitude = largest_terms(case, exact, case.upstream().double())["y"]
        assert_within_floor("y", case.ours(operands).detach(), case.truth(exact).detach(), magnitude=magnitude)
        assert torch.equal(case.ours(operands), case.ours(wide).to(dtype))


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("conditioning", ["none", "chunk", "row", "map"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("shape", "groups"), [((2, 6, 2, 3), 3), ((3, 4), 2), ((2, 3, 5), 1), ((2, 2, 2, 1, 2), 2)])
def test_gradients_are_those_of_finite_differences(
    shape: tuple[int, ...], groups: int, affine: bool, conditioning: str, silu: bool
) -> None:
    case = Case(shape, groups, torch.float64, conditioning=conditioning, affine=affine, silu=silu)
    operands = case.operands()
    present = [operand for operand in operands if operand is not None]

    def function(*leaves: Tensor) -> Tensor:
        given_leaves = iter(leaves)
        return case.ours([None if operand is None else next(given_leaves) for operand in operands])

    assert torch.autograd.gradcheck(function, present)


def layouts() -> dict[str, Tensor]:
    return {
        "contiguous": torch.randn(2, 6, 4, 5),
        "channels_last": torch.randn(2, 6, 4, 5).contiguous(memory_format=torch.channels_last),
        "permuted": torch.randn(4, 2, 5, 6).permute(1, 3, 0, 2),
        "one channel": torch.randn(2, 1, 4, 5).contiguous(memory_format=torch.channels_last),
        "one image": torch.randn(1, 6, 4, 5).contiguous(memory_format=torch.channels_last),
        "3-D": torch.randn(2, 6, 5),
        "2-D": torch.randn(2, 6),
        "channels_last_3d": torch.randn(2, 6, 2, 3, 4).contiguous(memory_format=torch.channels_last_3d),
    }


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_and_dx_keep_dtype_and_strides(layout: str, dtype: torch.dtype) -> None:
    x = layouts()[layout].to(dtype).requires_grad_()
    before = x.detach().clone()
    y = ada_group_norm(x, num_groups=1, activation="silu")
    assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert (dx.dtype, dx.shape, dx.stride()) == (x.dtype, x.shape, x.stride())
    assert torch.equal(x, before)


@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("operands", ["all", "none", "chunk only", "weight only"])
def test_opcheck(layout: str, operands: str) -> None:
    x = layouts()[layout].requires_grad_()
    batch, channels = x.shape[:2]
    groups = 1 if channels == 1 else 3
    scale, shift = (leaf(half) for half in torch.randn(batch, 2 * channels).chunk(2, dim=1))
    weight, bias = torch.randn(channels, requires_grad=True), torch.randn(channels, requires_grad=True)
    given_operands = {
        "all": (scale, shift, weight, bias),
        "none": (None, None, None, None),
        "chunk only": (scale, shift, None, None),
        "weight only": (None, None, weight, None),
    }[operands]
    torch.library.opcheck(ada_group_norm_forward, (x, *given_operands, groups, 1e-5, True))
    y, mean, rstd = ada_group_norm_forward(x, *given_operands, groups, 1e-5, True)
    inputs = (torch.randn_like(y), x, *given_operands, mean, rstd)
    saved = [None if value is None else value.detach() for value in inputs]
    torch.library.opcheck(ada_group_norm_backward, (*saved, groups, True, [True, False, True, True, False]))


def test_compiles_whole_with_its_backward() -> None:
    def norm(x: Tensor, embedding: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        scale, shift = embedding.chunk(2, dim=1)
        return ada_group_norm(x * 2, scale, shift, 2, weight=weight, bias=bias, activation="silu") + 1

    torch.compiler.reset()
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
    for batch, size, memory_format in ((2, 4, torch.contiguous_format), (3, 4, torch.channels_last), (3, 6, torch.channels_last)):
        x = torch.randn(batch, 6, size, size).contiguous(memory_format=memory_format)
        inputs = [x, torch.randn(batch, 12), torch.randn(6), torch.randn(6)]
        results = []
        for function in (compiled, norm):
            leaves = [leaf(value) for value in inputs]
            y = function(*leaves)
            results.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
        for ours, expected in zip(*results, strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constant", [0.1, -7.3, 1e4])
def test_constant_groups_give_exactly_the_offset(dtype: torch.dtype, constant: float) -> None:
    case = Case((3, 10, 9, 5), 2, dtype, silu=False)
    x, scale, shift, weight, bias = case.operands()
    x = torch.full_like(x, constant)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    offset = (bias.to(wide) * (1 + scale.to(wide)) + shift.to(wide))[:, :, None, None].expand(x.shape)
    assert torch.equal(case.ours([x, scale, shift, weight, bias]), offset.to(dtype))
    activated = replace(case, silu=True)
    expected = torch.nn.functional.silu(offset.double())
    assert_within_floor("act", activated.ours([x, scale, shift, weight, bias]).detach(), expected.detach())


@pytest.mark.parametrize("channels_last", [False, True])
def test_no_digits_are_lost_where_the_mean_is_large(channels_last: bool) -> None:
    """10,000 +- 0.1 in float32: E[x^2] - mean^2 would leave nothing, and a mean folded into the bias three digits."""
    x = 10_000 + 0.1 * torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    case, dy = Case(tuple(x.shape), 2, silu=False, conditioning="none", affine=False), torch.randn(x.shape)
    ours, exact = [leaf(x), None, None, None, None], [exactly(x), None, None, None, None]
    actual = value_and_gradients(case.ours(ours), ours, dy)
    expected = value_and_gradients(case.composed(exact), exact, dy)
    assert_within_floor("y", actual["y"], expected["y"])
    assert_within_floor("dx", actual["x"], expected["x"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_go_where_group_norm_sends_them(dtype: torch.dtype, silu: bool, value: float) -> None:
    case = Case((2, 6, 3, 5), 3, dtype, silu=silu)
    for position in ((0, 0, 0, 0), (1, 3, 2, 4)):
        operands = case.operands()
        with torch.no_grad():
            operands[0][position] = value
        ours, composed = case.ours(operands), case.composed(operands)
        assert torch.equal(ours.isnan(), composed.isnan()) and torch.equal(ours.isinf(), composed.isinf())
        assert int(ours.isnan().sum()) == 2 * 15  # one group of two channels, and no other
    operands = case.operands()
    with torch.no_grad():
        operands[2][1, 5], operands[4][0] = value, value
    ours, composed = case.ours(operands), case.composed(operands)
    assert torch.equal(ours.isnan(), composed.isnan()) and torch.equal(ours.isinf(), composed.isinf())


@settings(max_examples=100)
@given(case=CASES)
@example(LARGE_GROUP)
@example(LARGE_CHANNEL)
@example(replace(LARGE_GROUP, channels_last=True))
def test_an_image_has_the_same_bits_in_any_batch(case: Case) -> None:
    operands, dy = case.operands(), case.upstream()
    whole = value_and_gradients(case.ours(operands), operands, dy)
    again = value_and_gradients(case.ours(operands), operands, dy)
    assert all(torch.equal(whole[name], again[name]) for name in whole), "two runs differ"
    for image in range(case.shape[0]):
        x, scale, shift, weight, bias = operands
        of_image = [leaf(part if part is None or len(part) == 1 else part[image : image + 1]) for part in (scale, shift)]
        alone = [leaf(x[image : image + 1]), *of_image, weight, bias]
        single = value_and_gradients(case.ours(alone), alone, dy[image : image + 1])
        names = ["y", "x"] if case.conditioning in ("none", "row") else ["y", "x", "scale", "shift"]
        for name in names:
            assert torch.equal(single[name][0], whole[name][image]), f"{name} of image {image}"


def test_thread_count_does_not_matter() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for case in (LARGE_GROUP, replace(LARGE_CHANNEL, shape=(1, 1, 128, 300)), Case((5, 32, 31, 31), 4)):
                operands = case.operands()
                results.append(value_and_gradients(case.ours(operands), operands, case.upstream()))
    finally:
        torch.set_num_threads(before)
    for first, other in zip(results[:3] * 2, results[3:], strict=True):
        for name in ("y", "x", "scale", "shift"):
            assert torch.equal(first[name], other[name]), name


class Recorder(TorchDispatchMode):
    """Keeps the `needed` argument of every backward call."""

    def __init__(self) -> None:
        super().__init__()
        self.needed: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is ada_group_norm_backward:
            self.needed.append(list(args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted", [*OPERANDS, "all"])
def test_only_the_gradients_asked_for_are_computed(wanted: str) -> None:
    case = Case((2, 6, 3, 3), 3)
    operands = [
        operand.detach().requires_grad_(wanted in (name, "all")) for name, operand in zip(OPERANDS, case.operands(), strict=True)
    ]
    y = case.ours(operands)
    with Recorder() as recorder:
        y.backward(case.upstream())
    assert recorder.needed == [[wanted in (name, "all") for name in OPERANDS]]
    for name, operand in zip(OPERANDS, operands, strict=True):
        assert (operand.grad is not None) == (wanted in (name, "all"))


@pytest.mark.parametrize("position", range(5))
def test_backward_leaves_empty_what_is_not_needed(position: int) -> None:
    case = Case((2, 6, 3, 3), 3)
    operands = [operand.detach() for operand in case.operands()]
    _, mean, rstd = ada_group_norm_forward(*operands, 3, 1e-5, True)
    needed = [index == position for index in range(5)]
    grads = ada_group_norm_backward(case.upstream(), *operands, mean, rstd, 3, True, needed)
    assert [grad.numel() > 0 for grad in grads] == needed
    everything = ada_group_norm_backward(case.upstream(), *operands, mean, rstd, 3, True, [True] * 5)
    assert torch.equal(grads[position], everything[position])


def test_missing_scale_or_shift_counts_as_zero() -> None:
    x, scale, shift, weight, bias = Case((2, 6, 3, 3), 3).operands()
    zero = torch.zeros_like(scale)
    arguments: dict[str, Any] = {"num_groups": 3, "weight": weight, "bias": bias}
    assert torch.equal(ada_group_norm(x, scale, None, **arguments), ada_group_norm(x, scale, zero, **arguments))
    assert torch.equal(ada_group_norm(x, None, shift, **arguments), ada_group_norm(x, zero, shift, **arguments))


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_statistics_are_wide_and_not_differentiable(dtype: torch.dtype) -> None:
    x = torch.randn(2, 6, 3, 3).to(dtype).requires_grad_()
    _, mean, rstd = ada_group_norm_forward(x, None, None, None, None, 3, 1e-5, False)
    for statistic in (mean, rstd):
        assert statistic.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert not statistic.requires_grad
    assert mean.shape == (2, 2, 3) and rstd.shape == (2, 3)
    grouped = x.detach().double().reshape(2, 3, -1)
    largest = float(x.detach().abs().max())
    assert_within_floor("mean", mean[0], grouped.mean(dim=2), magnitude=largest)
    assert float(mean[1].abs().max()) <= torch.finfo(mean.dtype).eps * largest, "mean[1] is what rounding left out"
    assert_within_floor("rstd", rstd, (grouped.var(dim=2, unbiased=False) + 1e-5).rsqrt())


def test_mixed_dtypes_as_under_autocast() -> None:
    """bf16 activations with float32 parameters: the output is bf16, each gradient has its operand's dtype."""
    x, scale, shift, weight, bias = Case((2, 6, 5, 5), 3).operands()
    x = leaf(x, torch.bfloat16)
    operands = [x, leaf(scale, torch.bfloat16), leaf(shift, torch.bfloat16), weight, bias]
    case = Case((2, 6, 5, 5), 3)
    y = case.ours(operands)
    assert y.dtype == torch.bfloat16
    grads = value_and_gradients(y, operands, case.upstream())
    assert [grads[name].dtype for name in OPERANDS] == [*[torch.bfloat16] * 3, *[torch.float32] * 2]


def test_second_derivative_is_refused() -> None:
    case = Case((2, 4, 3, 3), 2)
    operands = case.operands()
    (dx,) = torch.autograd.grad(case.ours(operands).sum(), operands[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        dx.sum().backward()


def refusals() -> dict[str, tuple[Callable[[], Tensor], str]]:
    x = torch.randn(2, 6, 4, 4)
    six = torch.randn(6)
    return {
        "integers": (lambda: ada_group_norm(x.long(), num_groups=2), r"x is torch.int64 \[2, 6, 4, 4\]"),
        "one dimension": (lambda: ada_group_norm(x[0, :, 0, 0], num_groups=2), r"x is torch.float32 \[6\]"),
        "groups": (lambda: ada_group_norm(x, num_groups=4), "6 channels cannot be divided into 4 groups"),
        "no groups": (lambda: ada_group_norm(x, num_groups=0), "into 0 groups"),
        "default groups": (lambda: ada_group_norm(x), "into 32 groups"),
        "activation": (lambda: ada_group_norm(x, num_groups=2, activation="relu"), "activation is 'relu'"),
        "scale": (lambda: ada_group_norm(x, torch.randn(3, 6), num_groups=2), r"scale has shape \[3, 6\]; \[2, 6\]"),
        "shift": (lambda: ada_group_norm(x, None, six, num_groups=2), r"shift has shape \[6\]"),
        "scale map": (lambda: ada_group_norm(x, torch.randn(2, 6, 4, 4), num_groups=2), r"scale has shape \[2, 6, 4, 4\]"),
        "weight": (lambda: ada_group_norm(x, num_groups=2, weight=torch.randn(5)), r"weight has shape \[5\]; \[6\]"),
        "bias": (lambda: ada_group_norm(x, num_groups=2, bias=torch.randn(6, 1)), r"bias has shape \[6, 1\]"),
    }


@pytest.mark.parametrize("case", refusals())
def test_refuses_in_one_line(case: str) -> None:
    call, message = refusals()[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_agrees_with_the_cpu(dtype: torch.dtype) -> None:
    case = Case((2, 14, 7, 5), 2, dtype)
    operands = case.operands()
    on_gpu = [None if operand is None else operand.detach().cuda().requires_grad_() for operand in operands]
    expected = value_and_gradients(case.ours(operands), operands, case.upstream())
    actual = value_and_gradients(case.ours(on_gpu), on_gpu, case.upstream().cuda())
    for name, value in actual.items():
        tolerance = 16 * torch.finfo(dtype).eps * max(1.0, float(expected[name].abs().max()))
        torch.testing.assert_close(value.cpu(), expected[name], atol=tolerance, rtol=0)
