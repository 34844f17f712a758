"""ConditionalUNet: diffusers' names, weights and outputs, the presets' sizes, conditioning, layouts, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastcond.config import UNetConfig
from fastcond.nn import ConditionalUNet
from fastcond.presets import PRESETS
from tests.support.diffusers_twin import diffusers_twin
from tests.support.networks import perturb, small_config, small_unet
from tests.tolerances import assert_network_close

CONDITIONINGS = ["adagn", "scale_shift", "bias"]


def arguments(config: UNetConfig, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t, timesteps and labels, among them the null label."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, config.in_channels, *config.image_size, generator=generator)
    return x, torch.tensor([0, 37, 999])[:batch], torch.tensor([1, 0, config.null_label])[:batch]


TWINS = {
    "attention below": {},
    "attention everywhere": {"attention_resolutions": (8, 4), "layers_per_block": 2},
    "no attention but the middle's": {"attention_resolutions": ()},
    "three levels": {"block_out_channels": (8, 16, 24), "attention_head_dim": 4, "attention_resolutions": (8, 2)},
    "one level": {"block_out_channels": (8,)},
    "one channel, not square": {"in_channels": 1, "out_channels": 1, "image_size": (8, 12), "norm_eps": 1e-6},
}


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("resample", ["conv", "resnet"])
@pytest.mark.parametrize("conditioning", ["scale_shift", "bias"])
def test_diffusers_weights_load_strictly_and_give_its_output(conditioning: str, resample: str, twin: str) -> None:
    pytest.importorskip("diffusers")
    config = small_config(**{"conditioning": conditioning, "resample": resample, **TWINS[twin]})
    theirs = diffusers_twin(config)
    perturb(theirs)
    ours = ConditionalUNet(config)
    shapes = [{name: tuple(value.shape) for name, value in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, timestep, label = arguments(config)
    with torch.no_grad():
        expected = theirs.eval()(x, timestep, class_labels=label).sample
        assert_network_close(ours.eval()(x, timestep, label), expected)


@pytest.mark.parametrize(("preset", "image_size", "num_classes"), [("cifar10", (32, 32), 10), ("imagenet64", (64, 64), 1000)])
def test_large_presets_have_the_names_and_shapes_of_diffusers(preset: str, image_size: tuple[int, int], num_classes: int) -> None:
    config = UNetConfig(image_size=image_size, num_classes=num_classes, **PRESETS[preset].network)
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        shapes = [
            {name: tuple(value.shape) for name, value in net.state_dict().items()}
            for net in (ConditionalUNet(config), diffusers_twin(config))
        ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("preset", "image_size", "num_classes", "millions", "within"),
    [
        ("cifar10", (32, 32), 10, 35.7, 0.1),  # Ho et al. 2020, appendix B
        ("imagenet64", (64, 64), 1000, 296, 1),  # Dhariwal & Nichol 2021, table 11
    ],
)
def test_large_presets_have_the_published_number_of_parameters(
    preset: str, image_size: tuple[int, int], num_classes: int, millions: float, within: float
) -> None:
    config = UNetConfig(image_size=image_size, num_classes=num_classes, **PRESETS[preset].network)
    with torch.device("meta"):
        model = ConditionalUNet(config)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=within)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("resample", ["conv", "resnet"])
@pytest.mark.parametrize("class_embedding_mlp", [False, True])
def test_every_parameter_has_a_gradient(conditioning: str, resample: str, class_embedding_mlp: bool) -> None:
    model = small_unet(conditioning=conditioning, resample=resample, class_embedding_mlp=class_embedding_mlp)
    x, timestep, label = arguments(model.config)
    model(x, timestep, label).square().sum().backward()
    silent = [name for name, parameter in model.named_parameters() if not (parameter.grad != 0).any()]
    # A key's bias adds the same number to every logit of a query, which softmax does not see.
    assert [name for name in silent if not name.endswith("to_k.bias")] == []
    touched = model.class_embedding.weight.grad.abs().sum(dim=1) > 0
    assert touched.tolist() == [True, True, False, True], "the rows of the labels in the batch, and no other"


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_label_and_timestep_reach_the_output(conditioning: str) -> None:
    model = small_unet(conditioning=conditioning).eval()
    x, timestep, label = arguments(model.config)
    with torch.no_grad():
        outputs = {k: model(x, timestep, torch.full_like(label, k)) for k in range(4)}
        later = model(x, timestep + 1, torch.full_like(label, 0))
    assert all(not torch.equal(outputs[a], outputs[b]) for a in range(4) for b in range(a))
    assert not torch.equal(outputs[0], later)
    with torch.no_grad():
        model.class_embedding.weight[3] = model.class_embedding.weight[1]
        assert torch.equal(model(x, timestep, torch.full_like(label, 3)), outputs[1]), "row K is the null label's"


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_new_network_outputs_zero(conditioning: str) -> None:
    model = ConditionalUNet(small_config(conditioning=conditioning))
    with torch.no_grad():
        model.conv_out.bias.zero_()
    assert not model(*arguments(model.config)).any()


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("resample", ["conv", "resnet"])
def test_channels_last_gives_the_same_numbers(conditioning: str, resample: str) -> None:
    model = small_unet(conditioning=conditioning, resample=resample).eval()
    x, timestep, label = arguments(model.config)
    with torch.no_grad():
        expected = model(x, timestep, label)
        model.to(memory_format=torch.channels_last)
        actual = model(x.contiguous(memory_format=torch.channels_last), timestep, label)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert_network_close(actual, expected)


def test_images_of_a_batch_do_not_mix() -> None:
    model = small_unet().eval()
    x, timestep, label = arguments(model.config)
    with torch.no_grad():
        whole = model(x, timestep, label)
        for image in range(3):
            part = slice(image, image + 1)
            assert_network_close(model(x[part], timestep[part], label[part]), whole[part])


@pytest.mark.parametrize("image_size", [(8, 12), (4, 2), (6, 6)])
def test_any_size_that_the_levels_divide(image_size: tuple[int, int]) -> None:
    model = small_unet(in_channels=1, out_channels=2)
    config = replace(model.config, image_size=image_size)
    assert model(*arguments(config)).shape == (3, 2, *image_size)


def test_float_timesteps_and_double_precision() -> None:
    model = small_unet()
    x, timestep, label = arguments(model.config)
    with torch.no_grad():
        assert torch.equal(model(x, timestep.float(), label), model(x, timestep, label))
        exact = model.double()(x.double(), timestep, label)
    assert exact.dtype == torch.float64


@pytest.mark.parametrize("size", [(7, 8), (8, 9)])
def test_size_that_the_levels_do_not_divide_is_refused(size: tuple[int, int]) -> None:
    model = small_unet()
    with pytest.raises(ValueError, match=rf"x_t is {size[0]}x{size[1]}; 2 levels need multiples of 2"):
        model(torch.randn(1, 3, *size), torch.tensor([0]), torch.tensor([0]))


def test_label_beyond_the_null_label_is_no_row() -> None:
    model = small_unet()
    x, timestep, _ = arguments(model.config)
    with pytest.raises(IndexError):
        model(x, timestep, torch.full((3,), 4))


def test_class_embedding_mlp_acts_on_the_row() -> None:
    model = small_unet(class_embedding_mlp=True)
    x, timestep, label = arguments(model.config)
    before = model(x, timestep, label)
    with torch.no_grad():
        model.class_projection.linear_2.bias.add_(1)
    assert not torch.equal(model(x, timestep, label), before)


def test_whole_network_traces_as_one_graph() -> None:
    model = small_unet().eval()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(*arguments(model.config)), model(*arguments(model.config)))
