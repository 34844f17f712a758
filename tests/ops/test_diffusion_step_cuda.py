"""The CUDA diffusion step without a GPU: its machine code is inspected, and its source is run on the CPU, block by block.

What nvcc makes of it has never run on a GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcond.ops import native
from fastcond.ops.diffusion_step import cpu
from fastcond.ops.diffusion_step.native_call import native_call
from tests.support.samplers import seeds_of

SOURCE = "kernels/cuda/diffusion_step.cu"
INCLUDES = ["-Ikernels", "-Ikernels/include"]
ARCHITECTURES = [80, 90, 100, 120]
KERNELS = 12  # three dtypes, four ways to lie in memory
VECTOR_KERNELS = 9


def tool(name: str) -> str:
    """nvcc, or cuobjdump, which comes with Triton too; skips the test where there is none."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        found = shutil.which(name, path=str(Path(triton.origin).parent / "backends/nvidia/bin"))
    if found is None:
        pytest.skip(f"{name} is not here")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code_has_no_spills_no_stack_no_double_and_wide_accesses(
    architecture: int, repository: Path, tmp_path: Path
) -> None:
    nvcc, cuobjdump, cubin = tool("nvcc"), tool("cuobjdump"), tmp_path / "step.cubin"
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if f"sm_{architecture}" not in known:
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    options = [f"-arch=sm_{architecture}", "-std=c++17", "-O3", "--fmad=false", "-cubin", "-Xptxas", "-v"]
    command = [nvcc, *options, *INCLUDES, "-o", str(cubin), SOURCE]
    compiled = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    memory = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", compiled.stderr)
    # Subroutines of the same function, such as a division, have lines of their own.
    assert len(memory) >= KERNELS and set(memory) == {("0", "0", "0")}
    listing = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    functions = {part.split("\n")[0].strip(): part for part in listing.split("Function : ")[1:]}
    assert len(functions) == KERNELS
    vector = 0
    for name, text in functions.items():
        opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", text)
        assert opcodes, name
        assert not [op for op in opcodes if re.match(r"D(ADD|MUL|FMA|SETP|MNMX)\b", op) or "F64" in op or "64H" in op], name
        assert not [op for op in opcodes if re.match(r"(LDL|STL|ATOM|RED|BAR)\b", op)], name
        stores = {op for op in opcodes if op.startswith("STG")}
        if "ReachE3" not in name:  # all but the one that takes any shape
            vector += 1
            assert stores == {"STG.E.128"} and any(op.startswith("LDG.E") and "128" in op for op in opcodes), (name, stores)
    assert vector == VECTOR_KERNELS


class Step(ctypes.Structure):
    """kernels/include/fastcond/step.h's DiffusionStep."""

    _fields_ = [
        *[(f"pointer{i}", ctypes.c_void_p) for i in range(10)],
        *[(f"size{i}", ctypes.c_int64) for i in range(5)],
        ("channels_last", ctypes.c_bool),
        ("draws_noise", ctypes.c_bool),
        ("stored", ctypes.c_int),
    ]


@pytest.fixture(scope="module")
def on_the_cpu(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The launcher, its kernels run by tests/support/cuda_on_the_cpu.h."""
    compiler, library = shutil.which("g++"), tmp_path_factory.mktemp("cuda") / "step.so"
    if compiler is None or native.native is None:
        pytest.skip("there is no g++, or no native library to compare with")
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-w", "-shared", "-fPIC", "-x", "c++"]
    stand_in = ["-include", "tests/support/cuda_on_the_cpu.h"]
    subprocess.run([compiler, *options, *stand_in, *INCLUDES, SOURCE, "-o", str(library)], cwd=repository, check=True)
    launch = ctypes.CDLL(str(library)).fastcond_diffusion_step_cuda
    launch.restype = ctypes.c_char_p
    return launch


SHAPES = {
    "row": ((3, 2, 4, 5), False),
    "row, many blocks": ((2, 3, 64, 64), False),
    "ragged row": ((3, 3, 5, 3), False),
    "three channels": ((3, 3, 6, 4), True),
    "three channels, many blocks": ((2, 3, 64, 64), True),
    "four channels": ((2, 4, 4, 3), True),
    "twelve channels": ((3, 12, 2, 6), True),
    "ragged channels": ((3, 5, 3, 4), True),
    "ragged positions": ((2, 4, 3, 5), True),
}


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("options", ["all", "no history", "no guidance", "no noise", "unaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SHAPES)
def test_the_source_gives_the_bits_of_the_cpu_kernel(
    name: str, dtype: torch.dtype, options: str, halves: int, on_the_cpu: Any
) -> None:
    (batch, *image), channels_last = SHAPES[name]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(3)

    def drawn(images: int = batch) -> torch.Tensor:
        return torch.randn(images, *image, generator=generator).contiguous(memory_format=memory_format)

    x, cond, uncond, history = drawn(), drawn().to(dtype), drawn().to(dtype), drawn()
    if options == "unaligned":
        shifted = torch.empty(x.numel() + 1)[1:].as_strided(x.shape, x.stride())
        x = shifted.copy_(x)
    coefficients = torch.rand(4, 8, generator=generator) + 0.3
    operands = (
        cond,
        None if options == "no guidance" else uncond,
        None if options == "no history" else history,
        coefficients,
        torch.tensor([2]),
        None if options == "no guidance" else torch.linspace(0.5, 3, batch),
        seeds_of(batch),
        options != "no noise",
    )
    results = [(torch.full_like(drawn(halves * batch), torch.nan), torch.full_like(x, torch.nan)) for _ in range(2)]
    cpu.step_into(x, *operands, *results[0])
    call = native_call(x, *operands, *results[1])
    assert call is not None
    assert on_the_cpu(ctypes.byref(Step(*call.tensors, *call.numbers)), None) is None
    for ours, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(ours, expected) and not ours.isnan().any()
