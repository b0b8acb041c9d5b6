"""Fault injection: SFT, reference passes and DPO, interrupted at random moments and resumed by the same command.

    uv run python -m benchmarks.chaos --faults 50

One or two real processes, on disk or on a Cloud Storage server on loopback. Faults: SIGKILL, SIGTERM, a full disk, failing
storage, a damaged newest checkpoint, a jumping clock. Each run is compared with an undisturbed one. Prints a table, and exits
with 1 unless every count in it is 0.
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

from benchmarks.chaos.faults import FAULTS, Disk, damage, failing_storage, kill, terminate, wait_random
from benchmarks.chaos.launch import Launch, start
from benchmarks.chaos.verdict import Differences, compare_runs, compare_tables
from tests.conftest import write_rows
from tests.gcs import Gcs
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.demo.remake import write_untrained
from zephyr_jax.storage import cloud

STAGES = ("sft", "reference", "dpo")
MESHES = ("1 2 2 2", "1 1 8 1", "1 4 1 2", "2 2 2 2", "2 1 8 1")
"""Processes, data, fsdp and tensor of successive launches, for runs that resume on another mesh after each fault."""
COMMON = (
    "--data.max_length 256 --model.compute_dtype float32 --model.remat none --model.logprob_chunk 64 "
    "--report.no_progress_bar"
)
TRAINING = (
    "--schedule.save_every 4 --schedule.evaluate_every 0 --schedule.keep_last 3 --report.log_example_ids "
    "--batch.microbatch_rows 8 --report.num_samples 0"
)


@dataclass(frozen=True)
class Scenario:
    """A command on one or two processes and a storage; with `moves`, each launch has another mesh."""

    stage: str
    processes: int
    storage: str = "disk"
    moves: bool = False

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.stage}, {'moving' if self.moves else self.processes}, {self.storage}"

    def takes(self, fault: str) -> bool:
        """Whether a fault can be injected here."""
        if fault == "cut gs://":
            return self.storage == "gs://"
        if fault in ("full disk", "damaged step"):
            return self.storage == "disk" and not (fault == "damaged step" and self.stage == "reference")
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
    """Results of one scenario."""

    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    differences: Differences = field(default_factory=lambda: Differences(0, 0, 0))
    manual: int = 0
    """Undisturbed launches that failed, so that a person would have had to act."""
    seconds: float = 0.0


class Lab:
    """A folder with a model and rows, a storage server, a small disk, and undisturbed runs."""

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
        self._undisturbed: dict[tuple[str, str], tuple[str, float]] = {}
        self._numbers = iter(range(10**6))

    def arguments(self, stage: str, output: str, mesh: str) -> list[str]:
        """The arguments; only `output` and the mesh differ between the runs of a stage."""
        data, fsdp, tensor = mesh.split()[1:]
        text = f"{stage} --model.path {self.folder}/model {COMMON} --mesh.data {data} --mesh.fsdp {fsdp} --mesh.tensor {tensor}"
        if stage == "sft":
            text += f" {TRAINING} --data.path {self.folder}/chats.jsonl --data.row_length 256 --batch.rows 16"
            return f"{text} --schedule.epochs 2 --optimizer.learning_rate 1e-3 --output {output}".split()
        text += f" --data.path {self.folder}/pairs.jsonl --data.row_length 512 --data.max_prompt_length 64"
        if stage == "reference":
            text += " --batch.rows 8 --output none"
            return f"{text} --reference {output}".split()
        text += f" {TRAINING} --batch.examples 12 --schedule.epochs 2 --optimizer.learning_rate 1e-4"
        return f"{text} --reference {self.undisturbed('reference', '1 2 2 2')[0]} --output {output}".split()

    def undisturbed(self, stage: str, mesh: str) -> tuple[str, float]:
        """The undisturbed run of a stage, made on first use, and its seconds."""
        if (stage, mesh) not in self._undisturbed:
            output = str(self.folder / f"undisturbed-{stage}-{mesh.replace(' ', '-')}")
            launch = self.launch(stage, output, mesh)
            codes = launch.end()
            if any(codes):
                sys.exit(f"The undisturbed {stage} run exited with {codes}:\n{launch.log()}")
            self._undisturbed[stage, mesh] = output, time.monotonic() - launch.started
        return self._undisturbed[stage, mesh]

    def record_duration(self, stage: str, mesh: str, seconds: float) -> None:
        """Record the duration of a run that ended before its fault: the first run compiled, so it takes longer than others."""
        output, usual = self._undisturbed[stage, mesh]
        self._undisturbed[stage, mesh] = output, min(usual, seconds)

    def launch(self, stage: str, output: str, mesh: str, clock: int | None = None) -> Launch:
        """Start a stage."""
        return start(self.arguments(stage, output, mesh), int(mesh[0]), self.environment, clock)

    def new_output(self, scenario: Scenario) -> str:
        """An unused output path."""
        root = "gs://bucket" if scenario.storage == "gs://" else str(self.disk.folder)
        return f"{root}/{scenario.stage}-{next(self._numbers)}"

    def delete(self, output: str) -> None:
        """Delete an output."""
        if output.startswith("gs://"):
            self.cloud.state.buckets["bucket"] = {}
        else:
            shutil.rmtree(output, ignore_errors=True)


def inject(lab: Lab, scenario: Scenario, fault: str, output: str, mesh: str) -> str:
    """Start the command and inject one fault at a random moment. Returns what happened; `ended` if the command was faster."""
    like = "2 2 2 2" if mesh[0] == "2" else "1 2 2 2"
    draw, (_, usual) = lab.draw, lab.undisturbed(scenario.stage, like)
    clock = draw.randrange(1000) if fault == "clock jump" else None
    launch = lab.launch(scenario.stage, output, mesh, clock)
    if scenario.stage == "reference":
        launch.wait_for_seconds(draw.uniform(0.3, 1) * usual)
    else:
        wait_random(launch, draw, usual, lab.size // 6)
    if not launch.alive():
        codes = launch.end()
        if any(codes) and fault == "clock jump":  # orbax waits by the wall clock
            return f"gave up {codes}"
        if any(codes):
            return f"manual {codes}\n{launch.log()}"
        lab.record_duration(scenario.stage, like, time.monotonic() - launch.started)
        return "ended"
    damaged = ""
    if fault == "SIGTERM":
        terminate(launch, draw)
    elif fault == "full disk":
        lab.disk.fill(launch)
    elif fault == "cut gs://":
        with failing_storage(lab.cloud, draw):
            launch.wait(draw.choice([3, lab.longest_cut]) * draw.uniform(0.3, 1))
    elif fault == "damaged step":
        kill(launch, draw, all_processes=True)
    else:
        kill(launch, draw, all_processes=fault == "clock jump" or draw.random() < 0.7)
    codes = launch.end() if fault != "cut gs://" or not launch.alive() else [0]
    lab.disk.clear()
    if fault == "damaged step":
        damaged = damage(Path(output), draw)
    if fault == "cut gs://" and launch.alive():
        codes = launch.end()
    words = launch.log()
    return f"{damaged} {codes}" + (f"\n{words[-1500:]}" if "Traceback" in words else "")


def finish(lab: Lab, scenario: Scenario, output: str, mesh: str, tally: Tally) -> bool:
    """Run the command to its end, undisturbed. Returns whether it succeeded."""
    launch = lab.launch(scenario.stage, output, mesh)
    codes = launch.end()
    if any(codes):
        tally.manual += 1
        print(f"{scenario.name}: undisturbed, but exited with {codes}:\n{launch.log()}", file=sys.stderr)
    return not any(codes)


def compare(lab: Lab, scenario: Scenario, output: str) -> Differences:
    """Compare a finished run with the undisturbed one."""
    mesh = f"{scenario.processes} 2 2 2"
    if scenario.stage == "reference":
        return compare_tables(output, lab.undisturbed("reference", mesh)[0])
    return compare_runs(output, lab.undisturbed(scenario.stage, mesh)[0], exact=not scenario.moves)


def run_scenario(lab: Lab, scenario: Scenario, faults: list[str], tally: Tally, faults_per_run: int) -> None:
    """Inject all faults, several in one run; finish each run and compare it."""
    start_time, meshes = time.monotonic(), cycle(MESHES)
    pending = list(faults)
    while pending:
        output = lab.new_output(scenario)
        for _ in range(min(faults_per_run, len(pending))):
            fault = pending.pop(0)
            mesh = next(meshes) if scenario.moves else f"{scenario.processes} 2 2 2"
            outcome = inject(lab, scenario, fault, output, mesh)
            print(f"{scenario.name}: {fault}: {outcome.splitlines()[0]}", file=sys.stderr, flush=True)
            tally.manual += outcome.startswith("manual")
            if "\n" in outcome:
                print(outcome, file=sys.stderr)
            if outcome == "ended":
                pending.append(fault)
                break
            tally.faults["SIGKILL" if outcome.startswith("nothing to damage") else fault] += 1
        mesh = next(meshes) if scenario.moves else f"{scenario.processes} 2 2 2"
        if finish(lab, scenario, output, mesh, tally):
            differences = compare(lab, scenario, output)
            if differences != Differences(0, 0, 0):
                print(f"{scenario.name}: {differences} in {output}", file=sys.stderr)
            tally.differences += differences
        tally.runs += 1
        lab.delete(output)
    tally.seconds += time.monotonic() - start_time


def assign_faults(count: int, draw: random.Random, scenarios: list[Scenario]) -> list[tuple[Scenario, str]]:
    """Distribute faults over scenarios: every fault and every scenario about equally often."""
    assigned: Counter[Scenario] = Counter()
    pairs = []
    for fault in islice(cycle(fault for fault in FAULTS if any(one.takes(fault) for one in scenarios)), count):
        possible = [scenario for scenario in scenarios if scenario.takes(fault)]
        fewest = min(assigned[scenario] for scenario in possible)
        chosen = draw.choice([scenario for scenario in possible if assigned[scenario] == fewest])
        assigned[chosen] += 1
        pairs.append((chosen, fault))
    return pairs


def table(tallies: dict[Scenario, Tally]) -> str:
    """The results as a Markdown table."""
    rows = [
        f"| {' + '.join(f'{n} {fault}' for fault, n in sorted(t.faults.items()))} | {t.runs} | {t.differences.examples_lost} | "
        f"{t.differences.examples_repeated} | {t.differences.diverged} | {t.manual} | {t.seconds:.0f} |"
        for t in tallies.values()
    ]
    names = [f"| {scenario.name} " for scenario in tallies]
    total = sum(t.faults.total() for t in tallies.values())
    runs, seconds = (sum(getattr(t, name) for t in tallies.values()) for name in ("runs", "seconds"))
    differences = sum((t.differences for t in tallies.values()), Differences(0, 0, 0))
    manual = sum(t.manual for t in tallies.values())
    columns = ["stage, processes, storage", "faults injected", "runs", "examples lost"]
    columns += ["examples repeated", "runs diverged", "manual steps", "seconds"]
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    lost, repeated = differences.examples_lost, differences.examples_repeated
    end = f"| all | {total} | {runs} | {lost} | {repeated} | {differences.diverged} | {manual} | {seconds:.0f} |"
    return "\n".join([head, *(name + row for name, row in zip(names, rows, strict=True)), end])


@contextmanager
def lab_in(folder: Path, seed: int, size: int, longest_cut: float) -> Iterator[Lab]:
    """The lab; every storage client of this process and its children uses its server."""
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
    """Inject, resume, compare, print; returns 1 if any count is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=60, help="rows of data, in units of a few")
    parser.add_argument("--short", action="store_true", help="a few scenarios only, as in the tests")
    parser.add_argument("--only", help="scenarios whose name has this in it")
    options = parser.parse_args(arguments)
    scenarios = [one for one in (SHORT if options.short else SCENARIOS) if (options.only or "") in one.name]
    tallies = {scenario: Tally() for scenario in scenarios}
    folder = Path(tempfile.mkdtemp(prefix="zephyr-jax-chaos-"))
    try:
        with lab_in(folder, options.seed, options.size, 3 if options.short else 45) as lab:
            assigned = assign_faults(options.faults, lab.draw, scenarios)
            for scenario, tally in tallies.items():
                faults = [fault for chosen, fault in assigned if chosen == scenario]
                run_scenario(lab, scenario, faults, tally, faults_per_run=4)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tallies = {scenario: tally for scenario, tally in tallies.items() if tally.runs}
    print(table(tallies))
    differences = sum((tally.differences for tally in tallies.values()), Differences(0, 0, 0))
    return int(differences != Differences(0, 0, 0) or any(tally.manual for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
