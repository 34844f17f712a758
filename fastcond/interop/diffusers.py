"""Folders of diffusers: a model's, or a pipeline's, into a `ConditionalUNet`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from fastcond.config import UNetConfig
from fastcond.interop.label_mlp import LABEL_MLP, find_label_mlp, read_label_mlp
from fastcond.interop.layout import LABELS_NAME, Layout, latent_components, layout_of
from fastcond.interop.saving import save_diffusers
from fastcond.interop.scheduler_files import read_diffusion
from fastcond.interop.unet2d_condition_config import CLASS as CONDITION_CLASS
from fastcond.interop.unet2d_condition_config import label_unet_config
from fastcond.interop.unet2d_config import CLASS, unet_config
from fastcond.interop.weights import build, naming, read_folder
from fastcond.json_file import read_json
from fastcond.messages import shown
from fastcond.nn import ConditionalUNet

__all__ = ["class_names_of", "load_diffusers", "save_diffusers"]

# What of a config the weights' shapes follow from.
_SHAPING = ("block_out_channels", "layers_per_block", "down_block_types", "up_block_types", "in_channels", "out_channels")


def load_diffusers(
    path: str | Path,
    *,
    label_mlp: str | Path | None = None,
    null_label: bool | None = None,
    image_size: tuple[int, int] | None = None,
    variant: str | None = None,
    scheduler: Any = None,
    timesteps: int | None = None,
    prediction: str | None = None,
) -> ConditionalUNet:
    """A network that diffusers has saved, in float32 and eval mode, on the CPU.

    Args:
        path: a folder with config.json and weights, or a pipeline's with model_index.json, unet/ and scheduler/, or with the
            files of these two in the folder itself, or a sub-folder of a pipeline, such as its unet_ema/.
        label_mlp: of a `UNet2DConditionModel`, the file of the MLP that makes a token of a one-hot label; None:
            emb_net.safetensors, .pth or .pt, or the only file whose name ends so, in the folder or beside it; of
            better_conditional_unet.pth, better_emb_net comes first.
        null_label: whether the last row of the class-embedding table (of the MLP: a row of zeros) stands for "no condition",
            which guidance needs; None: as class_labels.json says, else not.
        image_size: (H, W) of what is sampled; None: as the config says.
        variant: of the weights' file, such as "fp16"; None: the file without one, else the only one there is.
        scheduler: a scheduler_config.json, a folder with one, its object, or a scheduler of diffusers; None: the one in the
            folder, in scheduler/ there, or in scheduler/ beside it; else diffusers' DDPM defaults, with as many timesteps as the
            network was told of, of which a warning tells.
        timesteps, prediction: T, and "eps", "v" or "x_0", in the place of what the scheduler says. With T no warning tells.
    Returns: a `ConditionalUNet`, whose `diffusion` follows the scheduler. Of one whose runs have no counterpart here, such as
        PNDMScheduler, it has betas and prediction.
    Raises: FileNotFoundError, or ValueError naming the file and what is wrong with it. Nothing that a file holds is run.
    """
    layout = layout_of(path)
    folder, unet = layout.named, layout.unet
    if (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder} is a run of fastcond; load it with fastcond.load_run")
    if layout.is_pipeline and (latents := _of_latents(layout)):
        raise ValueError(f"{latents}, and would be drawn as if it were; draw with diffusers")
    place = unet / "config.json"
    config = _read_json(place)
    if "_class_name" not in config:
        raise ValueError(f"{place} has no _class_name, so it is no model's of diffusers; {CLASS} and {CONDITION_CLASS} are known")
    unsaid = [key for key in _SHAPING if key not in config]
    claim = _claimed_null_label(layout) if null_label is None else None
    has_null_label = claim is not None if null_label is None else null_label
    weights = read_folder(unet, variant)
    positions = None
    if config["_class_name"] == CONDITION_CLASS:
        mlp_path = find_label_mlp(unet, layout.beside) if label_mlp is None else Path(label_mlp)
        mlp, positions = read_label_mlp(mlp_path)
        hidden, classes = mlp["linear_1.weight"].shape
        with naming(place, unsaid):
            network = label_unet_config(
                config, num_classes=classes, label_hidden_dim=hidden, has_null_label=has_null_label, image_size=image_size
            )
        width, wanted = len(mlp["linear_2.weight"]), network.label_token_dim or network.label_context_dim
        if width != wanted:
            raise ValueError(f"{mlp_path} makes tokens of {width} numbers; {place} says {wanted}")
        weights.update({LABEL_MLP + name: value for name, value in mlp.items()})
    else:
        with naming(place, unsaid):
            network = unet_config(config, has_null_label=has_null_label, image_size=image_size)
        if label_mlp is not None:
            raise ValueError(f"{place} is of a {CLASS}, which has no label MLP; leave out --label-mlp (label_mlp)")
    if claim is not None:
        _check_null_label(*claim, network)
    rows = network.num_timesteps if network.time_embedding == "learned" else None
    diffusion, notes = read_diffusion(layout, scheduler=scheduler, timesteps=timesteps, prediction=prediction, rows=rows)
    with naming(unet, unsaid):
        model = build(network, diffusion, weights)
    if positions is not None:
        model.label_embedding.positions = positions
    # Only now: of what is refused, one line tells.
    if latents := _of_latents(layout):
        notes.append(f"{latents}; what is drawn from {folder} are no images")
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return model


def class_names_of(path: str | Path, num_classes: int, *, null_row: bool = False) -> tuple[str, ...]:
    """The names in a folder's class_labels.json, by label; numbers where there is none.

    Args: null_row: whether a class table has one row more, which stands for no condition; the file may name it too.
    Raises: ValueError for a broken file.
    """
    place = _labels_file(layout_of(path))
    if place is None:
        return tuple(str(label) for label in range(num_classes))
    ids = _read_json(place).get("label2id")
    if null_row and isinstance(ids, dict):
        ids = {name: label for name, label in ids.items() if label != num_classes}
    if not isinstance(ids, dict) or sorted(ids.values(), key=str) != sorted(range(num_classes), key=str):
        raise ValueError(
            f"{place}: label2id must name the labels 0 to {num_classes - 1}, each once; correct it, or say whether the last row "
            "of a class table stands for no condition: --null-label, load_diffusers(..., null_label=True or False)"
        )
    names = tuple(sorted(ids, key=lambda name: ids[name]))
    for name in names:
        if not name.isprintable():
            raise ValueError(f"{place}: label2id names a class {shown(name)}, with characters that cannot be printed; rename it")
    return names


def _labels_file(layout: Layout) -> Path | None:
    return next((place for folder in layout.folders if (place := folder / LABELS_NAME).is_file()), None)


def _claimed_null_label(layout: Layout) -> tuple[Path, Any] | None:
    """The file that says that there is a null label, and which it names."""
    place = _labels_file(layout)
    null = None if place is None else _read_json(place).get("null_class_id")
    return None if place is None or null is None else (place, null)


def _check_null_label(place: Path, null: Any, network: UNetConfig) -> None:
    """Raises: ValueError for a null label that is another than guidance would take."""
    last = network.null_label
    if type(null) is not int or null != last:
        raise ValueError(
            f"{place} says null_class_id {shown(null)}; only {last} can stand for no condition here, the last row of the class "
            "table (of a label MLP, a row of zeros): correct it, put that row last, or say null to draw without guidance"
        )


def _of_latents(layout: Layout) -> str:
    """What shows that the network's samples are none of pixels; empty where they are."""
    components = ", ".join(latent_components(layout))
    return f"{layout.index} names {components}: its network draws in their space, which is none of pixels" if components else ""


def _read_json(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a model's {path.name} is a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the folder is not one of diffusers, or not whole")
    return read_json(path, remedy="")
