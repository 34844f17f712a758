"""What a model of diffusers does not say of itself: its schedule, its null label, its label MLP, its variant."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from fastcond.diffusion import NoiseSchedule
from fastcond.engine import generate
from fastcond.interop.diffusers import class_names_of, load_diffusers, save_diffusers
from fastcond.interop.opening import open_model
from fastcond.nn import ConditionalUNet
from tests.support.foreign import condition_network, label_mlp, plain_network, save_blog
from tests.tolerances import assert_network_close

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


def save_pipeline(folder: Path, network: Any = None, **scheduler: Any) -> Path:
    settings = {"num_train_timesteps": 200, "prediction_type": "v_prediction", **scheduler}
    diffusers.DDPMPipeline(network or plain_network(), diffusers.DDPMScheduler(**settings)).save_pretrained(folder)
    return folder


def loaded(path: Path, **settings: Any) -> tuple[ConditionalUNet, list[str]]:
    """A model, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load_diffusers(path, **settings)
    return model, [str(warning.message) for warning in caught]


def process(model: ConditionalUNet) -> tuple[int, str]:
    return model.diffusion.num_timesteps, model.diffusion.prediction


def test_a_sub_folder_has_its_pipeline_s_scheduler_and_labels(tmp_path: Path) -> None:
    """Whichever network of the pipeline is named, also by a path that has no name."""
    folder = save_pipeline(tmp_path / "p")
    plain_network().save_pretrained(folder / "unet_ema")
    config = json.loads((folder / "unet_ema" / "config.json").read_text())
    (folder / "unet_ema" / "config.json").write_text(json.dumps({**config, "decay": 0.9999, "update_after_step": 0}))
    weights = folder / "unet_ema" / "diffusion_pytorch_model.safetensors"
    averaged = {name: value / 2 for name, value in safetensors.torch.load_file(weights).items()}
    safetensors.torch.save_file(averaged, weights)
    (folder / "class_labels.json").write_text('{"label2id": {"a": 0, "b": 1, "c": 2}, "null_class_id": 3}')
    whole, *parts = (load_diffusers(folder / name) for name in ("", "unet", "unet_ema"))
    for model in (whole, *parts):
        assert process(model) == (200, "v") and model.config.has_null_label
    assert torch.equal(parts[0].conv_in.weight, whole.conv_in.weight)
    assert torch.equal(parts[1].conv_in.weight, averaged["conv_in.weight"])
    assert class_names_of(folder / "unet_ema", 3) == ("a", "b", "c")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "unet")
        assert process(load_diffusers(".")) == process(load_diffusers("../unet")) == (200, "v")


def test_a_model_alone_says_what_is_assumed(tmp_path: Path) -> None:
    plain_network().save_pretrained(tmp_path)
    model, told = loaded(tmp_path)
    assert process(model) == (1000, "eps") and len(told) == 1 and "\n" not in told[0]
    assert "comes with no scheduler" in told[0] and "1000 timesteps" in told[0] and "--timesteps" in told[0]
    model, told = loaded(tmp_path, timesteps=200, prediction="v")
    assert process(model) == (200, "v"), "as the blog's"
    assert len(told) == 1 and "the last of 200 timesteps keeps alphas_cumprod = 0.13" in told[0]
    assert loaded(tmp_path, timesteps=1000)[1] == []
    with pytest.raises(ValueError, match="prediction is 'noise'; choose one of eps, v, x_0"):
        load_diffusers(tmp_path, prediction="noise")


def test_a_scheduler_is_given_by_path_or_object(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "p")
    plain_network().save_pretrained(tmp_path / "alone")
    file = folder / "scheduler" / "scheduler_config.json"
    for given in (folder, folder / "scheduler", file, json.loads(file.read_text())):
        assert process(load_diffusers(tmp_path / "alone", scheduler=given)) == (200, "v")
    theirs = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    model = load_diffusers(tmp_path / "alone", scheduler=theirs)
    assert process(model) == (200, "v") and model.diffusion.scheduler["_class_name"] == "DDIMScheduler"
    plain = diffusers.DDIMScheduler(num_train_timesteps=200, prediction_type="v_prediction").config
    for given in ({**plain, "_class_name": "DDIMScheduler"}, diffusers.PNDMScheduler.from_config(theirs.config)):
        assert process(load_diffusers(tmp_path / "alone", scheduler=given)) == (200, "v")
    for given in (7, object):
        with pytest.raises(ValueError, match=r"scheduler is .*; give a scheduler of diffusers, or its config"):
            load_diffusers(folder, scheduler=given)
    assert process(load_diffusers(folder, prediction="x_0", timesteps=300)) == (300, "x_0")
    assert process(load_diffusers(folder, scheduler={"_class_name": "DDIMScheduler"})) == (1000, "eps")
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing; name a scheduler_config.json or a folder with one"):
        load_diffusers(folder, scheduler=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"scheduler_config.json: DDPMScheduler has num_train_timesteps 0"):
        load_diffusers(folder, timesteps=0)


def test_signal_at_the_end_is_told_of_once(tmp_path: Path) -> None:
    told = loaded(save_pipeline(tmp_path / "short"))[1]
    assert len(told) == 1 and "scheduler_config.json: the last of 200 timesteps keeps alphas_cumprod = 0.132" in told[0]
    assert loaded(save_pipeline(tmp_path / "long", num_train_timesteps=1000))[1] == []
    assert loaded(save_pipeline(tmp_path / "rescaled", rescale_betas_zero_snr=True))[1] == []


def test_a_learned_time_embedding_bounds_the_timesteps(tmp_path: Path) -> None:
    network = plain_network(time_embedding_type="learned", num_train_timesteps=50)
    network.save_pretrained(tmp_path / "alone")
    model = load_diffusers(tmp_path / "alone")
    assert process(model) == (50, "eps")
    assert generate(model, [0, 1], steps=50, sampler="ddim").shape == (2, 8, 8, 3)
    assert process(load_diffusers(tmp_path / "alone", timesteps=20)) == (20, "eps")
    with pytest.raises(ValueError, match="num_train_timesteps is 200; the network's learned time embedding has 50 rows"):
        load_diffusers(save_pipeline(tmp_path / "p", network))


@pytest.mark.parametrize("null", [0, 2, 4, -1, "x", "3", 3.0, True, [3]], ids=repr)
def test_a_null_label_that_is_not_the_last_row_is_refused(tmp_path: Path, null: Any) -> None:
    plain_network().save_pretrained(tmp_path)
    (tmp_path / "class_labels.json").write_text(json.dumps({"null_class_id": null}))
    with pytest.raises(ValueError, match=r"class_labels.json says null_class_id .*; only 3 can stand for no condition here"):
        load_diffusers(tmp_path)
    assert load_diffusers(tmp_path, null_label=True).config.has_null_label, "what is said counts for more than the file"
    assert load_diffusers(tmp_path, null_label=False).config.num_classes == 4


@pytest.mark.parametrize("null", [None, 3])
def test_a_name_for_the_null_row(tmp_path: Path, null: int | None) -> None:
    """Where the last row is said to stand for no condition, its name is no class's; nothing else is cut."""
    plain_network().save_pretrained(tmp_path)
    named = {"a": 0, "nothing": 3, "b": 1, "c": 2}
    (tmp_path / "class_labels.json").write_text(json.dumps({"label2id": named, "null_class_id": null}))
    opened = open_model(tmp_path, null_label=True)
    assert opened.class_names == ("a", "b", "c") and opened.knows_null_label
    assert open_model(tmp_path, null_label=False).class_names == ("a", "b", "c", "nothing")
    del named["nothing"]
    (tmp_path / "class_labels.json").write_text(json.dumps({"label2id": named, "null_class_id": null}))
    assert open_model(tmp_path, null_label=True).class_names == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"must name the labels 0 to 3, each once; correct it, or say .*: --null-label"):
        open_model(tmp_path, null_label=False)


def test_a_label_mlp_has_no_null_row(tmp_path: Path) -> None:
    folder = save_blog(tmp_path, "emb_net.pth")
    (folder / "class_labels.json").write_text(json.dumps({"label2id": {name: label for label, name in enumerate("abcdef")}}))
    with pytest.raises(ValueError, match="label2id must name the labels 0 to 4, each once"):
        open_model(folder, null_label=True)


def test_a_null_label_without_a_table_is_refused(tmp_path: Path) -> None:
    for i, change in enumerate(({"class_embed_type": "timestep"}, {"num_class_embeds": None})):
        plain_network(**change).save_pretrained(tmp_path / str(i))
        with pytest.raises(ValueError, match=r"config.json: a null label is the last row of a class-embedding table"):
            load_diffusers(tmp_path / str(i), null_label=True)


@pytest.mark.parametrize("name", ["better_emb_net.pth", "better_emb_net.safetensors", "emb_net.pt"])
@pytest.mark.parametrize("inside", [True, False])
def test_the_only_label_mlp_is_found(tmp_path: Path, name: str, inside: bool) -> None:
    folder = save_blog(tmp_path, ("conditional_unet.pth/" if inside else "") + name)
    assert load_diffusers(folder).config.num_classes == 5


def test_of_two_label_mlps_none_is_guessed(tmp_path: Path) -> None:
    folder = save_blog(tmp_path, "better_emb_net.pth")
    torch.save(label_mlp().state_dict(), tmp_path / "worse_emb_net.pth")
    with pytest.raises(ValueError, match=r"holds better_emb_net.pth, worse_emb_net.pth; say which .*: --label-mlp FILE"):
        load_diffusers(folder)
    assert load_diffusers(folder, label_mlp=tmp_path / "worse_emb_net.pth").config.num_classes == 5
    torch.save(label_mlp(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 12)).state_dict(), tmp_path / "emb_net.pth")
    assert load_diffusers(folder).config.num_classes == 6, "of several, the one without another word in its name"


def test_a_label_mlp_for_a_network_without_one_is_refused(tmp_path: Path) -> None:
    plain_network().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is of a UNet2DModel, which has no label MLP; leave out --label-mlp"):
        load_diffusers(tmp_path, label_mlp=tmp_path / "emb_net.pth")


def test_the_label_mlp_keeps_its_places(tmp_path: Path) -> None:
    """The author's Sequential, with a dropout that has no weights, loads what we write; copies of the model know it too."""
    author = label_mlp(nn.Linear(5, 10), nn.Dropout(0.1), nn.GELU(), nn.Linear(10, 12))
    folder = save_blog(tmp_path, "emb_net.pth", author)
    save_diffusers(copy.deepcopy(load_diffusers(folder)), tmp_path / "out")
    written = safetensors.torch.load_file(tmp_path / "out" / "unet" / "emb_net.safetensors")
    assert sorted(written) == ["0.bias", "0.weight", "3.bias", "3.weight"]
    author.load_state_dict(written)
    assert load_diffusers(tmp_path / "out").label_embedding.positions == (0, 3)


def test_the_real_label_mlps(tmp_path: Path, shared_data: Path) -> None:
    """The blog's published files beside a network of its published config, by their own names, and side by side."""
    folder, published = tmp_path, (("", 64, (0, 2)), ("better_", 32, (0, 3)))
    for prefix, *_ in published:
        config = json.loads((shared_data / "blog" / f"{prefix}conditional_unet.config.json").read_text())
        config["block_out_channels"] = [32] * len(config["block_out_channels"])
        network = diffusers.UNet2DConditionModel.from_config(config)
        network.save_pretrained(folder / f"{prefix}conditional_unet.pth")
        (folder / f"{prefix}emb_net.pth").write_bytes((shared_data / "blog" / f"{prefix}emb_net.pth").read_bytes())
    for prefix, hidden, positions in published:
        model = load_diffusers(folder / f"{prefix}conditional_unet.pth", null_label=True, timesteps=200)
        assert model.config.label_hidden_dim == hidden and model.label_embedding.positions == positions
        assert generate(model, [0, 4], guidance=2.0, steps=2).shape == (2, 16, 16, 3)


@pytest.mark.parametrize("kind", ["as the network takes it", "projected"])
def test_a_token_with_and_without_a_projection(tmp_path: Path, kind: str) -> None:
    """Without encoder_hid_dim, the label MLP makes tokens of cross_attention_dim numbers."""
    projected = kind == "projected"
    network = condition_network(**({} if projected else {"encoder_hid_dim": None}))
    mlp = label_mlp(nn.Linear(5, 10), nn.GELU(), nn.Linear(10, 12 if projected else 24))
    network.save_pretrained(tmp_path / "in")
    torch.save(mlp.state_dict(), tmp_path / "emb_net.pth")
    model = load_diffusers(tmp_path / "in")
    x_t, timestep, label = torch.randn(2, 3, 8, 8), torch.tensor([412, 412]), torch.tensor([0, 3])
    with torch.no_grad():
        token = mlp(nn.functional.one_hot(label, 5).float())[:, None]
        assert_network_close(model(x_t, timestep, label), network(x_t, timestep, encoder_hidden_states=token).sample.double())
    assert generate(model, [0, 1], steps=2).shape == (2, 8, 8, 3)
    save_diffusers(model, tmp_path / "out")
    back = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    assert (back.config.encoder_hid_dim is None) != projected
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in back.state_dict().items())
    assert load_diffusers(tmp_path / "out").config == model.config


def test_shards_of_a_variant(tmp_path: Path) -> None:
    network = plain_network()
    network.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list(tmp_path.glob("*fp16-*-of-*"))) > 1
    for settings in ({}, {"variant": "fp16"}):
        assert torch.equal(load_diffusers(tmp_path, **settings).conv_in.weight, network.conv_in.weight)
    network.save_pretrained(tmp_path, variant="bf16")
    with pytest.raises(FileNotFoundError, match=r'holds no diffusion_pytorch_model.safetensors; .* variant="bf16" \(--variant'):
        load_diffusers(tmp_path)
    network.save_pretrained(tmp_path, variant="fp16", safe_serialization=False)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json").unlink()
    assert torch.equal(load_diffusers(tmp_path, variant="fp16").conv_in.weight, network.conv_in.weight)


def test_numbers_of_eight_bits_and_of_more_than_float32(tmp_path: Path) -> None:
    network = plain_network()
    network.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64):
        cast = weights["conv_in.weight"].to(dtype)
        safetensors.torch.save_file({**weights, "conv_in.weight": cast}, path)
        assert torch.equal(load_diffusers(tmp_path).conv_in.weight, cast.float())


@pytest.mark.parametrize("component", ["vae", "vqvae", "text_encoder"])
def test_latents_are_not_drawn_as_pixels(tmp_path: Path, component: str) -> None:
    folder = save_pipeline(tmp_path / "p", num_train_timesteps=1000)
    index = folder / "model_index.json"
    given = json.loads(index.read_text())
    index.write_text(json.dumps({**given, component: [None, None]}))
    assert loaded(folder)[1] == []
    index.write_text(json.dumps({**given, component: ["diffusers", "SomeModel"]}))
    with pytest.raises(ValueError, match=rf"model_index.json names {component}: .*; draw with diffusers"):
        load_diffusers(folder)
    told = loaded(folder / "unet")[1]
    assert len(told) == 1 and f"names {component}" in told[0] and "are no images" in told[0]


# Their classes' own betas where they say none, so that a default taken from elsewhere is found out.
@pytest.mark.parametrize(
    "name",
    [
        *("PNDMScheduler", "UniPCMultistepScheduler", "EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
        *("KDPM2AncestralDiscreteScheduler", "DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "LMSDiscreteScheduler"),
        *("DDPMParallelScheduler", "DDIMParallelScheduler", "SASolverScheduler"),
    ],
)
def test_of_schedulers_that_are_not_followed_the_betas_are_taken(tmp_path: Path, name: str) -> None:
    plain_network().save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    theirs = getattr(diffusers, name)
    for i, said in enumerate(({}, {"beta_schedule": "scaled_linear", "beta_end": 0.03, "prediction_type": "v_prediction"})):
        config = {"_class_name": name, **said}
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        with pytest.warns(UserWarning, match=f"comes with {name}, whose steps are not followed here; .* ddim draws in its place"):
            opened = open_model(tmp_path / "unet")
        assert opened.sampler == "ddim" and opened.model.diffusion.prediction == ("eps", "v")[i]
        found = NoiseSchedule.from_config(opened.model.diffusion).alphas_cumprod
        assert torch.equal(found, theirs.from_config(config).alphas_cumprod.double())
    assert generate(opened.model, [0], sampler="ddim", steps=2, guide=opened.model, guidance=2.0).shape == (1, 8, 8, 3)
    with pytest.raises(ValueError, match=f"the model's scheduler is not followed; choose one of ddpm, ddim.*'{name}'"):
        generate(opened.model, [0], sampler="scheduler", steps=2)
    save_diffusers(opened.model, tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert {**kept, **config} == kept


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "CMStochasticIterativeScheduler"}, "is of a consistency model, .*ConsistencyModelPipeline"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "has use_flow_sigmas True; flow matching"),
        ({"_class_name": "PNDMScheduler", "beta_end": "x"}, "has beta_end 'x'"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "flow_prediction"}, "has prediction_type 'flow_prediction'"),
        ({"_class_name": "LCMScheduler"}, "_class_name is 'LCMScheduler'; schedulers that can be followed"),
        ({"_class_name": ["PNDMScheduler"]}, r"_class_name is \['PNDMScheduler'\]"),
    ],
)
def test_schedulers_without_ordinary_betas_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    plain_network().save_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"scheduler_config.json: .*{message}"):
        load_diffusers(tmp_path)
    assert process(load_diffusers(tmp_path, scheduler={"_class_name": "DDPMScheduler"})) == (1000, "eps")
