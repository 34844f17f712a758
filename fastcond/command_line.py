"""What the command lines share: errors as one line, devices, and how values are read."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from fastcond.config import PREDICTIONS
from fastcond.messages import printable, shown

if TYPE_CHECKING:
    import torch

_LARGEST = 2**31 - 1


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line, with exit code 2, and whose flags are written in full."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Print one line and leave."""
        print(f"{self.prog}: error: {message} (--help lists the flags)", file=sys.stderr)
        raise SystemExit(2)


def run(main: Callable[[argparse.Namespace], int], parser: Parser, arguments: Sequence[str] | None = None) -> int:
    """Parse, call `main`, and turn an error of the user's or of the machine's into one line and exit code 2.

    --debug shows the traceback. Warnings are one line too. A programming error keeps its traceback.
    """
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    with importing(parser.prog):
        options = parser.parse_args(arguments)
    warnings.formatwarning = lambda message, *_, **__: f"{parser.prog}: warning: {printable(str(message))}\n"
    try:
        return main(options)
    except KeyboardInterrupt as stop:
        print(f"{parser.prog}: interrupted{f': {stop}' if stop.args else ''}", file=sys.stderr)
        return 130
    except Exception as error:
        message = _user_message(error)
        if message is None or options.debug:
            raise
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        return 2


@contextmanager
def importing(program: str) -> Iterator[None]:
    """Around slow imports: Ctrl-C ends the process with one line and exit code 130.

    As an exception it would be swallowed, or become another error, where a module handles a failed import of its own.
    """

    def stop(*_: object) -> None:
        print(f"{program}: interrupted", file=sys.stderr, flush=True)
        os._exit(130)

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread, which Ctrl-C does not reach
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _user_message(error: Exception) -> str | None:
    """The line for an error of the user's or of the machine's; None for an error of the program's."""
    # PyTorch has an error of its own for a GPU; its allocator on a CPU raises a plain RuntimeError.
    torch = sys.modules.get("torch")
    kinds = MemoryError if torch is None else (MemoryError, torch.OutOfMemoryError)
    if isinstance(error, kinds) or "can't allocate memory" in str(error):
        return f"out of memory ({_one_line(error)}); use a smaller --batch-size, --n or --size"
    return _one_line(error) if isinstance(error, ValueError | OSError) else None


def choose_device(name: str) -> torch.device:
    """The device that --device names; "auto" is the first GPU where there is one.

    Raises: ValueError for a name that is none or a device that is not there.
    """
    import torch  # here, so that --help and a wrong flag do not wait for it

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device is {name!r}; choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {name!r}; choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device is {name!r}, but {torch.cuda.device_count()} CUDA devices were found; use --device cpu")
    return device


def image_size(text: str) -> tuple[int, int]:
    """argparse type: "16" or "16x24" (height x width)."""
    match = re.fullmatch(r"(\d{1,8})(?:x(\d{1,8}))?", text)
    if match is None or int(match[1]) == 0 or match[2] == "0":
        raise argparse.ArgumentTypeError(f"{shown(text)} is no image size; give 16 or 16x24 (height x width)")
    return int(match[1]), int(match[2] or match[1])


def number(text: str) -> float:
    """argparse type: a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def path(text: str) -> str:
    """argparse type: a path; an empty one is most often an unset variable of a shell."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty; name a file or folder")
    return text


def word(text: str) -> str:
    """argparse type: one of some words, in which `-` may stand for `_`."""
    return text.replace("-", "_")


def whole_number(text: str) -> int:
    """argparse type: an integer from 1 to 2^31 - 1; underscores may group its digits."""
    digits = text.replace("_", "").lstrip("0")
    if re.fullmatch(r"\d[\d_]*", text) is None or not digits:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number of at least 1")
    if len(digits) > 10 or int(digits) > _LARGEST:
        raise argparse.ArgumentTypeError(f"{shown(text)} is too large; at most {_LARGEST} is possible")
    return int(digits)


def add_model_flags(parser: Parser) -> None:
    """What a model of diffusers does not say of itself."""
    group = parser.add_argument_group("of a model of diffusers", "what its files do not say, or say otherwise")
    group.add_argument(
        "--null-label",
        action="store_const",
        const=True,
        help="its last class, or with a label MLP a row of zeros, stands for no condition (default as class_labels.json says)",
    )
    group.add_argument(
        "--label-mlp", type=path, metavar="FILE", help="of a UNet2DConditionModel (default emb_net.* in its folder or beside it)"
    )
    group.add_argument(
        "--variant", metavar="NAME", help="of its weights' file, such as fp16 (default none, or the only one there)"
    )
    group.add_argument("--timesteps", type=whole_number, help="it was trained with (default as its scheduler/ says, else 1000)")
    group.add_argument(
        "--prediction", type=word, choices=PREDICTIONS, help="what it predicts (default as its scheduler/ says, else eps)"
    )


def model_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Those of `add_model_flags` that were given, as keywords of `open_model`."""
    names = ("null_label", "label_mlp", "variant", "timesteps", "prediction")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def seed_number(text: str) -> int:
    """argparse type: an integer in [0, 2^32)."""
    if re.fullmatch(r"\d+", text) is None or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; give a whole number from 0 to 4294967295")
    return int(text)


def _one_line(error: BaseException) -> str:
    """An error's message on one line; an OSError with its file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return printable(f"{error.filename}: {error.strerror}")
    return printable(" ".join(str(error).split())) or type(error).__name__
