"""A pipeline of diffusers for networks that are told a label.

    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
    pipeline(class_labels=[0, 0, 2], guidance_scale=2.5, num_inference_steps=50, generator=torch.Generator().manual_seed(0))

fastcond.save_diffusers writes it into the folder as pipeline.py; it needs torch and diffusers, and no fastcond.
"""

import inspect
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

_LABELS, _LABEL_MLP = "class_labels.json", "emb_net.safetensors"
_SOURCE = Path(__file__).resolve()


class LabelledImagePipeline(DiffusionPipeline):
    """`DDPMPipeline` with labels and guidance.

    unet, scheduler: of the folder. Beside them class_labels.json has the classes' names and says which label is the null label,
    and, of a `UNet2DConditionModel`, unet/emb_net.safetensors is the MLP that makes its one token of a label.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet2DModel | UNet2DConditionModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        # Where diffusers has loaded the network from, if it has. What lies there is read now: the path may be a relative one.
        place = unet.config.get("_name_or_path")
        folder = Path(place).resolve() if place else None
        names = None if folder is None else folder.parent / _LABELS
        self._class_labels: dict[str, Any] = {}
        if names is not None and names.is_file():
            self._class_labels = json.loads(names.read_text(encoding="utf-8"))
        self.label2id: dict[str, int] = self._class_labels.get("label2id", {})
        self.null_label: int | None = self._class_labels.get("null_class_id")
        self._mlp: dict[str, Tensor] = {}
        if isinstance(unet, UNet2DConditionModel):
            if folder is None or not (folder / _LABEL_MLP).is_file():
                where = "it was loaded from no folder" if folder is None else f"{folder / _LABEL_MLP} is missing"
                raise ValueError(f"a UNet2DConditionModel needs the MLP that makes its token of a label, and {where}")
            # Copies, since the file may be written anew.
            self._mlp = {name: value.clone() for name, value in load_file(folder / _LABEL_MLP).items()}
        # Where the two Linears stand in the Sequential that the file is of.
        self._layers = sorted({name.split(".")[0] for name in self._mlp}, key=int)

    def save_pretrained(self, save_directory: str | os.PathLike, *arguments: Any, **settings: Any) -> None:
        """As diffusers does it, with the files that it does not know of.

        The index names DDPMPipeline, as in the folder that fastcond wrote: without custom_pipeline, that is what loads it.
        """
        super().save_pretrained(save_directory, *arguments, **settings)
        target = Path(save_directory)
        index = json.loads((target / "model_index.json").read_text(encoding="utf-8"))
        _write_json(target / "model_index.json", {**index, "_class_name": "DDPMPipeline"})
        if self._class_labels:
            _write_json(target / _LABELS, {**self._class_labels, "label2id": self.label2id, "null_class_id": self.null_label})
        if self._mlp:
            save_file(self._mlp, target / "unet" / _LABEL_MLP, {"format": "pt"})
        if _SOURCE.is_file() and (target / "pipeline.py").resolve() != _SOURCE:
            shutil.copyfile(_SOURCE, target / "pipeline.py")

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Any = None,
        batch_size: int = 1,
        guidance_scale: float | Sequence[float] | Tensor = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw one image a label.

        Args:
            class_labels: a label or a class's name, or a list or tensor of them; of a `UNet2DConditionModel` also rows of one
                number a class, one-hot or soft. None: where the network knows no labels, batch_size images.
            batch_size: how many images, where class_labels is left out.
            guidance_scale: w in u + w (c - u), where u is the output for the null label; one number or one an image; 1 is off.
            num_inference_steps: of the scheduler, at most as many as it has timesteps.
            generator: draws the noise; a list of them an image each.
            output_type: "pil", "np" or "pt". return_dict: False: a tuple of the images.
        Returns: an `ImagePipelineOutput` of PIL images, or of numbers in [0, 1]: an array [N, H, W, C], or a tensor [N, C, H, W].
        Raises: ValueError saying which argument does not fit the network and what was found.
        """
        config, device, dtype = self.unet.config, self._execution_device, self.unet.dtype
        if output_type not in ("pil", "np", "numpy", "pt"):
            raise ValueError(f"output_type is {output_type!r}; choose pil, np or pt")
        scales = torch.as_tensor(guidance_scale, dtype=torch.float32, device=device)
        guided = bool((scales != 1.0).any())
        if guided and self.null_label is None:
            raise ValueError(f"guidance_scale is {guidance_scale}; the network has no null label, so it is sampled with 1 only")
        told: dict[str, Tensor] = {}
        if class_labels is not None:
            labels = self._labels(class_labels, device)
            batch_size = len(labels)
            others = torch.zeros_like(labels) if labels.dim() == 2 else torch.full_like(labels, self.null_label or 0)
            told = self._told(torch.cat([labels, others]) if guided else labels, dtype)
        elif self._mlp or config.get("num_class_embeds") or config.get("class_embed_type"):
            raise ValueError(f"class_labels is missing; give labels or names ({', '.join(list(self.label2id)[:20])})")
        if scales.shape not in ((), (batch_size,)):
            raise ValueError(f"guidance_scale has shape {list(scales.shape)}; give one number or {batch_size}, one an image")
        w = guidance_scale if scales.dim() == 0 else scales.to(dtype)[:, None, None, None]
        size = config.sample_size
        shape = (batch_size, config.in_channels, *((size, size) if isinstance(size, int) else size))
        # First: init_noise_sigma of Euler and Heun is of the run's own timesteps.
        self.scheduler.set_timesteps(num_inference_steps)
        x = randn_tensor(shape, generator=generator, device=device, dtype=dtype) * self.scheduler.init_noise_sigma
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        noise = {"generator": generator} if takes_generator else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(x, t)
            output = self.unet(torch.cat([scaled, scaled]) if guided else scaled, t, **told).sample
            if guided:
                c, u = output.chunk(2)
                # What a network that predicts a variance has more is not guided.
                output = torch.cat([(u + w * (c - u))[:, : shape[1]], c[:, shape[1] :]], dim=1)
            x = self.scheduler.step(output, t, x, **noise).prev_sample.to(dtype)
        images: Any = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, labels: Any, device: torch.device) -> Tensor:
        """int64 [B], or float [B, K]: what the network, or its MLP, is given."""
        found, config = self._as_tensor(labels), self.unet.config
        kind, classes, largest = config.get("class_embed_type"), None, None
        if self._mlp:
            # The null label is the row of zeros.
            classes = self._mlp[f"{self._layers[0]}.weight"].shape[1]
            largest = classes - (self.null_label is None)
        elif kind is None:
            if config.get("num_class_embeds") is None:
                raise ValueError("the network knows no labels; leave out class_labels, and give batch_size")
            largest = config.num_class_embeds - 1
        width = classes
        if kind == "identity":
            width = config.get("time_embedding_dim") or 4 * config.block_out_channels[0]
        if found.dim() == 2:
            if width is None:
                raise ValueError(f"class_labels has shape {list(found.shape)}; this network takes numbers or names, one an image")
            if found.shape[1] != width or not found.isfinite().all():
                raise ValueError(f"class_labels has shape {list(found.shape)}; rows of {width} finite numbers are needed")
            return found.float().to(device)
        if kind == "identity" or found.is_floating_point() or found.dtype == torch.bool:
            wanted = (
                "a label is a whole number or a name"
                if width is None
                else f"give whole numbers, names or rows of {width} numbers"
            )
            wanted = f"give rows of {width} numbers" if kind == "identity" else wanted
            raise ValueError(f"class_labels holds {found[0].item()!r}; {wanted}")
        outside = found[(found < 0) | (found > (found.max() if largest is None else largest))]
        if len(outside):
            known = "start at 0" if largest is None else f"are 0 to {largest}"
            raise ValueError(f"class_labels holds {int(outside[0])}; the labels {known}")
        found = found.long()
        return (found if classes is None else F.one_hot(found, classes + 1)[:, :classes].float()).to(device)

    def _as_tensor(self, labels: Any) -> Tensor:
        """[B] or [B, K] of any dtype, names being their numbers."""
        if isinstance(labels, str) or not hasattr(labels, "__len__") or getattr(labels, "ndim", 1) == 0:
            labels = [labels]
        if not isinstance(labels, Tensor):
            rows = []
            for label in labels:
                if isinstance(label, str):
                    if label not in self.label2id:
                        raise ValueError(f"there is no class {label!r}; the names are {', '.join(list(self.label2id)[:50])}")
                    label = self.label2id[label]
                if not isinstance(label, (int, float, list, tuple)) and not hasattr(label, "__array__"):
                    raise ValueError(f"class_labels holds {label!r}; a label is a whole number or a name, or a row of numbers")
                rows.append(torch.as_tensor(label))
            if len({row.shape for row in rows}) > 1:
                raise ValueError("class_labels mixes single labels and rows, or rows of several widths; give one kind")
            labels = torch.stack(rows) if rows else torch.empty(0)
        if len(labels) == 0:
            raise ValueError("class_labels is empty; give at least one label")
        if labels.dim() > 2 or labels.is_complex():
            found = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"class_labels is {found}; give one label an image, or a row of numbers")
        return labels.detach()

    def _told(self, labels: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the network is called with beside x and t."""
        if not self._mlp:
            return {"class_labels": labels}
        token = labels.to(dtype)
        for place in self._layers:
            weight, bias = (self._mlp[f"{place}.{kind}"].to(labels.device, dtype) for kind in ("weight", "bias"))
            token = F.linear(token if place == self._layers[0] else F.gelu(token), weight, bias)
        return {"encoder_hidden_states": token[:, None]}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
