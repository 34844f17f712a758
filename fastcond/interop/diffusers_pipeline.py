"""A pipeline of diffusers for networks that are told a label.

    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
    pipeline(class_labels=[0, 0, 2], guidance_scale=2.5, num_inference_steps=50, generator=torch.Generator().manual_seed(0))

fastcond.save_diffusers writes it into the folder as pipeline.py; it needs torch and diffusers, and no fastcond.
"""

import inspect
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F


class LabelledImagePipeline(DiffusionPipeline):
    """`DDPMPipeline` with labels and guidance.

    unet, scheduler: of the folder. Beside them class_labels.json has the classes' names and says which label is the null label,
    and, of a `UNet2DConditionModel`, unet/emb_net.safetensors is the MLP that makes its one token of a label.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet2DModel | UNet2DConditionModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        # Where diffusers has loaded the network from.
        self._folder = Path(unet.config.get("_name_or_path") or ".")
        names = self._folder.parent / "class_labels.json"
        found = json.loads(names.read_text(encoding="utf-8")) if names.is_file() else {}
        self.label2id: dict[str, int] = found.get("label2id", {})
        self.null_label: int | None = found.get("null_class_id")
        mlp = self._folder / "emb_net.safetensors"
        self._mlp = load_file(mlp) if isinstance(unet, UNet2DConditionModel) else {}
        # Where the two Linears stand in the Sequential that the file is of.
        self._layers = sorted({name.split(".")[0] for name in self._mlp}, key=int)

    def save_pretrained(self, save_directory: str | os.PathLike, *arguments: Any, **settings: Any) -> None:
        """As diffusers does it, with the files that it does not know of."""
        super().save_pretrained(save_directory, *arguments, **settings)
        beside, target = self._folder.parent, Path(save_directory)
        for source, name in (
            (beside / "class_labels.json", "class_labels.json"),
            (self._folder / "emb_net.safetensors", "unet/emb_net.safetensors"),
            (Path(__file__), "pipeline.py"),
        ):
            if source.is_file() and source.resolve() != (target / name).resolve():
                shutil.copyfile(source, target / name)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Any = None,
        batch_size: int = 1,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw one image a label.

        Args:
            class_labels: a label or a class's name, or a list or tensor of them; of a `UNet2DConditionModel` also rows of one
                number a class, one-hot or soft. None: where the network knows no labels, batch_size images.
            guidance_scale: w in u + w (c - u), where u is the output for the null label; 1 is off.
            generator: draws the noise; a list of them an image each.
            output_type: "pil", "np" or "pt". return_dict: False: a tuple of the images.
        """
        config, device, dtype = self.unet.config, self._execution_device, self.unet.dtype
        guided = guidance_scale != 1.0
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
                output = torch.cat([(u + guidance_scale * (c - u))[:, : shape[1]], c[:, shape[1] :]], dim=1)
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
        if isinstance(labels, (str, int)):
            labels = [labels]
        if not isinstance(labels, Tensor):
            unknown = [label for label in labels if isinstance(label, str) and label not in self.label2id]
            if unknown:
                raise ValueError(f"there is no class {unknown[0]!r}; the names are {', '.join(list(self.label2id)[:50])}")
            labels = torch.as_tensor([self.label2id[label] if isinstance(label, str) else label for label in labels])
        if labels.dim() == 1 and self._mlp:
            # The null label is the row of zeros.
            classes = self._mlp[f"{self._layers[0]}.weight"].shape[1]
            labels = F.one_hot(labels.long(), classes + 1)[:, :classes].float()
        return labels.to(device)

    def _told(self, labels: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the network is called with beside x and t."""
        if not self._mlp:
            return {"class_labels": labels}
        token = labels.to(dtype)
        for place in self._layers:
            weight, bias = (self._mlp[f"{place}.{kind}"].to(labels.device, dtype) for kind in ("weight", "bias"))
            token = F.linear(token if place == self._layers[0] else F.gelu(token), weight, bias)
        return {"encoder_hidden_states": token[:, None]}
