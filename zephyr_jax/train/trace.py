"""Shares of a profile's time by kind of operation, from the trace and the compiled program.

The trace holds when each operation of the program ran on each device, by the operation's name. What an operation is, a matmul
or a collective, stands in the program's text, which names it alike.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from jax.profiler import ProfileData

from zephyr_jax.model.attention.dense import ATTENTION

BATCH = "next batch"
"""Annotation of the time in which the host makes a batch and sends it to the devices."""

type Kind = Literal["matmul", "attention", "collective", "other", "waits for data", "idle"]
"""`attention` is the whole kernel, its matmuls included. `collective`: transfers between devices that nothing hides. `other`: all
other operations. `waits for data`: no operation runs and the host makes the next batch. `idle`: no operation runs."""
KINDS: tuple[str, ...] = get_args(Kind.__value__)

_COLLECTIVES = re.compile("all-(reduce|gather|to-all)|reduce-scatter|collective-|ragged-all-to-all|send|recv")
_MATMUL_CALLS = re.compile("matmul|gemm|convolution|dot", re.IGNORECASE)
_MODULE = re.compile(r"^HloModule ([\w.\-]+)", re.MULTILINE)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALL_TARGET = re.compile(r'custom_call_target="([^"]*)"')


class Interval(NamedTuple):
    """An operation on a device, or an annotation of the host, in nanoseconds."""

    start: float
    end: float
    name: str


@dataclass(frozen=True)
class Shares:
    """Where the time of profiled steps went."""

    steps: tuple[int, int]
    """The first and the last of them."""
    seconds: float
    """From the first operation to the last."""
    num_devices: int
    """Devices of this process."""
    by_kind: dict[str, float]
    """`Kind` -> share of the devices' time, from 0 to 1; they sum to 1."""
    longest: list[tuple[str, str, float]]
    """Operations with the largest shares: name, kind and share."""

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """What `asdict` and JSON made of it. Raises ValueError for anything else."""
        try:
            first, last = map(int, content["steps"])
            by_kind = {str(kind): float(share) for kind, share in content["by_kind"].items()}
            longest = [(str(name), str(kind), float(share)) for name, kind, share in content["longest"]]
            return cls((first, last), float(content["seconds"]), int(content["num_devices"]), by_kind, longest)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"expected a summary of profiled steps, got {type(error).__name__}: {error}") from error


def time_shares(profile: ProfileData, program: str, steps: tuple[int, int], num_longest: int = 10) -> Shares:
    """Shares of the time between the first and the last operation of a program.

    Args:
        profile: Of `jax.profiler`; the events of one process.
        program: Text of the compiled program, as `jax.stages.Compiled.as_text` returns it.
        steps: First and last step in the trace.
        num_longest: Number of operations in `longest`.

    Raises ValueError if the trace has no operation of the program.
    """
    kinds = operation_kinds(program)
    with warnings.catch_warnings():
        # jaxlib makes the type of `stats` at its first use, without a `__module__`; as an error that would end the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        lines = [line for line in _device_lines(profile, program) if any(event.name in kinds for event in line[1])]
    if not lines:
        raise ValueError("the trace has no operation of the step")
    start = min(event.start for _, events in lines for event in events)
    end = max(event.end for _, events in lines for event in events)
    own: dict[str, float] = defaultdict(float)
    running: dict[object, list[Interval]] = defaultdict(list)
    for device, events in lines:
        running[device] += events
        for name, duration in _own_times(events):
            own[name] += duration
    waits = _annotations(profile, BATCH)
    free = [_gaps(events, start, end) for events in running.values()]
    waiting = sum(_overlap(gaps, waits) for gaps in free)
    idle = sum(gap.end - gap.start for gaps in free for gap in gaps)
    times = dict.fromkeys(KINDS, 0.0)
    for name, duration in own.items():
        times[kinds.get(name, "other")] += duration
    # Lines of one device may overlap (streams, threads), so that their sum exceeds the time in which any of them ran.
    busy = (end - start) * len(running) - idle
    scale = busy / max(sum(own.values()), 1e-9)
    total = (end - start) * len(running)
    shares = {kind: duration * scale / total for kind, duration in times.items()}
    shares |= {"waits for data": waiting / total, "idle": (idle - waiting) / total}
    ranked = sorted(own.items(), key=lambda item: -item[1])[:num_longest]
    longest = [(name, kinds.get(name, "other"), duration * scale / total) for name, duration in ranked]
    return Shares(steps, (end - start) / 1e9, len(running), shares, longest)


def operation_kinds(program: str) -> dict[str, str]:
    """Name of an operation -> `Kind`, from the text of a compiled program."""
    multiplies: set[str] = set()
    called: dict[str, str] = {}
    kinds: dict[str, str] = {}
    calls_matmul: dict[str, bool] = {}
    computation = ""
    for line in program.splitlines():
        if opened := _COMPUTATION.match(line):
            computation = opened[1]
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            continue
        name, opcode = instruction.groups()
        target = _CALL_TARGET.search(line)
        is_matmul = opcode in ("dot", "convolution") or bool(target and _MATMUL_CALLS.search(target[1]))
        if is_matmul:
            multiplies.add(computation)
        if opcode in ("fusion", "call", "async-start") and (inner := _CALLED.search(line)):
            called[name] = inner[1]
        op_name = _OP_NAME.search(line)
        calls_matmul[name] = is_matmul
        if _COLLECTIVES.match(opcode):
            kinds[name] = "collective"
        elif op_name and ATTENTION in op_name[1]:
            kinds[name] = "attention"
        else:
            kinds[name] = "other"
    for name, kind in kinds.items():
        if kind == "other" and (calls_matmul[name] or called.get(name) in multiplies):
            kinds[name] = "matmul"
    return kinds


def _device_lines(profile: ProfileData, program: str) -> Iterator[tuple[object, list[Interval]]]:
    """The device and the operations of each line of the trace: a TPU core, a GPU stream, or a thread of the CPU's executor.

    Operations of another program, such as an evaluation between two steps, are named `program/operation`.
    """
    module = _MODULE.search(program)
    for plane in profile.planes:
        is_tpu = plane.name.startswith("/device:TPU")
        for line in plane.lines:
            if is_tpu and line.name != "XLA Ops":
                continue
            by_device: dict[object, list[Interval]] = defaultdict(list)
            for event in line.events:
                stats = {} if is_tpu else dict(event.stats)
                if is_tpu or "hlo_op" in stats:
                    name = str(stats.get("hlo_op") or event.name.partition(" = ")[0].lstrip("%"))
                    if module and (other := stats.get("hlo_module", module[1])) != module[1]:
                        name = f"{other}/{name}"
                    end = event.start_ns + event.duration_ns
                    by_device[stats.get("device_ordinal", plane.name)].append(Interval(event.start_ns, end, name))
            yield from by_device.items()


def _annotations(profile: ProfileData, name: str) -> list[Interval]:
    """When annotations of the host with this name began and ended."""
    return [
        Interval(event.start_ns, event.start_ns + event.duration_ns, name)
        for plane in profile.planes
        if plane.name.startswith("/host")
        for line in plane.lines
        for event in line.events
        if event.name == name
    ]


def _own_times(events: list[Interval]) -> Iterator[tuple[str, float]]:
    """Duration of each operation without the operations inside it: a loop holds those of its body."""
    open_events: list[tuple[Interval, float]] = []  # with the time of what they hold

    def close() -> tuple[str, float]:
        event, inner = open_events.pop()
        if open_events:
            parent, sum_inner = open_events[-1]
            open_events[-1] = parent, sum_inner + event.end - event.start
        return event.name, max(0.0, event.end - event.start - inner)

    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        while open_events and open_events[-1][0].end <= event.start:
            yield close()
        open_events.append((event, 0.0))
    while open_events:
        yield close()


def _gaps(events: Iterable[Interval], start: float, end: float) -> list[Interval]:
    """The times from `start` to `end` that no event covers."""
    gaps, reached = [], start
    for event in sorted(events):
        if event.start > reached:
            gaps.append(Interval(reached, event.start, ""))
        reached = max(reached, event.end)
    if end > reached:
        gaps.append(Interval(reached, end, ""))
    return gaps


def _overlap(gaps: list[Interval], others: list[Interval]) -> float:
    """Length of what the gaps share with other, disjoint intervals."""
    if not gaps or not others:
        return 0.0
    starts, ends = (np.array([getattr(gap, name) for gap in gaps]) for name in ("start", "end"))
    return float(sum(np.maximum(0, np.minimum(ends, o.end) - np.maximum(starts, o.start)).sum() for o in others))
