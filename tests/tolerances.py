"""How far a result may lie from the truth. Every tolerance of the tests and the benchmarks is here, with its reason.

The parity rule: the largest error against float64 is at most twice what PyTorch itself loses in the same dtype, plus a
floor. PyTorch may be exact by luck where few numbers are compared, so the floor is what correct arithmetic loses anyway:

    floor = u(dtype) |y|  +  8 u(arithmetic) m sqrt(n)

- u is half the machine epsilon, the loss of one rounding to nearest.
- u(dtype) |y| is the rounding of the stored result y, the only loss in 16 bits: the arithmetic is float32 there, float64
  for float64, and the dtype's own for float32.
- 8 is the number of dependent operations between input and output: subtraction, square, mean, reciprocal root, gain,
  offset, exponential, division. m is the largest term that these operations add, which exceeds |y| where terms cancel.
- A sum of n terms rounds n times; independent roundings of either sign add up as sqrt(n).

What is defined to be equal (philox's words, an image in another batch) has no tolerance: `torch.equal`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

PARITY_FACTOR = 2.0
DEPENDENT_OPERATIONS = 8

# Kernels of philox_normal: a few float32 roundings (6e-8 relative) of |z| <= 6.76, and of z near 0 where cos crosses it.
NORMALS = {"atol": 4e-7, "rtol": 1e-6}

# norm_conv's convolution is Winograd's F(4x4, 3x3), whose sums are of larger terms than the definition's. One way, output j adds
# A_ji (G g)_i (B^T d)_i over i: for independent g and d of size 1 the root of the terms' mean squares is
# sqrt(sum_i A_ji^2 |G_i|^2 |B_i|^2) against sqrt(3) for the three products themselves: 2.96 at most with the points 0, +-3/4,
# +-3/2 and infinity (5.6 with the usual 0, +-1, +-2), and its square for the two ways.
WINOGRAD_AMPLIFICATION = 8.8
# conv3x3's weight gradient adds G_ia (B^T d)_i (A dy)_i over i: sqrt(sum_i G_ia^2 |B_i|^2 |A_i|^2) against sqrt(4) is 2.68 at
# most (4.92 with the usual points), again squared.
WINOGRAD_GRADIENT_AMPLIFICATION = 7.2
# And what is promised to users of it, relative to the largest output.
WINOGRAD_RELATIVE = 1e-5

# Betas that the other side keeps in float32: one rounding of each and of 1 - beta, whose absolute loss is 6e-8.
FP32_BETAS = {"atol": 1.2e-7, "rtol": 1e-6}
# A float32 cumulative product of T = 1000 factors: 1000 roundings of 6e-8, all of one sign at worst. Near the end of a cosine
# schedule a factor is 1e-3, known to 6e-8 absolutely, which is 6e-5 relatively as well.
FP32_CUMPROD = {"atol": 1e-7, "rtol": 1.2e-4}
# 50 steps of float32 updates with coefficients that the other side derives in float32: 1/sqrt(a) reaches 157 at the
# noisiest timestep, clamping stops its errors from growing, and each step adds about 1e-7 |x|, |x| <= 5.
TRAJECTORY = {"atol": 2e-5, "rtol": 0.0}
# A run of any scheduler of diffusers, absolutely, in float32 of size 1 to 5: up to 1000 rows, each of about 1e-7.
SCHEDULER = 1e-4
# Larger than any standard normal of the tests.
LARGEST_NORMAL = 5.0
# One update in float32 against float64 numpy, coefficients of size 1: five products and sums of terms up to about 10.
ONE_STEP = {"atol": 5e-6, "rtol": 1e-6}
# Two float32 networks that sum the same terms in another order, relative to the largest output: depth times 6e-8.
NETWORK_RELATIVE = 1e-5
# A network evaluated in bf16: a rounding of 2^-9 at each of about 60 layers, which add up as their square root to 1.5% of an
# output, and somewhere in a map to several times that. It tells a network from another one, no more.
BF16_NETWORK_RELATIVE = 0.1
# Images in [-1, 1] of 50 guided steps by two float32 networks that predict v: a step adds NETWORK_RELATIVE at most, times 4 by
# guidance (2.5 + 1.5), which is 3e-4 after 50 that are independent and 2e-3 after 50 of one sign. A gray level is 8e-3.
GUIDED_RUN = 1e-3
# sin and cos of t f in float32, t up to 999: f is known to 1.2e-7 relatively, so the angle to 1.2e-4.
SINUSOID = {"atol": 1.2e-4, "rtol": 0.0}
# Float32 coefficients of size 1, used in float64: one rounding of 6e-8 each, four a row; times the rows of a run.
FP32_COEFFICIENTS = 3e-7
# A float64 network and its frozen form: the same operations, with the conditioning's products of another shape.
FP64_NETWORK = {"atol": 1e-12, "rtol": 1e-12}
# Closed forms in float64 on both sides.
FP64 = {"atol": 1e-12, "rtol": 1e-9}
# Float rounding of a pixel before it is rounded to 8 bits moves it by one level at most.
GRAY_LEVELS = 1
# Mean levels by which bfloat16 moves a pixel of the small test network's images: 0.37 to 0.49 were measured on a CPU (dpmpp2m and
# heun, 6 and 50 steps); those of another seed differ by 114. Samplers that do not clamp amplify a random network's rounding.
BF16_MEAN_LEVELS = 2.0
# The same by which float32 on a GPU (without TF32) may differ from float32 on a CPU: a rounding of a pixel in ten.
FP32_MEAN_LEVELS = 0.1
# A statistical bound that a correct sampler misses once in 150,000 draws; seeds are fixed, so it does so always or never.
STANDARD_ERRORS = 4.5


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """What kernels compute in: float32 for 16 and 32 bits, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative loss of one rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def floor(dtype: torch.dtype, expected: Tensor, magnitude: float | None = None, terms: int = 1) -> float:
    """The floor of the parity rule; `magnitude` is m (default: the largest |y|), `terms` is n."""
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    magnitude = largest if magnitude is None else max(magnitude, largest)
    arithmetic = DEPENDENT_OPERATIONS * unit_roundoff(arithmetic_dtype(dtype)) * magnitude * math.sqrt(terms)
    return unit_roundoff(dtype) * largest + arithmetic


def largest_error(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| in float64."""
    assert actual.shape == expected.shape, f"{list(actual.shape)} against {list(expected.shape)}"
    return float((actual.detach().double() - expected.detach().double()).abs().max()) if actual.numel() else 0.0


def assert_within_floor(what: str, actual: Tensor, expected: Tensor, *, magnitude: float | None = None, terms: int = 1) -> None:
    """Correct arithmetic and nothing else: |actual - expected| <= floor."""
    error, allowed = largest_error(actual, expected), floor(actual.dtype, expected, magnitude, terms)
    assert error <= allowed, f"{what}: error {error:.3g} against float64, {allowed:.3g} allowed"


def assert_parity(
    what: str, actual: Tensor, pytorch: Tensor, expected: Tensor, *, magnitude: float | None = None, terms: int = 1
) -> None:
    """The parity rule. `pytorch` is PyTorch's own result in actual's dtype, `expected` the float64 truth."""
    error, pytorch_error = largest_error(actual, expected), largest_error(pytorch, expected)
    allowed = PARITY_FACTOR * pytorch_error + floor(actual.dtype, expected, magnitude, terms)
    assert error <= allowed, f"{what}: error {error:.3g} against float64, {allowed:.3g} allowed (PyTorch {pytorch_error:.3g})"


def assert_gradient_parity(
    ours: Mapping[str, Tensor],
    pytorch: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    amplification: float = 1.0,
) -> None:
    """The parity rule for all gradients of a network at once: the largest error, each relative to its gradient's largest element.

    One at a time, PyTorch is lucky in some of a hundred small gradients. Some are 0 but for rounding, such as that of a key's
    bias, so a gradient counts as no smaller than a thousandth of the network's largest.

    amplification: by which ours may add to a rounding, such as Winograd's in a network whose convolutions are that.
    """
    assert ours.keys() == pytorch.keys() == expected.keys()
    sizes = {name: float(value.abs().max()) for name, value in expected.items()}
    least = max(sizes.values()) / 1000

    def errors(gradients: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: largest_error(value, expected[name]) / max(sizes[name], least) for name, value in gradients.items()}

    found = errors(ours)
    worst = max(found, key=lambda name: found[name])
    pytorch_error = max(errors(pytorch).values())
    allowed = PARITY_FACTOR * pytorch_error + floor(dtype, torch.ones(1), amplification)
    assert found[worst] <= allowed, f"{worst}: error {found[worst]:.3g}, {allowed:.3g} allowed (PyTorch {pytorch_error:.3g})"


def assert_network_close(actual: Tensor, expected: Tensor) -> None:
    """Outputs of two float32 networks that differ in the order of their sums only."""
    error, allowed = largest_error(actual, expected), NETWORK_RELATIVE * float(expected.detach().abs().max())
    assert error <= allowed, f"error {error:.3g}, {allowed:.3g} allowed"
