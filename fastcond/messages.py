"""How what others wrote is shown in a message: short, on one line, nothing that a terminal obeys. Standard library only."""

from __future__ import annotations

from typing import Any


def shown(value: Any) -> str:
    """repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def printable(text: str) -> str:
    """A text with characters that cannot be printed, such as a terminal's commands, written as Python escapes them."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


__all__ = ["printable", "shown"]
