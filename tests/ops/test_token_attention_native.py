"""The native token_attention alone: parity on every instruction set; the same bits in any batch and with any threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastcond.ops import native, token_attention
from tests.ops.test_token_attention import CASES
from tests.support.kernels import instruction_set, library_calls  # noqa: F401
from tests.support.token_attention import Case, check_parity, run

if native.native is None:
    pytest.skip("the native library was not built", allow_module_level=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_instruction_set_follows_the_parity_rule(case: Case, instruction_set: str) -> None:  # noqa: F811
    check_parity(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_image_has_the_same_bits_in_any_batch_and_with_any_threads(case: Case, instruction_set: str) -> None:  # noqa: F811
    case = replace(case, shape=(5, *case.shape[1:]))
    operands = case.operands()
    torch.set_num_threads(1)
    try:
        whole = run(token_attention, *operands, case.heads)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for images in (slice(0, 5), slice(0, 1), slice(2, 4)):
                part = run(token_attention, *(value[images] for value in operands), case.heads)
                assert all(torch.equal(a, b[images]) for a, b in zip(part, whole, strict=True)), (threads, images)
    finally:
        torch.set_num_threads(2)


def test_strided_operands() -> None:
    """Tokens with gaps, channels with gaps, an image that is all images: the same bits as without."""
    q, k, v, dy = Case((3, 10, 16), 2).operands()
    plain = run(token_attention, q, k[:1].repeat(3, 1, 1), v, dy, 2)
    tokens_apart, channels_apart = torch.cat((q, q), dim=1)[:, :10], torch.stack((v, v), dim=3)[..., 0]
    turned = dy.transpose(0, 1).contiguous().transpose(0, 1)
    again = run(token_attention, tokens_apart, k[:1].expand(3, -1, -1), channels_apart, turned, 2)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_the_native_kernels_are_what_runs(library_calls: list[str]) -> None:  # noqa: F811
    """A fall-back that nobody notices would make every test of this file empty."""
    run(token_attention, *Case((2, 9, 12), 3).operands(), 3)
    assert library_calls == ["token_attention", "token_attention"]
