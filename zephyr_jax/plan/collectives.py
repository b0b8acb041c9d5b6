"""What a compiled program says over the wires: bytes of its collectives, read from the compiler's own text.

A loop counts as often as its condition's constant says; a loop without one, whose end depends on data, counts once.
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
_ABROAD = re.compile(r'= \((.+?), .* send\(.*_xla_megascale_target="\{([^}]*)\}.*_xla_megascale_transfer_type="(\w+)"')
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """One collective of a program, with all its runs."""

    kind: str
    bytes: float
    """What one chip sends over its links, in all runs together."""
    result: str
    """Type of the result, such as `bf16[4096,14336]`; several arrays that share a collective stand side by side."""
    runs: int
    group: int
    """Devices, or slices, that take part in one."""
    abroad: bool = False
    """Whether it runs between slices, over the data centre's network."""


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program (`compiled.as_text()`)."""
    bodies = dict(_computations(text))
    runs = _runs(text, bodies)
    return [
        found
        for name, lines in bodies.items()
        if runs[name]
        for line in lines
        if (found := _collective(line, runs[name]))
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
    """How often each computation runs."""
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
    limits = [int(found[1]) for line in condition if (found := _LIMIT.search(line))]
    return max(limits, default=1) or 1


def _collective(line: str, runs: int) -> Collective | None:
    abroad = _ABROAD.search(line)
    if abroad:
        kind, slices = abroad[3].lower().replace("_", "-"), len(re.findall(r"\d+", abroad[2]))
        [(name, sizes)] = _ARRAY.findall(abroad[1])
        return Collective(
            kind, runs * _size(name, sizes) * _sent(kind, slices), f"{name}[{sizes}]", runs, slices, abroad=True
        )
    operation = _OPERATION.search(line)
    if operation is None:
        return None
    arrays = [(f"{name}[{sizes}]", _size(name, sizes)) for name, sizes in _ARRAY.findall(operation[1])]
    kind, asynchronous = operation[2], operation[3]
    if asynchronous and kind != "all-reduce":  # such a start lists its operand beside its result
        arrays = [(min if kind == "reduce-scatter" else max)(arrays, key=lambda each: each[1])]
    result, size = ", ".join(name for name, _ in arrays), sum(size for _, size in arrays)
    group = _group(line)
    return Collective(kind, runs * size * _sent(kind, group), result, runs, group)


def _sent(kind: str, group: int) -> float:
    """Bytes that one of a group sends, over those of the result."""
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
