"""Everything that time and label do to a network, computed before the loop.

The embedding depends on (timestep, label) alone, and so does what each block makes of it. A run visits few timesteps and its
labels are fewer than its images, so all of it is one small table: one row of numbers for each timestep and label, made by
one product with the weights of all blocks side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcond.config import UNetConfig
from fastcond.nn import AdaGroupNorm, ConditionalUNet
from fastcond.nn.blocks import ResnetBlock
from fastcond.nn.label_attention import LabelAttention

DEFAULT_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Site:
    """Where conditioning enters the network: one Linear of the embedding.

    Attributes:
        name: of the Linear's module in the network, such as "mid_block.resnets.0.norm2.linear".
        start: first of its columns in the table; channels: C.
        modulates: its columns are scale [C], then shift [C], of a norm; else they are C biases.
        of_label: it is the label's token that decides, as with "label_attention"; else the embedding of timestep and label.
    """

    name: str
    start: int
    channels: int
    modulates: bool
    of_label: bool = False

    @property
    def width(self) -> int:
        """How many columns it has."""
        return 2 * self.channels if self.modulates else self.channels

    def parts(self, columns: Tensor) -> tuple[Tensor | None, Tensor]:
        """(scale, shift), or (None, bias), as views of [..., all columns]: [..., C] each."""
        own = columns.narrow(-1, self.start, self.width)
        if not self.modulates:
            return None, own
        return own.narrow(-1, 0, self.channels), own.narrow(-1, self.channels, self.channels)


class ConditioningTable:
    """Scales, shifts and biases of every block for the rows and labels of a run.

    Args:
        model: the network; it is read when a window is computed, and not changed.
        timesteps: int64 or float32 [N], of a `StepTable`'s rows, on any device. Rows of one timestep share their entry.
        labels: int64 [B], on any device, in 0 .. K; or, where the network takes them, vectors, float [B, K] with
            "label_attention" and [B, D] with "identity". Repeated ones share their entry.
        max_bytes: of the table held at a time. Where all rows do not fit, a window of them is computed when a row outside the
            present one is asked for, so rows are best asked for in order.
    Raises: ValueError for timesteps or labels of another shape or dtype, or none of them.

    Its values are the model's own but for rounding: the same products in the same dtype, but of other shapes, on which the order
    in which a matrix product adds depends. So they agree within the parity rule, and are not bit-equal.
    """

    def __init__(self, model: ConditionalUNet, timesteps: Tensor, labels: Tensor, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if timesteps.dtype not in (torch.int64, torch.float32) or timesteps.dim() != 1 or len(timesteps) == 0:
            raise ValueError(f"timesteps is {timesteps.dtype} {list(timesteps.shape)}; int64 [N], N at least 1, is needed")
        _check_labels(model, labels)
        self._model = model
        device = next(model.parameters()).device
        self._timesteps, entry_of_row = timesteps.to(device).unique_consecutive(return_inverse=True)
        self._entry_of_row: list[int] = entry_of_row.tolist()
        self.labels = labels.to(device).unique(dim=0)
        self.sites = conditioning_sites(model)
        self.width = sum(site.width for site in self.sites)
        dtype = next(model.parameters()).dtype
        entry_bytes = len(self.labels) * self.width * torch.empty((), dtype=dtype).element_size()
        self._window_entries = min(len(self._timesteps), max(1, max_bytes // max(1, entry_bytes)))
        self._first, self._window = -1, torch.empty(0)

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self._entry_of_row)

    @property
    def is_whole(self) -> bool:
        """Whether all rows fit into one window, which `whole` needs."""
        return self._window_entries == len(self._timesteps)

    def slots(self, labels: Tensor) -> Tensor:
        """int64 [B]: where each of the labels, of the kind given before and on the model's device, stands in `self.labels`.

        Raises: ValueError for a label that the table was not made for.
        """
        if labels.dim() == 2:
            equal = (labels[:, None] == self.labels[None]).all(dim=2)
            if not bool(equal.any(dim=1).all()):
                raise ValueError(f"a label is not in the table, which holds {len(self.labels)} vectors")
            return equal.to(torch.uint8).argmax(dim=1)
        slots = torch.searchsorted(self.labels, labels).clamp_(max=len(self.labels) - 1)
        unknown = labels[self.labels[slots] != labels]
        if len(unknown):
            raise ValueError(f"label {int(unknown[0])} is not in the table, which holds {self.labels.tolist()}")
        return slots

    def row(self, row: int) -> Tensor:
        """Row `row` as a view [L, all columns] in the order of `self.labels`, valid until a row of another window is asked for.

        Raises: ValueError for a row outside 0 .. N-1.
        """
        if not 0 <= row < self.num_rows:
            raise ValueError(f"row is {row}; the table has rows 0 to {self.num_rows - 1}")
        first, window = self.window(row)
        return window[self._entry_of_row[row] - first]

    def window(self, row: int) -> tuple[int, Tensor]:
        """(its first entry, values [entries, L, all columns]) of the window that row `row`, in 0 .. N-1, lies in."""
        entry = self._entry_of_row[row]
        first = entry - entry % self._window_entries
        if first != self._first:
            self._window, self._first = self._compute(first), first
        return first, self._window

    def offsets(self) -> Tensor:
        """int64 [N], on the model's device: where a row's first label stands in its window, taken as [entries L, all columns]."""
        within = [entry % self._window_entries * len(self.labels) for entry in self._entry_of_row]
        return torch.tensor(within, device=self.labels.device)

    def whole(self) -> tuple[Tensor, Tensor]:
        """(values [entries, L, all columns], entry_of_row int64 [N]) on the model's device, for a captured loop:

            values.flatten(0, 1).index_select(0, entry_of_row.index_select(0, row) * L + slots)      [B, all columns]

        is a batch's conditioning at the row that a device tensor names. Raises: ValueError where `is_whole` is false.
        """
        if not self.is_whole:
            raise ValueError(f"{self.num_rows} rows of {len(self.labels)} labels exceed max_bytes; raise it or ask row by row")
        self.row(0)
        return self._window, torch.tensor(self._entry_of_row, device=self._window.device)

    def modulation(self, row: int, slots: Tensor) -> Mapping[str, tuple[Tensor | None, Tensor]]:
        """By site name, (scale, shift) or (None, bias) of a batch at a row, [B, C] each: views of one gather.

        Args: row in 0 .. N-1; slots: int64 [B], from `slots`. Raises: ValueError for a row outside the table.
        """
        return self.split(self.row(row).index_select(0, slots))

    def split(self, columns: Tensor) -> Mapping[str, tuple[Tensor | None, Tensor]]:
        """By site name, (scale, shift) or (None, bias), [..., C] each, as views of [..., all columns]."""
        return {site.name: site.parts(columns) for site in self.sites}

    @torch.no_grad()
    def _compute(self, first: int) -> Tensor:
        """Entries first .. first + window - 1, [entries, L, all columns], as one batched product."""
        timesteps = self._timesteps[first : first + self._window_entries]
        model = self._model
        linears = [model.get_submodule(site.name) for site in self.sites if not site.of_label]
        emb = model.embed_timestep(timesteps)[:, None]
        class_emb = model.embed_label(self.labels)
        emb = emb.expand(-1, len(self.labels), -1) if class_emb is None else emb + class_emb[None]
        if model.config.conditioning != "adagn":
            emb = F.silu(emb)
        weight = torch.cat([linear.get_parameter("weight") for linear in linears])
        bias = torch.cat([linear.get_parameter("bias") for linear in linears])
        columns = F.linear(emb.flatten(0, 1), weight, bias).unflatten(0, (len(timesteps), len(self.labels)))
        token = model.embed_token(self.labels)
        if token is None:
            return columns
        of_label = [model.get_submodule(site.name)(token) for site in self.sites if site.of_label]
        return torch.cat([columns, torch.cat(of_label, dim=1).expand(len(timesteps), -1, -1)], dim=2)


def _check_labels(model: ConditionalUNet, labels: Tensor) -> None:
    """Raises: ValueError for labels that the network does not take."""
    config = model.config
    width = vector_label_width(config)
    if width is not None and labels.is_floating_point():
        if labels.dim() != 2 or labels.shape[1] != width or len(labels) == 0:
            raise ValueError(f"labels is {labels.dtype} {list(labels.shape)}; float [N, {width}], N at least 1, is needed")
        return
    if config.class_embedding == "identity":
        raise ValueError(f"labels is {labels.dtype} {list(labels.shape)}; the network takes vectors, float [N, {width}]")
    if labels.dtype != torch.int64 or labels.dim() != 1 or len(labels) == 0:
        raise ValueError(f"labels is {labels.dtype} {list(labels.shape)}; int64 [N], N at least 1, is needed")
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or high > config.largest_label:
        raise ValueError(f"labels holds {low if low < 0 else high}; values lie in 0 to {config.largest_label}")


def vector_label_width(config: UNetConfig) -> int | None:
    """How many numbers a label has where it may be a vector: K with "label_attention", D with "identity"; None elsewhere."""
    if config.conditioning == "label_attention":
        return config.num_classes
    return config.embedding_dim if config.class_embedding == "identity" else None


def conditioning_sites(model: ConditionalUNet) -> tuple[Site, ...]:
    """Every Linear of the embedding, in the order of the network's modules, and then what depends on the label alone."""
    modulates, start = model.config.conditioning in ("adagn", "scale_shift"), 0
    sites: list[Site] = []
    for name, module in sorted(model.named_modules(), key=lambda named: isinstance(named[1], LabelAttention)):
        if isinstance(module, LabelAttention):
            site = Site(name, start, module.to_v.out_features, False, of_label=True)
        elif isinstance(module, AdaGroupNorm):
            site = Site(f"{name}.linear", start, module.linear.out_features // 2, True)
        elif isinstance(module, ResnetBlock) and model.config.conditioning != "adagn":
            site = Site(f"{name}.time_emb_proj", start, module.time_emb_proj.out_features // (2 if modulates else 1), modulates)
        else:
            continue
        sites.append(site)
        start += site.width
    return tuple(sites)
