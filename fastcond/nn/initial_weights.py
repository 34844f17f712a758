"""Modules whose weights come from a file, made without the time that initial weights take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


class NoInitialWeights(TorchFunctionMode):
    """Leaves tensors as torch.nn.init finds them. Even on "meta" a random one would load torch._dynamo, a second of imports."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
