"""Who evaluates a network: we, diffusers, and the runtimes that a network of diffusers is taken to.

A peer prepares a network once, for the timesteps and labels of a run, and then evaluates it row by row:

    evaluate = PEERS["OpenVINO"].prepare(network, weights, timesteps, labels, threads)
    out = evaluate(x, row)            # float32 [B, C, H, W] -> float32 [B, C, H, W], at timesteps[row]

Preparing ends where nothing of it is left to an evaluation: what is converted is converted, what is compiled is compiled. Each
has the setting that was the fastest of those tried, on a processor with AVX-512 and bf16; what was tried is said where it is set.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import Network

Evaluate = Callable[[Tensor, int], Tensor]
Prepare = Callable[[Network, dict[str, Tensor], Tensor, Tensor, int], Evaluate]


@dataclass(frozen=True)
class Peer:
    """packages: what it needs installed. precision: of its arithmetic, "fp32" or "bf16".

    prepare: (network, weights, timesteps int64 [rows], labels int64 [B], threads) -> evaluate.
    """

    packages: tuple[str, ...]
    precision: str
    prepare: Prepare

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if absent:
            return f"{', '.join(absent)} not installed; the extra `peers` has what is needed"
        if self.precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return "this processor has no bf16"
        return None


def ours(network: Network, weights: dict[str, Tensor], timesteps: Tensor, labels: Tensor, threads: int) -> Evaluate:
    """As `fastcond.generate` evaluates: the conditioning of the run's rows is worked out before."""
    from fastcond.engine.frozen_unet import FrozenUNet

    torch.set_num_threads(threads)
    denoiser = FrozenUNet(network.ours(weights).to(memory_format=torch.channels_last)).denoiser(timesteps, labels)
    rows = torch.arange(len(timesteps)).split(1)
    return lambda x, row: denoiser(x.contiguous(memory_format=torch.channels_last), rows[row])


def diffusers(
    network: Network,
    weights: dict[str, Tensor],
    timesteps: Tensor,
    labels: Tensor,
    threads: int,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Evaluate:
    """The module as it is."""
    torch.set_num_threads(threads)
    model = network.theirs(weights).to(memory_format=memory_format)
    return lambda x, row: model(x.contiguous(memory_format=memory_format), timesteps[row], class_labels=labels).sample


def compiled(
    network: Network, weights: dict[str, Tensor], timesteps: Tensor, labels: Tensor, threads: int, dtype: torch.dtype
) -> Evaluate:
    """torch.compile for exactly these shapes. Its caches on the disk are not used.

    Of an evaluation of the 16x16 network at batch 8 on one core, milliseconds, and seconds to compile it: 40 and 50 as it comes
    (in either memory format), 37 to 40 and 45 with weights frozen, 35 and 130 with max_autotune too; in bf16 27 and 50 with
    weights frozen (in either format), 30 and 190 with max_autotune too. What max_autotune finds is noise unless the machine is
    quiet.
    """
    torch.set_num_threads(threads)
    torch.compiler.reset()
    call = torch.compile(_Network(network.theirs(weights)), fullgraph=True, dynamic=False, options=COMPILE_OPTIONS[dtype])

    def evaluate(x: Tensor, row: int) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return call(x, timesteps[row].expand(len(labels)), labels).float()

    with torch.no_grad(), torch.compiler.config.patch(force_disable_caches=True):
        evaluate(_example(network, labels)[0], 0)
    return evaluate


def openvino(
    network: Network, weights: dict[str, Tensor], timesteps: Tensor, labels: Tensor, threads: int, precision: str
) -> Evaluate:
    """Static shapes, one request at a time with all threads.

    By way of ONNX: taken from the module itself, traced or exported, a network is as fast in bf16, and in fp32 `compile_model`
    of OpenVINO 2026.4.1 ends in a segmentation fault (on Zen 5).
    """
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }
    request = core.compile_model(
        core.read_model(io.BytesIO(_onnx(network, weights, labels))), "CPU", settings
    ).create_infer_request()
    label = labels.numpy()

    def evaluate(x: Tensor, row: int) -> Tensor:
        inputs = [x.contiguous().numpy(), timesteps[row].expand(len(labels)).contiguous().numpy(), label]
        return torch.from_numpy(request.infer(inputs, share_inputs=True, share_outputs=True)[0])

    return evaluate


def onnxruntime(network: Network, weights: dict[str, Tensor], timesteps: Tensor, labels: Tensor, threads: int) -> Evaluate:
    """All of its optimisations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(_onnx(network, weights, labels), options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    label = labels.numpy()

    def evaluate(x: Tensor, row: int) -> Tensor:
        inputs = (x.contiguous().numpy(), timesteps[row].expand(len(labels)).contiguous().numpy(), label)
        return torch.from_numpy(session.run(None, dict(zip(names, inputs, strict=True)))[0])

    return evaluate


class _Network(nn.Module):
    """A network of diffusers with positional arguments and a tensor for a result."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        return self.model(x, timestep, class_labels=label, return_dict=False)[0]  # type: ignore[no-any-return]


def _example(network: Network, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments of the shapes of a run."""
    x = torch.zeros(len(labels), network.config.in_channels, *network.config.image_size)
    return x, torch.zeros(len(labels), dtype=torch.int64), labels


def _onnx(network: Network, weights: dict[str, Tensor], labels: Tensor) -> bytes:
    """The network as an ONNX file. By the exporter that traces: the newer one takes five times as long, to a graph no faster."""
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = _Network(network.theirs(weights)).eval()
        torch.onnx.export(model, _example(network, labels), file, dynamo=False, opset_version=18)
    return file.getvalue()


COMPILE_OPTIONS: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"freezing": True, "max_autotune": True},
    torch.bfloat16: {"freezing": True},
}
COMPILED = ("diffusers compiled", "diffusers compiled, bf16")
PEERS = {
    "ours": Peer((), "fp32", ours),
    "diffusers": Peer(("diffusers",), "fp32", diffusers),
    "diffusers, channels_last": Peer(("diffusers",), "fp32", partial(diffusers, memory_format=torch.channels_last)),
    "diffusers compiled": Peer(("diffusers",), "fp32", partial(compiled, dtype=torch.float32)),
    "diffusers compiled, bf16": Peer(("diffusers",), "bf16", partial(compiled, dtype=torch.bfloat16)),
    "ONNX Runtime": Peer(("diffusers", "onnx", "onnxruntime"), "fp32", onnxruntime),
    "OpenVINO": Peer(("diffusers", "onnx", "openvino"), "fp32", partial(openvino, precision="f32")),
    "OpenVINO, bf16": Peer(("diffusers", "onnx", "openvino"), "bf16", partial(openvino, precision="bf16")),
}
