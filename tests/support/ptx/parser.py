"""PTX text to a Kernel: parameters, registers, shared symbols, labels, and a flat list of instructions.

Only what Triton emits is read: one .entry, registers and shared memory declared inside it or before it, inline assembly in
scopes of braces. Debug sections, .loc, .file and .pragma are dropped; any other directive is an UnknownInstruction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tests.support.ptx.errors import UnknownInstruction

BITS = {"b8": 8, "b16": 16, "b32": 32, "b64": 64, "pred": 1}
BITS |= {f"{kind}{bits}": bits for kind in "us" for bits in (8, 16, 32, 64)}
BITS |= {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32, "f32x2": 64}

# Caching hints change speed, never values. "nc" promises that nobody writes what is read, which the race check covers.
HINT = re.compile(r"(nc|ca|cg|cs|lu|cv|wb|wt|L1::\w+|L2::\w+)$")
OPCODE = re.compile(r"[a-z]\w*(?:\.[A-Za-z_0-9]+(?:::[A-Za-z_0-9]+)*)*$")
STATEMENT = re.compile(r"(?:@(?P<negated>!?)(?P<predicate>[%$\w]+)\s+)?(?P<opcode>\S+)\s*(?P<operands>.*)$", re.DOTALL)
LABEL = re.compile(r"([A-Za-z_$%][\w$]*)\s*:(?!:)")
ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)\s*((?:\.\w+\s+[\d,\s]+)*)\{", re.DOTALL)
PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)((?:\s+\.(?:ptr|global|const|shared|align\s+\d+))*)\s+([\w$]+)$")
SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?$")
BLANK = re.compile(r"\s*")
NUMBER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|\d+)U?$")
FLOAT_BITS = re.compile(r"0[fFdD]([0-9a-fA-F]{8}|[0-9a-fA-F]{16})$")
DECIMAL = re.compile(r"[-+]?\d+\.\d*(?:[eE][-+]?\d+)?$")
REGISTER_RANGE = re.compile(r"([%$\w]+)<(\d+)>$")
ADDRESS = re.compile(r"([%$\w.]+)\s*(?:\+\s*([-+]?\w+))?$")


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer, or the bits of a float written as 0f... (32 bits) or 0d... (64)."""

    value: int


@dataclass(frozen=True)
class Address:
    """[base + offset]; base is a register, a symbol, a parameter or a number."""

    base: str
    offset: int


# A register, symbol or special register by name ("!%p1" negated, "%r1|%p1" a pair, "_" nowhere), or a vector of operands.
Operand = str | Immediate | Address | tuple


@dataclass(frozen=True)
class Instruction:
    """One instruction as written, with the names of scoped registers made unique."""

    text: str
    line: int
    opcode: str
    operands: tuple[Operand, ...]
    predicate: str | None = None
    negated: bool = False

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def modifiers(self) -> list[str]:
        return self.opcode.split(".")[1:]

    @property
    def counted_as(self) -> str:
        """The opcode without caching hints: ld.global.L1::evict_last.v4.b32 is counted as ld.global.v4.b32."""
        if self.base not in ("ld", "st"):
            return self.opcode
        return ".".join([self.base, *(name for name in self.modifiers if not HINT.match(name))])


@dataclass(frozen=True)
class Parameter:
    """One parameter of the entry; `offset` is its place in the block of parameters."""

    name: str
    kind: str
    is_pointer: bool
    offset: int

    @property
    def size(self) -> int:
        return BITS[self.kind] // 8


@dataclass
class Kernel:
    """One .entry. registers: bits by name; shared: (bytes, alignment) by symbol, 0 bytes for the extern array."""

    name: str
    parameters: list[Parameter] = field(default_factory=list)
    registers: dict[str, int] = field(default_factory=dict)
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    num_threads: int | None = None

    @property
    def opcodes(self) -> set[str]:
        return {instruction.opcode for instruction in self.instructions}


def parse(text: str) -> Kernel:
    """The one kernel of a PTX module.

    Raises: UnknownInstruction for what the interpreter cannot read, calls and local memory among it.
    """
    text = without_comments(text)
    entry = ENTRY.search(text)
    if entry is None or len(ENTRY.findall(text)) != 1:
        raise UnknownInstruction(f"a module with {len(ENTRY.findall(text))} .entry; one is wanted")
    kernel = Kernel(name=entry.group(1))
    for declaration in re.findall(r"\.shared[^;]*", text[: entry.start()]):
        declare_shared(kernel, declaration.strip())
    declare_parameters(kernel, entry.group(2))
    bounds = re.search(r"\.(?:reqntid|maxntid)\s+([\d,\s]+)", entry.group(3))
    if bounds:
        kernel.num_threads = 1
        for dimension in bounds.group(1).split(","):
            kernel.num_threads *= int(dimension)
    Body(kernel, text, entry.end()).read()
    return kernel


def without_comments(text: str) -> str:
    """Comments and debug lines become blanks of as many lines; `// implicit-def:` is kept, as an instruction."""
    text = re.sub(r"//\s*implicit-def:\s*([%$\w]+)", r"implicit_def \1;", text)
    text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match.group().count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"^\s*\.(?:loc|file)\s[^\n]*", "", text, flags=re.MULTILINE)
    return re.sub(r"\.section\s+\S+\s*\{[^}]*\}", lambda match: "\n" * match.group().count("\n"), text, flags=re.DOTALL)


def declare_parameters(kernel: Kernel, text: str) -> None:
    offset = 0
    for declaration in filter(None, (part.strip() for part in text.split(","))):
        match = PARAMETER.match(declaration)
        if match is None or match.group(1) not in BITS:
            raise UnknownInstruction(f"the parameter {declaration!r}")
        size = BITS[match.group(1)] // 8
        offset = -(-offset // size) * size
        kernel.parameters.append(Parameter(match.group(3), match.group(1), ".ptr" in match.group(2), offset))
        offset += size


def declare_shared(kernel: Kernel, text: str) -> None:
    match = SHARED.match(text)
    if match is None:
        raise UnknownInstruction(f"the declaration {text!r}")
    elements = {None: 1, "": 0}.get(match.group(4))
    elements = int(match.group(4)) if elements is None else elements
    kernel.shared[match.group(3)] = (elements * BITS[match.group(2)] // 8, int(match.group(1) or 1))


class Body:
    """The statements between the braces of an entry, read once from left to right."""

    def __init__(self, kernel: Kernel, text: str, start: int) -> None:
        self.kernel, self.text, self.position = kernel, text, start
        self.scopes: list[dict[str, str]] = [{}]
        self.scopes_opened = 0
        self.line = text.count("\n", 0, start) + 1

    def read(self) -> None:
        """Everything up to the brace that closes the entry."""
        while self.scopes:
            self.go_to(BLANK.match(self.text, self.position).end())
            if self.position >= len(self.text):
                raise UnknownInstruction("an entry without its closing brace")
            character = self.text[self.position]
            label = LABEL.match(self.text, self.position)
            if character == "{":
                self.scopes.append({})
                self.scopes_opened += 1
                self.position += 1
            elif character == "}":
                self.scopes.pop()
                self.position += 1
            elif label:
                self.kernel.labels[label.group(1)] = len(self.kernel.instructions)
                self.position = label.end()
            else:
                end = self.text.find(";", self.position)
                if end < 0:
                    raise UnknownInstruction(f"no ; after {self.text[self.position : self.position + 80]!r}")
                self.statement(" ".join(self.text[self.position : end].split()))
                self.go_to(end + 1)

    def statement(self, text: str) -> None:
        if not text or text.startswith(".pragma"):
            return
        if text.startswith(".reg"):
            self.declare_registers(text)
        elif text.startswith(".shared"):
            declare_shared(self.kernel, text)
        elif text.startswith("."):
            raise UnknownInstruction(f"line {self.line}: the directive {text!r}")
        else:
            self.kernel.instructions.append(self.instruction(text))

    def go_to(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def declare_registers(self, text: str) -> None:
        kind, names = text.split(None, 2)[1:]
        bits = BITS.get(kind.lstrip("."))
        if bits is None:
            raise UnknownInstruction(f"line {self.line}: registers of type {kind}")
        for name in (part.strip() for part in names.split(",")):
            several = REGISTER_RANGE.match(name)
            declared = [f"{several.group(1)}{index}" for index in range(int(several.group(2)))] if several else [name]
            for register in declared:
                # Two pieces of inline assembly may both declare `a`, with different types.
                unique = register if len(self.scopes) == 1 else f"{register}@{self.scopes_opened}"
                self.scopes[-1][register] = unique
                self.kernel.registers[unique] = bits

    def resolve(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), name)

    def instruction(self, text: str) -> Instruction:
        match = STATEMENT.match(text)
        if match is None or not OPCODE.match(match.group("opcode")):
            raise UnknownInstruction(f"line {self.line}: {text!r}")
        predicate = match.group("predicate")
        return Instruction(
            text=text,
            line=self.line,
            opcode=match.group("opcode"),
            operands=tuple(self.operand(part) for part in split_operands(match.group("operands"))),
            predicate=None if predicate is None else self.resolve(predicate),
            negated=bool(match.group("negated")),
        )

    def operand(self, text: str) -> Operand:
        if text.startswith("{"):
            return tuple(self.operand(part) for part in split_operands(text[1:-1]))
        if text.startswith("["):
            match = ADDRESS.match(text[1:-1].strip())
            if match is None:
                raise UnknownInstruction(f"line {self.line}: the address {text!r}")
            return Address(self.resolve(match.group(1)), int(match.group(2) or "0", 0))
        if NUMBER.match(text):
            return Immediate(int(text.rstrip("U"), 0))
        if FLOAT_BITS.match(text):
            return Immediate(int(text[2:], 16))
        if DECIMAL.match(text):
            return text
        if text.startswith("!"):
            return "!" + self.resolve(text[1:].strip())
        return "|".join(self.resolve(part.strip()) for part in text.split("|"))


def split_operands(text: str) -> list[str]:
    """Split at the commas that are outside braces and brackets."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()] if current.strip() else parts
