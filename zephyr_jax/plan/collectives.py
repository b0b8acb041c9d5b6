"""The collectives of a compiled program and the bytes they send, parsed from the compiler's HLO text.

The trip count of a loop is the constant in its condition; a loop whose end depends on data counts once.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALL = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.\-]+)")
_LIMIT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")
_BETWEEN_SLICES = re.compile(
    r'= \((.+?), .* send\(.*_xla_megascale_target="\{([^}]*)\}.*_xla_megascale_transfer_type="(\w+)"'
)
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """One collective of a program."""

    kind: str
    bytes: float
    """Sent by one chip in all runs together."""
    result: str
    """Type of the result, such as `bf16[4096,14336]`; comma-separated if several arrays share the collective."""
    runs: int
    group: int
    """Participating devices, or slices."""
    between_slices: bool = False
    """Whether it runs over the data center network (DCN) instead of the links inside a slice (ICI)."""


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program (`compiled.as_text()`)."""
    bodies = dict(_computations(text))
    runs = _runs(text, bodies)
    return [
        collective
        for name, lines in bodies.items()
        if runs[name]
        for line in lines
        if (collective := _collective(line, runs[name]))
    ]


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = header[1], []
        elif line == "}" and name:
            yield name, lines
            name = ""
        elif name:
            lines.append(line)


def _runs(text: str, bodies: dict[str, list[str]]) -> Counter[str]:
    """Runs of each computation in one execution of the program."""
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    runs: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for line in bodies.get(name, ()):
            loop = _CONDITION.search(line)
            trips = _trips(bodies.get(loop[1], [])) if loop else 1
            for call in _CALL.finditer(line):
                for callee in re.findall(r"[\w.\-]+", call[1]):
                    if callee in bodies:
                        visit(callee, times * trips)

    visit(entry[1] if entry else next(iter(bodies)), 1)
    return runs


def _trips(condition: list[str]) -> int:
    limits = [int(match[1]) for line in condition if (match := _LIMIT.search(line))]
    return max(limits, default=1) or 1


def _collective(line: str, runs: int) -> Collective | None:
    transfer = _BETWEEN_SLICES.search(line)
    if transfer:
        kind, slices = transfer[3].lower().replace("_", "-"), len(re.findall(r"\d+", transfer[2]))
        [(name, sizes)] = _ARRAY.findall(transfer[1])
        return Collective(
            kind, runs * _size(name, sizes) * _sent(kind, slices), f"{name}[{sizes}]", runs, slices, between_slices=True
        )
    operation = _OPERATION.search(line)
    if operation is None:
        return None
    arrays = [(f"{name}[{sizes}]", _size(name, sizes)) for name, sizes in _ARRAY.findall(operation[1])]
    kind, asynchronous = operation[2], operation[3]
    if asynchronous and kind != "all-reduce":  # such a start lists its operand beside its result
        arrays = [(min if kind == "reduce-scatter" else max)(arrays, key=lambda array: array[1])]
    result, size = ", ".join(name for name, _ in arrays), sum(size for _, size in arrays)
    group = _group(line)
    return Collective(kind, runs * size * _sent(kind, group), result, runs, group)


def _sent(kind: str, group: int) -> float:
    """Bytes sent by one participant, as a multiple of the result's bytes (ring algorithms)."""
    share = (group - 1) / group
    shares = {"all-gather": share, "all-reduce": 2 * share, "reduce-scatter": share * group, "all-to-all": share}
    return shares.get(kind, 1.0)


def _size(name: str, sizes: str) -> int:
    return _BYTES.get(name, 4) * prod(int(size) for size in sizes.split(",") if size)


def _group(line: str) -> int:
    named = _NAMED.search(line)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        return prod(sizes[name] for name in re.findall(r"'(\w+)'", named[2]))
    counted, listed = _COUNTED.search(line), _LISTED.search(line)
    if counted:
        return int(counted[2])
    return len(listed[1].split(",")) if listed else 2
