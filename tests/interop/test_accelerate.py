"""fastcond.accelerate: diffusers' networks compute, train, copy and save as before, through the fused norm."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastcond
from fastcond.interop.drop_in import FusedNorm, FusedResnetBlock
from tests.support.diffusers_networks import CONFIGS, build, call, in_float64, inputs, output_and_gradients
from tests.support.networks import perturb
from tests.tolerances import FP64, assert_gradient_parity, assert_network_close, assert_parity

pytest.importorskip("diffusers")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Counting(TorchDispatchMode):
    """Counts what runs inside, by the op's name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name()] += 1
        return func(*args, **(kwargs or {}))


def counted(model: nn.Module) -> Counter[str]:
    with Counting() as counting, torch.no_grad():
        call(model, inputs(model))
    return counting.calls


def check_parity(model: nn.Module, arguments: dict[str, Tensor]) -> None:
    exact = output_and_gradients(*in_float64(model, arguments))
    theirs = output_and_gradients(model, arguments)
    ours = output_and_gradients(fastcond.accelerate(copy.deepcopy(model)), arguments)
    assert ours[0].dtype == theirs[0].dtype and ours[0].shape == theirs[0].shape
    assert_parity("output", ours[0], theirs[0], exact[0])
    assert_gradient_parity(ours[1], theirs[1], exact[1], ours[0].dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_output_and_gradients(name: str, layout: str) -> None:
    model = build(name).to(memory_format=LAYOUTS[layout])
    arguments = inputs(model)
    arguments["sample"] = arguments["sample"].contiguous(memory_format=LAYOUTS[layout])
    check_parity(model, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["default", "scale_shift", "text"])
def test_output_and_gradients_in_bfloat16(name: str, layout: str) -> None:
    model = build(name, dropout=0.0).to(torch.bfloat16).to(memory_format=LAYOUTS[layout])
    check_parity(model, inputs(model))


@pytest.mark.parametrize("name", ["default", "scale_shift"])
def test_output_and_gradients_under_autocast(name: str) -> None:
    model = build(name, dropout=0.0)
    arguments = inputs(model)
    exact = output_and_gradients(*in_float64(model, arguments))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = output_and_gradients(model, arguments)
        ours = output_and_gradients(fastcond.accelerate(copy.deepcopy(model)), arguments)
    assert ours[0].dtype == theirs[0].dtype
    assert_parity("output", ours[0], theirs[0], exact[0])
    assert_gradient_parity(ours[1], theirs[1], exact[1], torch.bfloat16)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_norm_is_left_behind(name: str) -> None:
    model = build(name)
    before = counted(model)
    after = counted(fastcond.accelerate(model))
    skip_norms = sum(hasattr(part, "skip_norm") and part.skip_norm is not None for part in model.modules())
    assert after["fastcond::ada_group_norm"] == before["aten::native_group_norm"] - skip_norms > 0
    assert after["aten::native_group_norm"] == skip_norms
    blocks = sum(isinstance(part, FusedResnetBlock) for part in model.modules())
    assert before["aten::silu"] - after["aten::silu"] == 2 * blocks + 1 > 1


@pytest.mark.parametrize("name", CONFIGS)
def test_the_state_is_the_same(name: str) -> None:
    model = build(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    kinds = {key: type(part).__name__ for key, part in model.named_modules() if "norm" not in key and key != "conv_act"}
    assert fastcond.accelerate(model) is model
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(value is parameters[key] for key, value in model.named_parameters())
    assert {key: type(part).__name__ for key, part in model.named_modules() if key in kinds} == kinds


def test_blocks_and_norms_are_what_they_were() -> None:
    from diffusers.models.resnet import ResnetBlock2D

    plain, fused = build("default"), fastcond.accelerate(build("default"))
    for kind in (ResnetBlock2D, nn.GroupNorm):
        instances = [[key for key, part in model.named_modules() if isinstance(part, kind)] for model in (plain, fused)]
        assert instances[0] == instances[1] and instances[0]


def test_accelerating_again_changes_nothing() -> None:
    model = fastcond.accelerate(build("default"))
    expected, kinds = call(model, inputs(model)), [type(part) for part in model.modules()]
    assert fastcond.accelerate(model) is model
    assert [type(part) for part in model.modules()] == kinds
    assert torch.equal(call(model, inputs(model)), expected)
    assert fastcond.accelerate(nn.Sequential(model))[0] is model


def test_evaluation_has_no_dropout() -> None:
    model = build("default", dropout=0.5)
    fused = fastcond.accelerate(copy.deepcopy(model))
    outputs = [call(part.train(training), inputs(part)) for part in (model, fused) for training in (True, False)]
    assert_network_close(outputs[2], outputs[0])
    assert_network_close(outputs[3], outputs[1])
    assert not torch.allclose(outputs[2], outputs[3])


def test_large_batches() -> None:
    # diffusers treats 64 images and more apart where it upsamples.
    model = build("resampling inside").eval()
    with torch.no_grad():
        expected = call(model, inputs(model, batch=64))
        assert_network_close(call(fastcond.accelerate(model), inputs(model, batch=64)), expected)


def by_deepcopy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def by_pickle(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("by", [by_deepcopy, by_pickle])
@pytest.mark.parametrize("name", ["default", "text, simple"])
def test_a_copy_is_fused_and_its_own(name: str, by: Any) -> None:
    model = fastcond.accelerate(build(name))
    expected = call(model, inputs(model))
    copied = by(model)
    assert torch.equal(call(copied, inputs(model)), expected)
    assert counted(copied) == counted(model)
    perturb(copied, seed=5, size=1.0)
    assert torch.equal(call(model, inputs(model)), expected)
    assert not torch.equal(call(copied, inputs(model)), expected)


@pytest.mark.parametrize("name", ["default", "text"])
def test_saves_as_diffusers_own(name: str, tmp_path: Path) -> None:
    plain = build(name).eval()
    model = fastcond.accelerate(copy.deepcopy(plain))
    for folder, saved in (("plain", plain), ("fused", model)):
        saved.save_pretrained(tmp_path / folder)
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "fused" / path.name).read_bytes() == path.read_bytes()
    loaded = type(model).from_pretrained(tmp_path / "fused")
    assert not counted(loaded)["fastcond::ada_group_norm"]
    assert torch.equal(call(loaded, inputs(model)), call(plain, inputs(model)))
    assert torch.equal(call(fastcond.accelerate(loaded), inputs(model)), call(model, inputs(model)))


def test_follows_to() -> None:
    plain = build("scale_shift").eval()
    model = fastcond.accelerate(copy.deepcopy(plain))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        ours, theirs = (call(part.to(dtype), inputs(part)) for part in (model, plain))
        assert ours.dtype == dtype
        if dtype == torch.float64:
            torch.testing.assert_close(ours, theirs, **FP64)
        else:
            assert_parity(f"{dtype}", ours, theirs, call(*in_float64(plain, inputs(plain))))


def test_compiles_whole_with_its_backward() -> None:
    model = fastcond.accelerate(build("default", dropout=0.0))
    eager = output_and_gradients(model, inputs(model))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    sample = inputs(model)["sample"].requires_grad_()
    output = call(compiled, {**inputs(model), "sample": sample})
    assert_network_close(output, eager[0])
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    assert_network_close(torch.autograd.grad(output, sample, upstream)[0], eager[1]["sample"])


def test_gradient_checkpointing() -> None:
    model = fastcond.accelerate(build("default"))
    expected = output_and_gradients(model, inputs(model))
    model.enable_gradient_checkpointing()
    output, gradients = output_and_gradients(model, inputs(model))
    assert torch.equal(output, expected[0])
    assert all(torch.equal(gradients[name], value) for name, value in expected[1].items())


def test_hooks_on_a_norm_still_run() -> None:
    model = fastcond.accelerate(build("default"))
    seen = []
    model.mid_block.resnets[0].norm2.register_forward_hook(lambda norm, given, output: seen.append(output.shape))
    call(model, inputs(model))
    assert seen == [torch.Size([2, 32, 4, 4])]


def test_another_activation_is_left_alone() -> None:
    model = build("default", act_fn="gelu")
    expected = call(model, inputs(model))
    fastcond.accelerate(model)
    assert all("fastcond" not in type(part).__module__ for part in model.modules() if hasattr(part, "norm1"))
    assert_network_close(call(model, inputs(model)), expected)


def test_a_norm_that_is_conditioned_otherwise_is_left_alone() -> None:
    from diffusers.models.resnet import ResnetBlockCondNorm2D

    torch.manual_seed(0)
    block = ResnetBlockCondNorm2D(in_channels=16, temb_channels=8, groups=4, time_embedding_norm="ada_group")
    model = nn.ModuleList([block, build("default")])
    fastcond.accelerate(model)
    assert type(model[0]) is ResnetBlockCondNorm2D and type(model[0].norm1).__module__.startswith("diffusers")
    with pytest.raises(ValueError, match="ResnetBlockCondNorm2D has no norm"):
        fastcond.accelerate(block)


def test_a_forward_of_ones_own_is_left_alone() -> None:
    from diffusers.models.resnet import ResnetBlock2D

    class Louder(ResnetBlock2D):
        def forward(self, input_tensor: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return 2 * super().forward(input_tensor, temb, *args, **kwargs)

    class Renamed(ResnetBlock2D):
        pass

    kinds = [Louder, Renamed, ResnetBlock2D, ResnetBlock2D, ResnetBlock2D]
    blocks = nn.ModuleList(kind(in_channels=16, temb_channels=8, groups=4) for kind in kinds)
    for replaced in (blocks[3], blocks[4].norm1):
        replaced.forward = replaced.forward  # as offloading does
    fastcond.accelerate(blocks)
    assert [isinstance(block, FusedResnetBlock) for block in blocks] == [False, True, True, False, False]
    assert [isinstance(block.norm2, FusedNorm) for block in blocks] == [False, True, True, False, False]
    assert [type(block).__name__ for block in blocks] == [kind.__name__ for kind in kinds]
    assert all(isinstance(block, kind) for block, kind in zip(blocks, kinds, strict=True))


@pytest.mark.parametrize("how", ["default", "scale_shift"])
def test_what_diffusers_refuses_it_still_refuses(how: str) -> None:
    from diffusers.models.resnet import ResnetBlock2D

    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=16, temb_channels=8, groups=4, time_embedding_norm=how)
    x, temb = torch.randn(2, 16, 4, 4), torch.randn(2, 8)
    expected = block(x, temb)
    fused = fastcond.accelerate(copy.deepcopy(block))
    with pytest.warns(FutureWarning, match="scale"):
        assert_network_close(fused(x, temb, scale=1.0), expected)
    for model in (block, fused):
        with pytest.raises((TypeError, ValueError, AttributeError)):
            model(x, None)


def test_a_block_without_an_embedding() -> None:
    from diffusers.models.resnet import ResnetBlock2D

    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=16, out_channels=32, temb_channels=None, groups=4)
    x = torch.randn(2, 16, 4, 4)
    expected = block(x, None)
    fastcond.accelerate(block)
    with Counting() as counting:
        assert_network_close(block(x, None), expected)
    assert counting.calls["fastcond::ada_group_norm"] == 2


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (nn.Conv2d(3, 3, 1), ValueError, "Conv2d has no norm to accelerate"),
        (nn.GroupNorm(2, 4), ValueError, "GroupNorm has no norm to accelerate; a UNet2DModel or UNet2DConditionModel is needed"),
        ("unet", TypeError, "module is str; a torch.nn.Module is needed"),
    ],
)
def test_refuses_what_it_cannot_accelerate(module: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as refusal:
        fastcond.accelerate(module)
    assert "\n" not in str(refusal.value)


def test_diffusers_is_not_imported() -> None:
    code = "import sys, fastcond; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
