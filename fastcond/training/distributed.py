"""Several processes, one model: torchrun's environment, DistributedDataParallel over NCCL or Gloo."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train together. One process is a group too, and needs no torch.distributed."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    control: dist.ProcessGroup | None = None  # over Gloo: numbers of the host, which no GPU has to be waited for

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def agree(self, elapsed: float, stop: bool) -> tuple[float, bool]:
        """The clock and the wish to stop, equal in all processes: the largest of each. Never waits for a GPU."""
        if self.world_size == 1:
            return elapsed, stop
        values = torch.tensor([elapsed, float(stop)], dtype=torch.float64)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.control)
        return float(values[0]), bool(values[1] > 0)

    def require_equal(self, values: list[float], message: str) -> None:
        """Raise ValueError(message) in every process where the values are not the same in all."""
        if self.world_size > 1:
            extremes = torch.tensor([*values, *(-value for value in values)], dtype=torch.float64)
            dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self.control)
            if not torch.equal(extremes[: len(values)], -extremes[len(values) :]):
                raise ValueError(message)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of `value` over the processes."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over the group, or itself where it is alone."""
        if self.world_size == 1:
            return model
        on_gpu = next(model.parameters()).device.type == "cuda"
        return nn.parallel.DistributedDataParallel(model, device_ids=[self.local_rank] if on_gpu else None)

    def close(self) -> None:
        """Leave the group."""
        if self.world_size > 1:
            dist.destroy_process_group()


def join_process_group(device_type: str) -> ProcessGroup:
    """Join the group that torchrun's environment describes; alone where there is none."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return ProcessGroup()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    return ProcessGroup(dist.get_rank(), dist.get_world_size(), local_rank, dist.new_group(backend="gloo"))
