"""The network that a GPU runs: its own weights, kept up to date; one compilation for all batch sizes; the precision chosen."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fastcond.config import CONDITIONINGS
from fastcond.engine import compile as engine_compile
from fastcond.engine import generate
from fastcond.engine.compile import CompiledUNet, choose_dtype
from fastcond.engine.conditioning_table import ConditioningTable
from fastcond.nn import ConditionalUNet
from tests.support.networks import SKIP_BLOCKS, perturb, small_unet
from tests.tolerances import assert_network_close, assert_parity

BATCHES = (16, 17, 20, 24, 31, 32, 48, 63, 100, 256)  # tests/test_compile.py says why from 16 on
ONE_LEVEL: dict[str, Any] = {"attention_resolutions": (), "block_out_channels": (8,)}
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")


@pytest.fixture
def one_graph() -> Iterator[None]:
    """A second compilation of the same function is an error."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch.compiler.reset()


def operands(model: ConditionalUNet, batch: int, timestep: int = 500) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t, timestep, label, and the columns that stand for the two."""
    generator = torch.Generator().manual_seed(batch)
    x_t = torch.randn(batch, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
    label, timesteps = torch.arange(batch) % 4, torch.tensor([timestep])
    table = ConditioningTable(model, timesteps, label)
    columns = table.row(0).index_select(0, table.slots(label))
    return x_t, timesteps.expand(batch), label, columns.detach()


@torch.no_grad()
def outputs(model: ConditionalUNet, network: CompiledUNet, batch: int) -> tuple[Tensor, Tensor]:
    """The network's and the model's."""
    x_t, timestep, label, columns = operands(model, batch)
    return network(x_t, columns), model(x_t, timestep, label)


@pytest.mark.parametrize("resample", ["conv", "resnet"])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_it_is_the_model(conditioning: str, resample: str) -> None:
    model = small_unet(conditioning=conditioning, resample=resample, class_embedding_mlp=True, dropout=0.5)
    network = CompiledUNet(model, torch.float32, compiled=False)
    ours, _ = outputs(model, network, 5)
    assert model.training, "and the model is left as it was"
    assert_network_close(ours, outputs(model.eval(), network, 5)[1])


@pytest.mark.parametrize("conditioning", ["adagn", "scale_shift", "bias"])
def test_it_is_the_model_of_skip_blocks(conditioning: str) -> None:
    model = small_unet(**{**SKIP_BLOCKS, "conditioning": conditioning}).eval()
    ours, expected = outputs(model, CompiledUNet(model, torch.float32, compiled=False), 5)
    assert_network_close(ours, expected)


def test_bfloat16_loses_no_more_than_autocast() -> None:
    model = small_unet().eval()
    network = CompiledUNet(model, torch.bfloat16, compiled=False)
    ours, expected = outputs(model, network, 16)
    x_t, timestep, label, _ = operands(model, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        autocast = model(x_t, timestep, label)
    assert ours.dtype == autocast.dtype == torch.bfloat16
    assert_parity("bfloat16", ours, autocast, expected)


def test_what_is_cast_and_what_is_not() -> None:
    network = CompiledUNet(small_unet(conditioning="scale_shift"), torch.bfloat16, compiled=False)
    tensors = network.static_tensors()
    for name, value in tensors.items():
        assert value.dtype == (torch.float32 if "norm" in name else torch.bfloat16), name
        assert value.dim() != 4 or value.is_contiguous(memory_format=torch.channels_last), name
    assert not [name for name in tensors if "emb" in name or "linear" in name], "what the table stands for"


def test_autocast_around_it_changes_nothing() -> None:
    model = small_unet().eval()
    network = CompiledUNet(model, torch.float32, compiled=False)
    x_t, _, _, columns = operands(model, 4)
    with torch.no_grad():
        expected = network(x_t, columns)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network(x_t, columns), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_copied_into_place(dtype: torch.dtype) -> None:
    model = small_unet().eval()
    network = CompiledUNet(model, dtype, compiled=False)
    before = network.static_tensors()
    addresses = {name: value.data_ptr() for name, value in before.items()}
    perturb(model, seed=9)
    assert network.fits(model)
    network.refresh(model)
    fresh = CompiledUNet(model, dtype, compiled=False).static_tensors()
    assert {name: value.data_ptr() for name, value in network.static_tensors().items()} == addresses
    assert all(torch.equal(value, fresh[name]) for name, value in network.static_tensors().items())


@pytest.mark.parametrize("changes", [{}, {"conditioning": "bias"}], ids=str)
def test_one_compilation_serves_every_batch_size(one_graph: None, changes: dict[str, Any]) -> None:
    model = small_unet(**changes).eval()
    backend = CompileCounterWithBackend("aot_eager")
    compiler = torch.compile

    def counted(function: Any, *, options: Any, **settings: Any) -> Any:
        assert settings["fullgraph"] and not options["triton.cudagraphs"] and not options["max_autotune"]
        return compiler(function, backend=backend, **settings)

    with mock.patch.object(torch, "compile", counted):
        network = CompiledUNet(model, torch.float32, compiled=True)
    for batch in BATCHES:
        assert_network_close(*outputs(model, network, batch))
    assert network.is_compiled and backend.frame_count == 1


@needs_compiler
def test_inductor_computes_the_same_and_sees_new_weights(one_graph: None) -> None:
    model = small_unet(**ONE_LEVEL).eval()
    with warnings.catch_warnings():
        # A compilation that fails is a warning, and would leave nothing to be tested.
        warnings.filterwarnings("error", "torch.compile failed")
        network = CompiledUNet(model, torch.float32, compiled=True)
        for batch in BATCHES:
            assert_network_close(*outputs(model, network, batch))
        perturb(model, seed=4)
        network.refresh(model)
        assert_network_close(*outputs(model, network, 32))
    assert network.is_compiled


def test_a_compilation_that_fails_is_one_line_and_the_network_runs_without(one_graph: None) -> None:
    def broken(graph: Any, operands: Any) -> Any:
        raise RuntimeError("no compiler\nwas found")

    model, compiler = small_unet(**ONE_LEVEL).eval(), torch.compile
    with mock.patch.object(torch, "compile", lambda f, *, options, **settings: compiler(f, backend=broken, **settings)):
        network = CompiledUNet(model, torch.float32, compiled=True)
    with pytest.warns(UserWarning, match=r"^torch.compile failed \(.*no compiler was found.*\); sampling goes on") as caught:
        assert_network_close(*outputs(model, network, 4))
    assert len([w for w in caught if "torch.compile" in str(w.message)]) == 1 and "\n" not in str(caught[0].message)
    assert not network.is_compiled
    assert_network_close(*outputs(model, network, 5))


def test_an_error_of_what_is_compiled_stays_one(one_graph: None) -> None:
    model, compiler = small_unet(**ONE_LEVEL).eval(), torch.compile

    def failing(graph: Any, operands: Any) -> Any:
        def run(*_: Any) -> Any:
            raise torch.OutOfMemoryError("of a GPU")

        return run

    with mock.patch.object(torch, "compile", lambda f, *, options, **settings: compiler(f, backend=failing, **settings)):
        network = CompiledUNet(model, torch.float32, compiled=True)
    with pytest.raises(torch.OutOfMemoryError):
        outputs(model, network, 4)
    assert network.is_compiled


class OnGpu:
    """Stands for a model on a GPU that is not here."""

    def parameters(self) -> Iterator[Any]:
        yield mock.Mock(device=torch.device("cuda"))


@pytest.mark.parametrize(
    ("precision", "bf16", "dtype"),
    [
        (None, True, torch.bfloat16),
        (None, False, torch.float32),
        ("fp32", True, torch.float32),
        ("bf16", True, torch.bfloat16),
        ("bf16", False, torch.bfloat16),
    ],
)
def test_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch, precision: str | None, bf16: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(engine_compile, "has_bf16", lambda device: bf16)
    assert choose_dtype(precision, OnGpu()) == dtype  # type: ignore[arg-type]


def test_precision_and_compilation_on_a_cpu() -> None:
    model = small_unet()
    assert choose_dtype(None, model) == choose_dtype("fp32", model) == torch.float32
    for options, message in (
        ({"precision": "bf16"}, "precision is 'bf16', which is for GPUs; on a CPU leave it out or give 'fp32'"),
        ({"precision": "fp8"}, "precision is 'fp8'; choose one of fp32, bf16"),
        ({"compile": True}, "compile is True, which is for GPUs; on a CPU leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(model, [0], steps=1, **options)
    assert (generate(model, [0], steps=1, precision="fp32", compile=False) == generate(model, [0], steps=1)).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rng": "torch"}, "rng torch"),
        ({"rng": [torch.Generator()]}, "rng torch"),
        ({"guide": small_unet()}, "guide"),
        ({"cfg_plus_plus": True}, "cfg_plus_plus"),
        ({"cfg_plus_plus": True, "rng": torch.Generator()}, "rng torch and cfg_plus_plus"),
    ],
)
def test_what_runs_row_by_row_refuses_what_has_no_effect(options: dict[str, Any], reason: str) -> None:
    """And takes what it does anyway."""
    model, settings = small_unet(), {"steps": 2, "sampler": "ddim", **options}
    for asked, flags in (("precision bf16", {"precision": "bf16"}), ("compile", {"compile": True})):
        message = f"{asked} has no effect with {reason}: images are then drawn row by row in the model's own precision; leave it"
        with pytest.raises(ValueError, match=message):
            generate(model, [0], **flags, **settings)
    assert generate(model, [0], precision="fp32", compile=False, **settings).shape == (1, 8, 8, 3)
    vectors = small_unet(conditioning="label_attention")
    with pytest.raises(ValueError, match="compile has no effect with labels that are vectors: images"):
        generate(vectors, np.eye(3, dtype=np.float32), steps=1, compile=True)
