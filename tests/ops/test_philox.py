"""philox: the published words, the normal distribution, and noise that depends on nothing but what keys it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastcond.ops import native
from fastcond.ops.philox import INITIAL_NOISE, STEP_NOISE, op, philox_bits, philox_normal, reference
from tests.tolerances import NORMALS

LARGEST = 2**32 - 1
# Random123's known answers for philox4x32-10: counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((LARGEST,) * 4, (LARGEST,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
needs_native = pytest.mark.skipif(native.native is None, reason="the native library is not built")
WORDS = st.integers(0, LARGEST)


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "reference"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each CPU kernel behind the op."""
    if request.param == "reference":
        monkeypatch.setattr(native, "native", None)
    return request.param


def seeds_of(images: int, run_seed: int = 7) -> Tensor:
    return torch.stack((torch.full((images,), run_seed), torch.arange(images)), dim=1)


def philox_in_integers(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """The paper's S-box form, on unbounded Python integers: a second opinion on the tensor arithmetic."""
    left, right = [counter[1], counter[3]], [counter[0], counter[2]]
    for number in range(10):
        keys = [(key[0] + number * 0x9E3779B9) % 2**32, (key[1] + number * 0xBB67AE85) % 2**32]
        products = [0xD2511F53 * right[0], 0xCD9E8D57 * right[1]]
        right = [(products[1] // 2**32) ^ keys[0] ^ left[0], (products[0] // 2**32) ^ keys[1] ^ left[1]]
        left = [products[1] % 2**32, products[0] % 2**32]
    return right[0], left[0], right[1], left[1]


def philox_in_tensors(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    words = reference.philox4x32([torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key])
    return tuple(int(word) for word in words)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    assert philox_in_integers(counter, key) == words
    assert philox_in_tensors(counter, key) == words


@given(counter=st.tuples(*[WORDS] * 4), key=st.tuples(*[WORDS] * 2))
def test_two_implementations_agree(counter: tuple[int, ...], key: tuple[int, ...]) -> None:
    assert philox_in_tensors(counter, key) == philox_in_integers(counter, key)


@pytest.mark.parametrize(("run_seed", "image", "step", "stream"), [(0, 0, 0, 0), (LARGEST,) * 4, (3, 2**31, 999, 1)])
def test_words_are_where_the_design_puts_them(kernel: str, run_seed: int, image: int, step: int, stream: int) -> None:
    words = philox_bits(torch.tensor([[run_seed, image]]), 999, step=step, stream=stream)[0]
    for element in (0, 1, 2, 3, 4, 255, 256, 998):
        block = philox_in_integers((element // 4, 0, step, stream), (image, run_seed))
        assert int(words[element]) == block[element % 4]


@needs_native
@pytest.mark.parametrize(("images", "count"), [(1, 1 << 20), (64, 16_411), (1000, 1), (3, 0), (0, 5)])
def test_native_words_equal_the_reference(images: int, count: int) -> None:
    seeds, step = seeds_of(images, run_seed=LARGEST), torch.tensor([12345])
    words = op.philox_bits_op(seeds, step, count, STEP_NOISE)
    assert words.shape == (images, count) and words.dtype == torch.int64 and words.is_contiguous()
    assert torch.equal(words, reference.philox_bits(seeds, step, count, STEP_NOISE))


@needs_native
@pytest.mark.parametrize(("images", "shape"), [(1, (1 << 21,)), (64, (3, 64, 64)), (5, (3, 7, 11)), (2, ()), (3, (0, 4))])
def test_native_normals_are_close_to_the_reference(images: int, shape: tuple[int, ...]) -> None:
    seeds, step = seeds_of(images), torch.tensor([2])
    normals = op.philox_normal_op(seeds, step, shape, STEP_NOISE)
    assert normals.shape == (images, *shape) and normals.dtype == torch.float32 and normals.is_contiguous()
    expected = reference.philox_normal(seeds, step, shape, STEP_NOISE)
    torch.testing.assert_close(normals, expected, **NORMALS)


@needs_native
def test_every_instruction_set_gives_the_same_normals() -> None:
    library = native.native
    assert library is not None
    drawn = []
    try:
        for name in library.instruction_sets():
            library.use_instruction_set(name)
            drawn.append((philox_bits(seeds_of(9), 3001), philox_normal(seeds_of(9), (3, 7, 143), step=5)))
    finally:
        library.use_instruction_set(library.instruction_sets()[-1])
    for words, normals in drawn[1:]:
        assert torch.equal(words, drawn[0][0]) and torch.equal(normals, drawn[0][1])


def test_reference_uniforms_round_as_float32() -> None:
    """The definition says float32(word): int64 -> float32 must round once, to nearest even."""
    words = torch.tensor([0, 1, 2**24 + 1, 2**24 + 3, 2**31 + 128, 2**31 + 384, LARGEST - 127, LARGEST - 128, LARGEST])
    nearest = [0, 1, 2**24, 2**24 + 4, 2**31, 2**31 + 512, 2**32, 2**32 - 256, 2**32]
    assert words.to(torch.float32).tolist() == nearest


@given(data=st.data())
@pytest.mark.parametrize("draw", [philox_bits, lambda seeds, count: philox_normal(seeds, (count,))])
def test_an_image_does_not_depend_on_its_batch(data: st.DataObject, draw: Callable[[Tensor, int], Tensor]) -> None:
    seeds = torch.tensor(data.draw(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=9)))
    count = data.draw(st.integers(1, 1100))
    whole = draw(seeds, count)
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, len(seeds) - 1), min_size=1, max_size=5)))
    prefix = data.draw(st.integers(0, count))
    assert torch.equal(draw(seeds[chosen], count), whole[chosen])
    assert torch.equal(draw(seeds, prefix), whole[:, :prefix])


def test_strided_seeds(kernel: str) -> None:
    seeds = seeds_of(6)
    assert torch.equal(philox_bits(seeds.T.contiguous().T, 9), philox_bits(seeds, 9))
    assert torch.equal(philox_normal(seeds[::2], (3, 5)), philox_normal(seeds, (3, 5))[::2])


def test_elements_count_in_logical_order(kernel: str) -> None:
    seeds = seeds_of(3)
    assert torch.equal(philox_normal(seeds, (3, 8, 8)).flatten(1), philox_normal(seeds, (192,)))


def test_thread_count_does_not_matter(kernel: str) -> None:
    seeds, before = seeds_of(40), torch.get_num_threads()
    drawn = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            drawn.append((philox_bits(seeds, 5000), philox_normal(seeds, (5, 1000))))
    finally:
        torch.set_num_threads(before)
    for words, normals in drawn[1:]:
        assert torch.equal(words, drawn[0][0]) and torch.equal(normals, drawn[0][1])


@pytest.mark.parametrize("step", [0, 1, 2**31, LARGEST])
def test_step_as_tensor_equals_step_as_int(kernel: str, step: int) -> None:
    seeds = seeds_of(4)
    for tensor in (torch.tensor([step]), torch.tensor(step), torch.tensor([[step]])):
        assert torch.equal(philox_bits(seeds, 10, step=tensor), philox_bits(seeds, 10, step=step))
        assert torch.equal(philox_normal(seeds, (2, 5), step=tensor), philox_normal(seeds, (2, 5), step=step))


def test_every_part_of_the_key_matters(kernel: str) -> None:
    base = philox_bits(torch.tensor([[1, 2]]), 64)
    others = [
        philox_bits(torch.tensor([[2, 2]]), 64),
        philox_bits(torch.tensor([[1, 3]]), 64),
        philox_bits(torch.tensor([[2, 1]]), 64),
        philox_bits(torch.tensor([[1, 2]]), 64, step=1),
        philox_bits(torch.tensor([[1, 2]]), 64, stream=STEP_NOISE),
    ]
    for other in others:
        assert int((other == base).sum()) == 0


@pytest.mark.parametrize("stream", [INITIAL_NOISE, STEP_NOISE])
def test_distribution_is_normal(kernel: str, stream: int) -> None:
    n = 1 << 20
    z = philox_normal(seeds_of(64, run_seed=2024), (n // 64,), step=5, stream=stream).double().flatten()
    # Each bound is 4.5 standard errors of its moment.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean().item() - moment) < 4.5 * math.sqrt(variance / n)
    # Kolmogorov-Smirnov at the level 0.001: 1.95 / sqrt(n).
    distribution = torch.special.ndtr(z.sort().values)
    rank = torch.arange(n, dtype=torch.float64)
    distance = torch.maximum(distribution - rank / n, (rank + 1) / n - distribution).max().item()
    assert distance < 1.95 / math.sqrt(n)
    # Neighbours, both halves of a Box-Muller pair and across pairs and images, are uncorrelated.
    for lag in (1, 2, 3, 4, n // 64):
        assert abs((z[lag:] * z[:-lag]).mean().item()) < 4.5 / math.sqrt(n - lag)


def test_words_are_uniform_bit_by_bit(kernel: str) -> None:
    n = 1 << 18
    words = philox_bits(seeds_of(8), n // 8).flatten()
    assert int(words.min()) >= 0 and int(words.max()) <= LARGEST
    for bit in range(32):
        assert abs(((words >> bit) & 1).double().mean().item() - 0.5) < 4.5 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("step", [torch.tensor([3]), torch.tensor(3)])
def test_opcheck(kernel: str, step: Tensor) -> None:
    seeds = seeds_of(3)
    torch.library.opcheck(op.philox_bits_op, (seeds, step, 10, STEP_NOISE))
    torch.library.opcheck(op.philox_normal_op, (seeds, step, [3, 4, 5], STEP_NOISE))
    torch.library.opcheck(op.philox_normal_op, (seeds.T.contiguous().T, step, [7], STEP_NOISE))


def test_compiles_whole(kernel: str) -> None:
    def noisy(x: Tensor, seeds: Tensor, step: Tensor) -> Tensor:
        words = philox_bits(seeds, 4, step=3)
        return x + philox_normal(seeds, x.shape[1:], step=step, stream=STEP_NOISE) + (words[:, :1, None, None] & 1)

    # aot_eager: dynamo, fake tensors and autograd tracing, without a C++ compiler at test time.
    torch.compiler.reset()
    compiled = torch.compile(noisy, fullgraph=True, backend="aot_eager")
    for images, size in ((2, 8), (3, 8), (5, 6)):
        arguments = torch.ones(images, 3, size, size), seeds_of(images), torch.tensor([size])
        assert torch.equal(compiled(*arguments), noisy(*arguments))


def refusals() -> dict[str, tuple[Callable[[], Tensor], str]]:
    seeds = seeds_of(2)
    return {
        "seeds of one column": (lambda: philox_bits(seeds[:, :1], 4), "seeds"),
        "seeds of one dimension": (lambda: philox_bits(seeds[0], 4), "seeds"),
        "int32 seeds": (lambda: philox_normal(seeds.int(), (4,)), "seeds"),
        "negative seed": (lambda: philox_normal(seeds - 8, (4,)), "seeds.*-8"),
        "seed of 33 bits": (lambda: philox_bits(seeds + 2**32, 4), "seeds.*429496730"),
        "negative count": (lambda: philox_bits(seeds, -1), "count.*-1"),
        "negative extent": (lambda: philox_normal(seeds, (3, -2)), r"shape.*\(3, -2\)"),
        "negative step": (lambda: philox_bits(seeds, 4, step=-1), "step.*-1"),
        "step of 33 bits": (lambda: philox_bits(seeds, 4, step=2**32), "step.*4294967296"),
        "negative step in a tensor": (lambda: philox_bits(seeds, 4, step=torch.tensor([-1])), "step.*-1"),
        "two steps": (lambda: philox_bits(seeds, 4, step=torch.tensor([1, 2])), r"step.*\[2\]"),
        "float step": (lambda: philox_bits(seeds, 4, step=torch.tensor([1.0])), "step.*float32"),
        "step elsewhere": (
            lambda: philox_bits(seeds, 4, step=torch.zeros(1, dtype=torch.int64, device="meta")),
            "meta",
        ),
        "negative stream": (lambda: philox_bits(seeds, 4, stream=-1), "stream.*-1"),
    }


@pytest.mark.parametrize("case", refusals())
def test_refuses_in_one_line(kernel: str, case: str) -> None:
    call, message = refusals()[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_words_are_the_same_on_a_gpu() -> None:
    seeds = seeds_of(16)
    words = philox_bits(seeds.cuda(), 10_000, step=torch.tensor([4], device="cuda"), stream=STEP_NOISE)
    assert torch.equal(words.cpu(), philox_bits(seeds, 10_000, step=4, stream=STEP_NOISE))
    normals = philox_normal(seeds.cuda(), (3, 64, 64), step=4)
    torch.testing.assert_close(normals.cpu(), philox_normal(seeds, (3, 64, 64), step=4), **NORMALS)
