"""What a run can find. Every message names the instruction, its line, the CTA and, where there is one, the thread."""

from __future__ import annotations


class PtxError(Exception):
    """The kernel, or what it was given, is wrong; or this interpreter cannot execute it."""


class UnknownInstruction(PtxError):
    """An opcode, modifier, operand or directive that the interpreter does not have. Nothing is ever skipped."""


class OutOfBounds(PtxError):
    """An access outside every array and outside shared memory, through a null pointer for instance."""


class Misaligned(PtxError):
    """An address that is no multiple of the width of the whole, possibly vector, access."""


class Unwritten(PtxError):
    """A register, a byte of shared memory or a byte of an output array read before anything wrote it."""


class Race(PtxError):
    """Two threads touch the same byte, one of them writing, with nothing between that orders them."""


class Diverged(PtxError):
    """A barrier, a shuffle or a vote that not all of the threads it waits for have reached."""
