"""SFT, reference passes and DPO, killed at random moments and started again by the same command.

    uv run python -m benchmarks.chaos --kills 50

Real processes, one or two, on disk or on a Cloud Storage of our own on loopback. Kinds of harm: SIGKILL, SIGTERM, a full disk,
a cloud that fails, a damaged newest step, a clock that jumps. Each run that was harmed is compared with one that nobody
disturbed. Prints a table, and ends with 1 unless every count in it is 0.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

from benchmarks.chaos.harm import KINDS, Disk, cut, damage, kill, terminate, wait_for_a_moment
from benchmarks.chaos.launch import Launch, start
from benchmarks.chaos.verdict import Losses, compare_runs, compare_tables
from tests.conftest import write_rows
from tests.gcs import Gcs
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.demo.remake import write_untrained
from zephyr_jax.storage import cloud

STAGES = ("sft", "reference", "dpo")
MESHES = ("1 2 2 2", "1 1 8 1", "1 4 1 2", "2 2 2 2", "2 1 8 1")
"""Processes, then data, fsdp and tensor, for runs that go on elsewhere after each kill."""
COMMON = (
    "--data.max_length 256 --model.compute_dtype float32 --model.remat none --model.logprob_chunk 64 "
    "--report.progress_bar False"
)
TRAINING = (
    "--schedule.save_every 4 --schedule.evaluate_every 0 --schedule.keep_last 3 --report.log_example_ids True "
    "--batch.microbatch_rows 8 --report.num_samples 0"
)


@dataclass(frozen=True)
class Scenario:
    """A stage on some processes and some storage; `moves`: each launch has another mesh than the one before."""

    stage: str
    processes: int
    place: str = "disk"
    moves: bool = False

    @property
    def name(self) -> str:
        """The scenario in words."""
        return f"{self.stage}, {'moving' if self.moves else self.processes}, {self.place}"

    def takes(self, kind: str) -> bool:
        """Whether this kind of harm can be done here."""
        if kind == "cut gs://":
            return self.place == "gs://"
        if kind in ("full disk", "damaged step"):
            return self.place == "disk" and not (kind == "damaged step" and self.stage == "reference")
        return True


SCENARIOS = [
    Scenario("sft", 1),
    Scenario("dpo", 1),
    Scenario("sft", 2),
    Scenario("reference", 1),
    Scenario("sft", 1, "gs://"),
    Scenario("dpo", 2),
    Scenario("sft", 1, moves=True),
    Scenario("reference", 2),
    Scenario("dpo", 1, "gs://"),
]


SHORT = [Scenario("dpo", 1), Scenario("sft", 1, moves=True), Scenario("sft", 1, "gs://")]


@dataclass
class Tally:
    """What came of one scenario."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    losses: Losses = field(default_factory=lambda: Losses(0, 0, 0))
    manual: int = 0
    """Launches that nobody harmed and that did not end well: a person would have had to look."""
    seconds: float = 0.0


class Lab:
    """A folder with a model and rows, a cloud, a small disk, and the runs that nobody disturbed."""

    def __init__(self, folder: Path, server: Gcs, seed: int, size: int, longest_cut: float):
        self.longest_cut, self.size = longest_cut, size
        self.folder, self.cloud, self.draw = folder, server, random.Random(seed)
        self.disk = Disk(folder / "disk")
        self.environment = {
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        write_untrained(folder / "model")
        write_rows(folder / "chats.jsonl", list(conversations(0, 6 * size, "train")))
        write_rows(folder / "pairs.jsonl", list(preferences(0, 4 * size, "train")))
        self._whole: dict[tuple[str, int], tuple[str, float]] = {}
        self._numbers = iter(range(10**6))

    def words(self, stage: str, output: str, mesh: str) -> list[str]:
        """The command; everything but `output` and the mesh is the same in every run of a stage."""
        data, fsdp, tensor = mesh.split()[1:]
        words = f"{stage} --model.path {self.folder}/model {COMMON} --mesh.data {data} --mesh.fsdp {fsdp} --mesh.tensor {tensor}"
        if stage == "sft":
            words += f" {TRAINING} --data.path {self.folder}/chats.jsonl --data.row_length 256 --batch.rows 16"
            return f"{words} --schedule.epochs 2 --optimizer.learning_rate 1e-3 --output {output}".split()
        words += f" --data.path {self.folder}/pairs.jsonl --data.row_length 512 --data.max_prompt_length 64"
        if stage == "reference":
            words += " --batch.rows 8 --output none"
            return f"{words} --reference {output}".split()
        words += f" {TRAINING} --batch.examples 12 --schedule.epochs 2 --optimizer.learning_rate 1e-4"
        return f"{words} --reference {self.whole('reference', '1 2 2 2')[0]} --output {output}".split()

    def whole(self, stage: str, mesh: str) -> tuple[str, float]:
        """The run of a stage that nobody disturbed, made when it is first asked for, and its seconds."""
        if (stage, mesh) not in self._whole:
            output = str(self.folder / f"whole-{stage}-{mesh.replace(' ', '-')}")
            launch = self.launch(stage, output, mesh)
            codes = launch.end()
            if any(codes):
                sys.exit(f"The undisturbed {stage} run ended with {codes}:\n{launch.words()}")
            self._whole[stage, mesh] = output, time.monotonic() - launch.started
        return self._whole[stage, mesh]

    def took(self, stage: str, mesh: str, seconds: float) -> None:
        """A run came to its end so quickly: the first one had programs to compile, so moments are drawn from this."""
        output, usual = self._whole[stage, mesh]
        self._whole[stage, mesh] = output, min(usual, seconds)

    def launch(self, stage: str, output: str, mesh: str, clock: int | None = None) -> Launch:
        """Start a stage."""
        return start(self.words(stage, output, mesh), int(mesh[0]), self.environment, clock)

    def new_output(self, scenario: Scenario) -> str:
        """A place where nothing is yet."""
        place = "gs://bucket" if scenario.place == "gs://" else str(self.disk.folder)
        return f"{place}/{scenario.stage}-{next(self._numbers)}"

    def forget(self, output: str) -> None:
        """Make room."""
        if output.startswith("gs://"):
            self.cloud.state.buckets["bucket"] = {}
        else:
            shutil.rmtree(output, ignore_errors=True)


def harm(lab: Lab, scenario: Scenario, kind: str, output: str, mesh: str) -> str:
    """Start the command and harm it once, at a random moment; says what happened, `ended` where it was too late."""
    like = "2 2 2 2" if mesh[0] == "2" else "1 2 2 2"
    draw, (_, usual) = lab.draw, lab.whole(scenario.stage, like)
    clock = draw.randrange(1000) if kind == "clock jump" else None
    launch = lab.launch(scenario.stage, output, mesh, clock)
    if scenario.stage == "reference":
        launch.wait_for_seconds(draw.uniform(0.3, 1) * usual)
    else:
        wait_for_a_moment(launch, draw, usual, lab.size // 6)
    if not launch.alive():
        codes = launch.end()
        if any(codes) and kind == "clock jump":  # it was the clock: orbax waits for what is due by it
            return f"gave up {codes}"
        if any(codes):
            return f"manual {codes}\n{launch.words()}"
        lab.took(scenario.stage, like, time.monotonic() - launch.started)
        return "ended"
    told = ""
    if kind == "SIGTERM":
        terminate(launch, draw)
    elif kind == "full disk":
        lab.disk.fill(launch)
    elif kind == "cut gs://":
        with cut(lab.cloud, draw):
            launch.wait(draw.choice([3, lab.longest_cut]) * draw.uniform(0.3, 1))
    elif kind == "damaged step":
        kill(launch, draw, everyone=True)
    else:
        kill(launch, draw, everyone=kind == "clock jump" or draw.random() < 0.7)
    codes = launch.end() if kind != "cut gs://" or not launch.alive() else [0]
    lab.disk.clear()
    if kind == "damaged step":
        told = damage(Path(output), draw)
    if kind == "cut gs://" and launch.alive():
        codes = launch.end()
    words = launch.words()
    return f"{told} {codes}" + (f"\n{words[-1500:]}" if "Traceback" in words else "")


def finish(lab: Lab, scenario: Scenario, output: str, mesh: str, tally: Tally) -> bool:
    """Run the command to its end, undisturbed; says whether it ended well."""
    launch = lab.launch(scenario.stage, output, mesh)
    codes = launch.end()
    if any(codes):
        tally.manual += 1
        print(f"{scenario.name}: undisturbed, and ended with {codes}:\n{launch.words()}", file=sys.stderr)
    return not any(codes)


def judge(lab: Lab, scenario: Scenario, output: str) -> Losses:
    """A finished run against the one that nobody disturbed."""
    mesh = f"{scenario.processes} 2 2 2"
    if scenario.stage == "reference":
        return compare_tables(output, lab.whole("reference", mesh)[0])
    return compare_runs(output, lab.whole(scenario.stage, mesh)[0], exact=not scenario.moves)


def play(lab: Lab, scenario: Scenario, kinds: list[str], tally: Tally, deeds: int) -> None:
    """Do all these kinds of harm, several to a run, and finish and judge each run."""
    begun, meshes = time.monotonic(), cycle(MESHES)
    waiting = list(kinds)
    while waiting:
        output = lab.new_output(scenario)
        for _ in range(min(deeds, len(waiting))):
            kind = waiting.pop(0)
            mesh = next(meshes) if scenario.moves else f"{scenario.processes} 2 2 2"
            said = harm(lab, scenario, kind, output, mesh)
            print(f"{scenario.name}: {kind}: {said.splitlines()[0]}", file=sys.stderr, flush=True)
            tally.manual += said.startswith("manual")
            if "\n" in said:
                print(said, file=sys.stderr)
            if said == "ended":
                waiting.append(kind)
                break
            tally.kills["SIGKILL" if said.startswith("nothing to damage") else kind] += 1
        mesh = next(meshes) if scenario.moves else f"{scenario.processes} 2 2 2"
        if finish(lab, scenario, output, mesh, tally):
            losses = judge(lab, scenario, output)
            if losses != Losses(0, 0, 0):
                print(f"{scenario.name}: {losses} in {output}", file=sys.stderr)
            tally.losses += losses
        tally.runs += 1
        lab.forget(output)
    tally.seconds += time.monotonic() - begun


def share_out(kills: int, draw: random.Random, scenarios: list[Scenario]) -> list[tuple[Scenario, str]]:
    """Which kind of harm is done where: every kind and every scenario about equally often."""
    shared: Counter[Scenario] = Counter()
    found = []
    for kind in islice(cycle(kind for kind in KINDS if any(each.takes(kind) for each in scenarios)), kills):
        able = [each for each in scenarios if each.takes(kind)]
        least = min(shared[each] for each in able)
        chosen = draw.choice([each for each in able if shared[each] == least])
        shared[chosen] += 1
        found.append((chosen, kind))
    return found


def table(tallies: dict[Scenario, Tally]) -> str:
    """Markdown."""
    rows = [
        f"| {' + '.join(f'{n} {kind}' for kind, n in sorted(t.kills.items()))} | {t.runs} | {t.losses.lost} | "
        f"{t.losses.repeated} | {t.losses.diverging} | {t.manual} | {t.seconds:.0f} |"
        for t in tallies.values()
    ]
    names = [f"| {scenario.name} " for scenario in tallies]
    total = sum(t.kills.total() for t in tallies.values())
    runs, seconds = (sum(getattr(t, name) for t in tallies.values()) for name in ("runs", "seconds"))
    losses = sum((t.losses for t in tallies.values()), Losses(0, 0, 0))
    manual = sum(t.manual for t in tallies.values())
    columns = ["stage, processes, storage", "kills", "runs", "lost", "repeated", "diverging", "manual", "seconds"]
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    end = f"| all | {total} | {runs} | {losses.lost} | {losses.repeated} | {losses.diverging} | {manual} | {seconds:.0f} |"
    return "\n".join([head, *(name + row for name, row in zip(names, rows, strict=True)), end])


@contextmanager
def lab_in(folder: Path, seed: int, size: int, longest_cut: float) -> Iterator[Lab]:
    """The lab, and its cloud led to by every client of this process and its children."""
    with Gcs() as server:
        os.environ.update(server.environment)
        server.state.buckets["bucket"] = {}
        cloud.configure_clients()
        lab = Lab(folder, server, seed, size, longest_cut)
        try:
            yield lab
        finally:
            lab.disk.close()


def main(arguments: list[str] | None = None) -> int:
    """Harm, finish, judge, print; 1 where anything is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=60, help="rows of data, in units of a few")
    parser.add_argument("--short", action="store_true", help="a few scenarios only, as in the tests")
    parser.add_argument("--only", help="scenarios whose name has this in it")
    options = parser.parse_args(arguments)
    scenarios = [each for each in (SHORT if options.short else SCENARIOS) if (options.only or "") in each.name]
    tallies = {scenario: Tally() for scenario in scenarios}
    folder = Path(tempfile.mkdtemp(prefix="zephyr-jax-chaos-"))
    try:
        with lab_in(folder, options.seed, options.size, 3 if options.short else 45) as lab:
            deeds = share_out(options.kills, lab.draw, scenarios)
            for scenario, tally in tallies.items():
                kinds = [kind for chosen, kind in deeds if chosen == scenario]
                play(lab, scenario, kinds, tally, deeds=4)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tallies = {scenario: tally for scenario, tally in tallies.items() if tally.runs}
    print(table(tallies))
    losses = sum((tally.losses for tally in tallies.values()), Losses(0, 0, 0))
    return int(losses != Losses(0, 0, 0) or any(tally.manual for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
