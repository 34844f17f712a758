"""A network as one native call on a CPU: its walk recorded as steps of `fastcond._native.Network` over one block of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fastcond.engine.conditioning_table import Site
from fastcond.engine.memory_plan import ALIGNMENT, Buffer, plan_memory
from fastcond.engine.network_walk import Norm, Walk
from fastcond.engine.packed_weights import PackedWeights
from fastcond.nn.blocks import SelfAttention
from fastcond.nn.label_attention import LabelTransformer, TransformerBlock
from fastcond.ops import native
from fastcond.ops.norm_conv.upsampled import is_worth_phases

_MEMORY_FLOATS = 4 << 20
_FEWEST_IMAGES = 8  # a thread


@dataclass
class Part:
    """Some channels of a map, [B, H, W, channels]; `at` is a buffer, or the address that stands for the evaluation's input.

    mean, m2: [B, channels], of what is there; None until they are first asked for.
    """

    at: Buffer | int
    channels: int
    mean: Buffer | None = None
    m2: Buffer | None = None


@dataclass(frozen=True)
class NativeMap:
    """One or two parts, whose channels follow one another."""

    parts: tuple[Part, ...]
    height: int
    width: int

    @property
    def channels(self) -> int:
        return sum(part.channels for part in self.parts)

    @property
    def only(self) -> Buffer | int:
        """Where the map is, of one part."""
        (part,) = self.parts
        return part.at


Operand = Buffer | Tensor | int | None  # a tensor of the network, memory of the evaluation, or an address; None: not there


@dataclass(frozen=True)
class Step:
    """One call of `fastcond._native.Network`: the method, its tensors and its numbers.

    optional: operands that it writes only if another step reads them.
    """

    method: str
    operands: tuple[Operand, ...]
    numbers: tuple[int, ...]
    more: tuple[float, ...] = ()
    optional: frozenset[Buffer] = frozenset()

    def has(self, address: int) -> bool:
        """Whether it is one of the operands."""
        return any(isinstance(operand, int) and operand == address for operand in self.operands)


class Recorder:
    """Records the steps of a walk over maps [B, H, W, C]."""

    def __init__(self, library: Any, weights: PackedWeights) -> None:
        self.steps: list[Step] = []
        self.segments: list[int] = []  # where each ends
        self.unlabelled: int | None = None  # the number of steps before the first that depends on an image's label
        self._library, self._weights = library, weights

    def convolve(
        self,
        conv: nn.Conv2d,
        x: NativeMap,
        *,
        norm: Norm | None = None,
        upsampled: bool = False,
        site: Site | None = None,
        residual: NativeMap | None = None,
        divisor: float = 1.0,
    ) -> NativeMap:
        features, channels = conv.out_channels, x.channels
        plain = norm is None and site is None and not upsampled and divisor == 1.0
        added = None if residual is None else residual.only
        # A convolution of few channels would have most of Winograd's lanes idle; the network's first is one.
        winograd = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and (channels >= 16 or not plain)
        phased = upsampled and is_worth_phases(channels, features, x.height, x.width)
        packed, bias = self._weights.of_conv(conv, winograd, phased), None if conv.bias is None else conv.bias.detach()
        first, second = x.parts[0], x.parts[1].at if len(x.parts) > 1 else None
        if not winograd:
            assert plain, "only 3x3 of stride 1 has these"
            (size, _), (stride, _) = conv.kernel_size, conv.stride
            assert not isinstance(conv.padding, str), "given as numbers"
            height, width = x.height // stride, x.width // stride
            y = self._map(features, height, width)
            operands = (first.at, second, packed, bias, None, None, None, added, y.only)
            numbers = (x.height, x.width, first.channels, channels, features, size, stride, conv.padding[0])
            self._add("add_patch_conv", operands, numbers)
            return y
        height, width = (2 * x.height, 2 * x.width) if upsampled else (x.height, x.width)
        affine = (None, None, None) if norm is None else self._norm(norm, x)
        bias_stride = 0
        row_bias: Operand = bias
        if site is not None:
            bias_stride, row_bias = features, Buffer(features)
            self._add("add_row_bias", (bias, row_bias), (site.start, features))
        statistics = Buffer(features), Buffer(features)
        y = self._map(features, height, width, *statistics)
        self._add(
            "add_norm_conv",
            (first.at, second, *affine, packed, row_bias, added, y.only, *statistics),
            (
                bias_stride,
                height,
                width,
                first.channels,
                channels,
                features,
                int(norm is not None and norm.silu),
                upsampled + phased,
            ),
            more=(1 / divisor,),
            optional=frozenset(statistics),
        )
        if residual is not None:
            self.end_segment()
        return y

    def attend(self, attention: SelfAttention, x: NativeMap, norm: Norm | None) -> NativeMap:
        packed, bias = self._weights.of_attention(attention)
        y = self._map(x.channels, x.height, x.width)
        out_bias = attention.to_out[0].get_parameter("bias").detach()
        affine = (None, None, None) if norm is None else self._norm(norm, x)
        operands = (x.only, *affine, packed, bias, out_bias, x.only, y.only)
        numbers = (x.height * x.width, x.channels, attention.heads, 0)
        self._add("add_small_attention", operands, numbers, more=(1 / attention.divisor,))
        self.end_segment()
        return y

    def transform(self, transformer: LabelTransformer, x: NativeMap, sites: Sequence[Site]) -> NativeMap:
        norm = transformer.norm
        affine = self._norm(Norm(norm.num_groups, norm.eps, norm.weight, norm.bias, None, False), x)
        tokens = self._project(*self._weights.of_linear(transformer.proj_in), x, affine=affine)
        for module, site in zip(transformer.transformer_blocks, sites, strict=True):
            block = cast(TransformerBlock, module)
            attention = block.attn1
            packed, bias = self._weights.of_token_attention(attention, block.norm1)
            normalised, attended = self._layer_norm(block.norm1, tokens), self._map(x.channels, x.height, x.width)
            # What cross-attention adds is added with the bias of the attention before it.
            out_bias = Buffer(x.channels)
            self._add("add_row_bias", (attention.to_out[0].get_parameter("bias").detach(), out_bias), (site.start, x.channels))
            none = (None, None, None)
            operands = (normalised.only, *none, packed, bias, out_bias, tokens.only, attended.only)
            numbers = (x.height * x.width, x.channels, attention.heads, x.channels)
            self._add("add_small_attention", operands, numbers, more=(1.0,))
            gate = self._weights.of_linear(block.ff.net[0].get_submodule("proj"), block.norm3)
            wide = self._project(*gate, self._layer_norm(block.norm3, attended))
            gated = self._map(wide.channels // 2, x.height, x.width)
            self._add("add_gated_gelu", (wide.only, gated.only), (x.height * x.width, gated.channels))
            tokens = self._project(*self._weights.of_linear(block.ff.net[2]), gated, residual=attended)
        y = self._project(*self._weights.of_linear(transformer.proj_out), tokens, residual=x)
        self.end_segment()
        return y

    def _layer_norm(self, norm: nn.LayerNorm, x: NativeMap) -> NativeMap:
        """A layer norm but for its affine map."""
        y = self._map(x.channels, x.height, x.width)
        self._add("add_layer_norm", (x.only, y.only), (x.height * x.width, x.channels), more=(norm.eps,))
        return y

    def _project(
        self,
        packed: Tensor,
        bias: Tensor,
        x: NativeMap,
        *,
        affine: tuple[Operand, Operand, Operand] = (None, None, None),
        residual: NativeMap | None = None,
    ) -> NativeMap:
        """A Linear over the channels of x, of which there is one part."""
        y, added = self._map(len(bias), x.height, x.width), None if residual is None else residual.only
        operands = (x.only, None, packed, bias, *affine, added, y.only)
        self._add("add_patch_conv", operands, (x.height, x.width, x.channels, x.channels, len(bias), 1, 1, 0))
        return y

    def join(self, x: NativeMap, skip: NativeMap) -> NativeMap:
        return NativeMap((*x.parts, *skip.parts), x.height, x.width)

    def resample(
        self, x: NativeMap, how: Literal["down", "up"], norm: Norm | None = None, kernel: Tensor | None = None
    ) -> NativeMap:
        affine = (None, None, None) if norm is None else self._norm(norm, x)
        up = how == "up"
        height, width = (2 * x.height, 2 * x.width) if up else (x.height // 2, x.width // 2)
        y = self._map(x.channels, height, width)
        silu = norm is not None and norm.silu
        self._add(
            "add_resample",
            (x.only, *affine, y.only),
            (x.height, x.width, x.channels, int(silu), int(up), int(kernel is not None)),
        )
        return y

    def _norm(self, norm: Norm, x: NativeMap) -> tuple[Buffer, Buffer, Buffer]:
        """mean, gain and offset [B, C] of a norm of x, from its parts' statistics."""
        statistics: list[Operand] = []
        for part in x.parts:
            statistics += self._statistics(part, x.height * x.width)
        statistics += [None] * (4 - len(statistics))
        weight, bias = (None if value is None else value.detach() for value in (norm.weight, norm.bias))
        affine = Buffer(x.channels), Buffer(x.channels), Buffer(x.channels)
        site = -1 if norm.site is None else norm.site.start
        numbers = (site, x.height * x.width, x.parts[0].channels, x.channels, norm.groups)
        self._add("add_channel_norm", (*statistics, weight, bias, *affine), numbers, more=(norm.eps,))
        return affine

    def _statistics(self, part: Part, positions: int) -> tuple[Buffer, Buffer]:
        if part.mean is None or part.m2 is None:
            part.mean, part.m2 = Buffer(part.channels), Buffer(part.channels)
            self._add("add_channel_statistics", (part.at, part.mean, part.m2), (positions, part.channels))
        return part.mean, part.m2

    def _map(self, channels: int, height: int, width: int, mean: Buffer | None = None, m2: Buffer | None = None) -> NativeMap:
        return NativeMap((Part(Buffer(channels * height * width), channels, mean, m2),), height, width)

    def end_segment(self) -> None:
        """What was recorded since the last call some images go through before the next ones do."""
        if self.steps and (not self.segments or self.segments[-1] < len(self.steps)):
            self.segments.append(len(self.steps))

    def _add(self, method: str, operands: tuple[Operand, ...], numbers: tuple[int, ...], **more: Any) -> None:
        # Copies of the same images share what comes before their labels.
        if self.unlabelled is None and (method == "add_row_bias" or (method == "add_channel_norm" and numbers[0] >= 0)):
            self.unlabelled = len(self.steps)
            self.end_segment()
        # What reads the input may write several copies of what it makes of it, for all images.
        step = Step(method, operands, numbers, **more)
        reads_input = step.has(self._library.Network.INPUT)
        if reads_input:
            self.end_segment()
        self.steps.append(step)
        if reads_input:
            self.end_segment()


class NativeNetwork:
    """A network's evaluation at one size of image, as one native call.

    Args:
        walk: of a network with float32 parameters on the CPU. weights: shared by the sizes of one network.
        height, width: of x_t.
    """

    def __init__(self, library: Any, walk: Walk, weights: PackedWeights, height: int, width: int) -> None:
        self._library, self._weights = library, weights
        recorder = Recorder(library, weights)
        in_channels = walk.model.config.in_channels
        y = walk(recorder, NativeMap((Part(library.Network.INPUT, in_channels),), height, width))
        recorder.end_segment()
        self._out_shape, self._segments = (y.channels, height, width), recorder.segments
        # The last step writes the evaluation's output, no buffer.
        self._steps = _redirected(recorder.steps, y.only, library.Network.OUTPUT)
        # Some images may be at a segment's end while others are at its start, so no two of its buffers share a place.
        ends = self._segments
        steps = [self._steps[begin:end] for begin, end in zip((0, *ends[:-1]), ends, strict=True)]
        buffers = [[o for step in segment for o in step.operands if isinstance(o, Buffer)] for segment in steps]
        private = _private_buffers(buffers)
        self._plan = plan_memory([[b for b in segment if b not in private] for segment in buffers])
        self._private = [list(dict.fromkeys(b for b in segment if b in private)) for segment in buffers]
        # Copies of the same images share what is made of buffers before their labels. What is made of the input each has already.
        made = _made_for_others(buffers, private)
        self._handed_on = [
            of_segment if end <= (recorder.unlabelled or 0) and not segment[0].has(library.Network.INPUT) else []
            for of_segment, segment, end in zip(made, steps, ends, strict=True)
        ]
        self._capacity, self._threads, self._memory, self._network = 0, 0, native.floats(0), library.Network()
        self.images_at_a_time: int | None = None  # for tests; None: as many as are fast

    def evaluate(self, x_t: Tensor, columns: Tensor, slots: Tensor, copies: int = 1) -> Tensor:
        """Output [B, out_channels, H, W], channels_last, for x_t float32 [B, C, H, W].

        Args: columns: float32 [labels, width], a row of the table; slots: int64 [B] on the CPU, the label of each image; copies:
            x_t is that many times the same images, one batch after the other.
        """
        batch = len(x_t)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        columns, slots = columns.contiguous(), slots.contiguous()
        y = native.floats((batch, *self._out_shape), torch.channels_last)
        threads = torch.get_num_threads()
        # More would not find their maps in the processor's caches, fewer would read the weights more often.
        images = self.images_at_a_time or max(_FEWEST_IMAGES * threads, _MEMORY_FLOATS // self._plan.floats)
        # The nearest number: of a batch slightly too large a part more would cost more than the caches' last misses.
        parts = round(batch / images)
        if parts > 1:
            copies = 1  # a part holds some images of one copy
        size = -(-batch // max(1, parts))
        if size > self._capacity or threads > self._threads:
            self._lay_out(max(size, self._capacity), threads)
        for first in range(0, batch, max(1, size)):
            part = slice(first, first + size)
            addresses = (x_t[part].data_ptr(), y[part].data_ptr(), columns.data_ptr(), slots[part].data_ptr())
            numbers = (columns.shape[1], len(slots[part]), copies, threads)
            self._network.run(addresses, numbers)
        return y

    def _lay_out(self, batch: int, threads: int) -> None:
        """Memory for evaluations of up to `batch` images, and the steps with its addresses."""
        network = self._library.Network()
        self._record(network, {})  # says how many images a segment has together
        own_start, own = dict[Buffer, int](), 0
        for i, buffers in enumerate(self._private):
            images = network.images_together(i)
            places, end = min(images * threads, batch + images - 1), 0
            for buffer in buffers:
                own_start[buffer] = end
                end += places * _whole_lines(buffer.floats)
            own = max(own, end)
        shared = _whole_lines(self._plan.floats * batch)
        self._memory = native.floats(shared + own + ALIGNMENT)
        base = -(-self._memory.data_ptr() // 64) * 64
        start = {buffer: base + 4 * batch * at for buffer, at in self._plan.start.items()}
        start |= {buffer: base + 4 * (shared + at) for buffer, at in own_start.items()}
        network = self._library.Network()
        network.set_private(base + 4 * shared, base + 4 * (shared + own))
        self._record(network, start)
        self._network, self._capacity, self._threads = network, batch, threads

    def _record(self, network: Any, start: dict[Buffer, int]) -> None:
        """Add the steps, with the addresses of their buffers."""
        read = _read_buffers(self._steps)

        def address(operand: Operand, step: Step) -> int:
            if operand is None or (isinstance(operand, Buffer) and operand in step.optional and operand not in read):
                return 0
            if isinstance(operand, Buffer):
                return start.get(operand, 0)
            return operand.data_ptr() if isinstance(operand, Tensor) else operand

        handed_on_at = dict(zip(self._segments, self._handed_on, strict=True))
        for i, step in enumerate(self._steps):
            tensors = [address(operand, step) for operand in step.operands]
            getattr(network, step.method)(tensors, step.numbers, *step.more)
            if i + 1 in handed_on_at:
                network.end_segment()
                for buffer in handed_on_at[i + 1]:
                    network.hand_on(start.get(buffer, 0), buffer.floats)


def _redirected(steps: Sequence[Step], old: Operand, new: Operand) -> list[Step]:
    def swapped(step: Step) -> Step:
        operands = tuple(new if operand is old else operand for operand in step.operands)
        return Step(step.method, operands, step.numbers, step.more, step.optional)

    return [swapped(step) for step in steps]


def _read_buffers(steps: Sequence[Step]) -> set[Buffer]:
    """Buffers that a step other than the one that may leave them out has to do with."""
    return {o for step in steps for o in step.operands if isinstance(o, Buffer) and o not in step.optional}


def _whole_lines(floats: int) -> int:
    return -(-floats // ALIGNMENT) * ALIGNMENT


def _private_buffers(segments: Sequence[Sequence[Buffer]]) -> set[Buffer]:
    """Those that no two segments name."""
    segment_of: dict[Buffer, int] = {}
    shared = {b for i, buffers in enumerate(segments) for b in buffers if segment_of.setdefault(b, i) != i}
    return segment_of.keys() - shared


def _made_for_others(segments: Sequence[Sequence[Buffer]], private: set[Buffer]) -> list[list[Buffer]]:
    """Of each segment those that it is the first to name and another one names too."""
    seen = set(private)
    made = []
    for buffers in segments:
        made.append([b for b in dict.fromkeys(buffers) if b not in seen])
        seen.update(buffers)
    return made
