"""What a command loads before its first image: guarded by what is loaded, not by the clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastcond
from fastcond.config import SAMPLER_NAMES
from fastcond.diffusion import SAMPLERS
from tests.support.command_lines import REPOSITORY
from tests.support.tiny_runs import write_run

# Beyond what `import torch` loads by itself: slow, and of no use to a sample drawn on a CPU.
HEAVY = """
accelerate diffusers functorch huggingface_hub hypothesis jinja2 matplotlib mpmath networkx onnxruntime openvino pandas pytest
scipy sklearn sympy torch._dynamo torch._functorch torch._inductor torch.ao torch.compiler._cache torch.distributed torch.export
torch.fx.experimental.symbolic_shapes torch.onnx torch.optim torch.profiler torch.utils.data torch.utils.tensorboard torchvision
tqdm transformers triton PIL.GifImagePlugin PIL.JpegImagePlugin PIL.PngImagePlugin fastcond.data fastcond.evaluation
fastcond.interop.drop_in fastcond.interop.diffusers fastcond.training.trainer
""".split()
SAMPLE = """
import json, runpy, sys
import torch
before = set(sys.modules)
sys.argv = ["sample", *json.loads(sys.argv[1])]
try:
    runpy.run_module("fastcond.sample", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(set(sys.modules) - before)))
"""
# Ctrl-C at the moment when a module begins to load.
INTERRUPT = """
import os, runpy, signal, sys

_, last, module, *flags = sys.argv

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == last:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = [module, *flags]
runpy.run_module(module, run_name="__main__")
"""


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def is_heavy(module: str) -> bool:
    return any(module == heavy or module.startswith(f"{heavy}.") for heavy in HEAVY)


def test_a_sample_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    flags = ["--run", str(write_run(tmp_path / "run")), "--label", "1", "--cfg", "2.5", "--steps", "2", "--n", "1"]
    result = python(SAMPLE, json.dumps([*flags, "--device", "cpu", "--out", str(tmp_path / "s")]))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "s" / "grid.png").exists() and (tmp_path / "s" / "1-bright-00000.png").exists()
    assert not [module for module in json.loads(result.stdout.splitlines()[-1]) if is_heavy(module)]


@pytest.mark.parametrize(
    "command", ["from fastcond.sample import build_parser; build_parser()", "import fastcond; dir(fastcond)"]
)
def test_flags_are_read_before_pytorch_is_loaded(command: str) -> None:
    result = python(f"{command}; import sys; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])")
    assert result.stdout == "[]\n", result.stdout + result.stderr


@pytest.mark.parametrize("module", ["fastcond.drawing", "torch", "torch.nn", "fastcond.engine", "PIL"])
def test_ctrl_c_while_modules_load_is_one_line(module: str) -> None:
    result = python(INTERRUPT, module, "fastcond.sample", "--label", "2")
    assert (result.returncode, result.stderr) == (130, "python -m fastcond.sample: interrupted\n")


@pytest.mark.parametrize("module", ["torch", "fastcond.training"])
def test_ctrl_c_while_training_loads_is_one_line(module: str) -> None:
    result = python(INTERRUPT, module, "fastcond.train")
    assert (result.returncode, result.stderr) == (130, "python -m fastcond.train: interrupted\n")


def test_public_names_are_found_when_they_are_asked_for() -> None:
    script = (
        "import fastcond; assert not set(fastcond.__all__) - set(dir(fastcond)); from fastcond import *; print(generate, Run)"
    )
    result = python(script)
    assert result.returncode == 0 and "function generate" in result.stdout, result.stderr
    for name in fastcond.__all__:
        assert getattr(fastcond, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        fastcond.sampel  # noqa: B018
    with pytest.raises(ImportError, match="nothing_here"):
        exec("from fastcond.training import nothing_here")


def test_the_flag_names_every_sampler() -> None:
    assert tuple(SAMPLERS) == SAMPLER_NAMES
