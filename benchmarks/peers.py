"""Compares target tokens per CPU-second of training with this project, TRL and Tunix on one CPU machine.

    benchmarks/setup_peers.sh /somewhere/peers
    python -m benchmarks.peers --mode dpo --trl-python /somewhere/peers/trl/bin/python \\
        --tunix-python /somewhere/peers/tunix/bin/python

Every round runs each worker in turn, as a separate process in a separate environment; rounds differ in the
seed of the workload. Every optimizer update of a round is made of exactly the same examples in all workers, ``workload.BATCH``
of them; workers differ in how many they take at a time and how they lay them out. The result is a Markdown table.
``--compare copied-prompts`` adds a second run of zephyr-jax to each round, in which pairs do not share their prompts.

The protocol: ``python -m benchmarks.worker_X --mode M --steps N --seed S``, started in the repository root,
trains on the examples of ``benchmarks.workload`` and prints, as its last line of standard output, one JSON
object::

    {"name", "mode", "target_tokens", "cpu_seconds", "wall_seconds", "slots", "nonpad", "note", "digests"}

With ``--rank N`` the command ends with ``--rank N``, and the worker trains LoRA adapters of all seven projections over a float32
base instead of all weights. Options of a variant (``COMPARISONS``) come last.

``target_tokens`` are the tokens whose log-probability entered the loss in the timed steps, ``cpu_seconds``
the user and system time of the process over those steps (no imports, no compilation, no first step),
``slots`` the token positions computed and ``nonpad`` those that held a real token. The examples are those of
``workload.make_batches``: a batch to warm up, then one for each timed update. ``digests`` has a ``workload.digest`` of each timed
update, computed from the arrays that the worker's step was given; a worker with other digests than ``workload.digest_batches``
ends the comparison. ``workload.Result.emit`` prints the line. A worker whose module does not exist is reported and left out.

The machine should be idle, for contention inflates CPU-seconds: before each worker this script waits for that, a
run that other processes disturbed is repeated, and the table shows how much CPU time they took in the runs kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.workload import BATCH, MODES, Result, digest_batches, make_batches

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
THREADS = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
# Keeps glibc from returning freed tensors to the kernel: otherwise torch spends about a third of its CPU time
# on page faults.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
    "MALLOC_TOP_PAD_": str(1 << 30),
}
# Large pages for large arrays, as launch/zephyr.sh asks for: XLA spends a tenth less time. Torch gains nothing beside the above.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
COMPARISONS = {"copied-prompts": ("--copy-prompts",)}
"""Variants of zephyr-jax's worker by name, with the options that make them."""
IDLE_CPUS = 0.25  # CPUs that other processes may use before a worker starts


@dataclass(frozen=True)
class Worker:
    """One competitor: its module, its interpreter, what its environment adds, and the options of a variant."""

    name: str
    python: str
    extra: dict[str, str]
    variant: str = ""

    @property
    def title(self) -> str:
        """Its name in the table."""
        return f"{self.name}, {self.variant}" if self.variant else self.name

    def exists(self) -> bool:
        return (ROOT / "benchmarks" / f"worker_{self.name}.py").is_file()


@dataclass(frozen=True)
class Run:
    """A worker's result and the CPU seconds that other processes took while it ran."""

    result: Result
    foreign_cpu: float
    elapsed: float

    @property
    def rate(self) -> float:
        return self.result.target_tokens / self.result.cpu_seconds

    @property
    def foreign_load(self) -> float:
        return self.foreign_cpu / self.elapsed


def busy_seconds() -> float:
    """CPU seconds that the whole machine has been busy since boot."""
    fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, irq, softirq = fields[:7]
    return (user + nice + system + irq + softirq) / TICKS


def child_seconds() -> float:
    """CPU seconds of the workers that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def wait_until_idle(timeout: float) -> None:
    """Return once other processes use under ``IDLE_CPUS``; after ``timeout`` seconds warn and go on."""
    deadline = time.monotonic() + timeout
    while True:
        before, start = busy_seconds(), time.monotonic()
        time.sleep(3)
        load = (busy_seconds() - before) / (time.monotonic() - start)
        if load < IDLE_CPUS:
            return
        if time.monotonic() > deadline:
            print(f"warning: other processes still use {load:.1f} CPUs; stop them and rerun", file=sys.stderr)
            return


def run_worker(worker: Worker, mode: str, steps: int, seed: int, rank: int) -> Run:
    """Run one worker to its end and parse its last line."""
    command = [worker.python, "-m", f"benchmarks.worker_{worker.name}"]
    command += ["--mode", mode, "--steps", str(steps), "--seed", str(seed)]
    command += ["--rank", str(rank)] if rank else []
    command += COMPARISONS[worker.variant] if worker.variant else []
    busy, own, start = busy_seconds(), child_seconds(), time.monotonic()
    environment = {**os.environ, **THREADS, **OFFLINE, **ON_CPU, **worker.extra}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    elapsed = time.monotonic() - start
    foreign = max(0.0, busy_seconds() - busy - (child_seconds() - own))
    lines = [line for line in done.stdout.splitlines() if line.startswith("{") and '"cpu_seconds"' in line]
    if done.returncode or not lines:
        reason = "was killed (for memory?)" if done.returncode == -9 else f"ended with {done.returncode}"
        raise SystemExit(
            f"worker {worker.title} {reason} and printed no result. Run it alone to see why:\n"
            f"  {' '.join(command)}\nIts last output was:\n{(done.stderr or done.stdout)[-2000:]}"
        )
    return Run(Result(**json.loads(lines[-1])), foreign, elapsed)


def check_examples(worker: Worker, result: Result, steps: int, seed: int) -> None:
    """Exit unless every timed update of a worker had exactly the examples of the workload, so of the other workers."""
    expected = digest_batches(make_batches(result.mode, steps, seed)[1:], result.mode)
    if result.digests != expected:
        raise SystemExit(
            f"worker {worker.title} trained on other examples than the workload of seed {seed}: expected the digests "
            f"{', '.join(expected)} of its updates, got {', '.join(result.digests) or 'none'}. Its rate is not comparable: "
            f"compare the batches that benchmarks/worker_{worker.name}.py builds with benchmarks.workload.make_batches."
        )


def run_undisturbed(worker: Worker, seed: int, title: str, args: argparse.Namespace) -> Run:
    """Run one worker, again where others took over ``--max-load`` CPUs; the least disturbed run counts."""
    runs: list[Run] = []
    for _ in range(args.retries + 1):
        wait_until_idle(args.timeout)
        runs.append(run_worker(worker, args.mode, args.steps, seed, args.rank))
        check_examples(worker, runs[-1].result, args.steps, seed)
        report(title, runs[-1])
        if runs[-1].foreign_load <= args.max_load:
            break
    return min(runs, key=lambda run: run.foreign_load)


def spread(values: list[float], digits: int) -> str:
    """``median (min-max)``."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(runs: dict[str, list[Run]]) -> str:
    """The Markdown table. A ratio divides this row's rate by a peer's in the same round."""
    peers = [name for name in runs if name != "ours"]
    titles = ["worker", "target tokens / CPU-s", *(f"ratio to {peer}" for peer in peers)]
    titles += ["target tokens / wall-s", "slots per target", "real slots", "other load"]
    rows = [titles, ["---"] * len(titles)]
    for name, own in runs.items():
        results = [run.result for run in own]
        slots, nonpad = sum(r.slots for r in results), sum(r.nonpad for r in results)
        targets = sum(r.target_tokens for r in results)
        ratios = [spread([a.rate / b.rate for a, b in zip(own, runs[peer], strict=True)], 2) for peer in peers]
        wall = median(r.target_tokens / r.wall_seconds for r in results)
        load = max(run.foreign_load for run in own)
        row = [name, spread([run.rate for run in own], 1), *ratios, f"{wall:.1f}"]
        rows.append([*row, f"{slots / targets:.2f}", f"{nonpad / slots:.0%}", f"{load:.2f} CPUs"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine() -> str:
    """The CPU's name and count."""
    models = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{os.cpu_count()} x {models[0] if models else platform.machine()}"


def present(workers: list[Worker]) -> list[Worker]:
    """The workers that can run; logs which cannot, and the fix."""
    for worker in workers:
        if not worker.exists():
            print(
                f"benchmarks/worker_{worker.name}.py does not exist yet: comparing the others. "
                f"Write it to the protocol in benchmarks/peers.py to add {worker.name}.",
                file=sys.stderr,
            )
    return [worker for worker in workers if worker.exists()]


def report(title: str, run: Run) -> None:
    """Log the result of a run to standard error."""
    seconds = f"{run.result.cpu_seconds:.0f} CPU-s timed, {run.elapsed:.0f} s in all"
    load = f"others used {run.foreign_load:.2f} CPUs"
    print(f"{title}: {run.rate:.1f} target tokens per CPU-s ({seconds}; {load})", file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed optimizer updates of a worker")
    parser.add_argument("--rank", type=int, default=0, help="of LoRA adapters; 0: all weights train")
    parser.add_argument(
        "--compare", choices=COMPARISONS, nargs="+", default=[], help="further runs of zephyr-jax in each round"
    )
    parser.add_argument("--ours-python", default=sys.executable)
    parser.add_argument("--trl-python", help="interpreter with TRL; without it TRL is left out")
    parser.add_argument("--tunix-python", help="interpreter with Tunix; without it Tunix is left out")
    parser.add_argument("--timeout", type=float, default=300, help="seconds to wait for an idle machine")
    parser.add_argument("--max-load", type=float, default=0.15, help="CPUs others may use during a run")
    parser.add_argument("--retries", type=int, default=2, help="repeats of a run that was disturbed more")
    args = parser.parse_args()
    if args.rounds < 1 or args.steps < 1:
        parser.error("--rounds and --steps must be at least 1")
    if args.mode == "sft" and "copied-prompts" in args.compare:
        parser.error("--compare copied-prompts is for --mode dpo: only pairs have a prompt to share")
    for option in ("ours_python", "trl_python", "tunix_python"):
        path = getattr(args, option)
        if path and not Path(path).is_file():
            parser.error(
                f"--{option.replace('_', '-')} {path} is not a file: run benchmarks/setup_peers.sh FOLDER "
                "and pass FOLDER/trl/bin/python or FOLDER/tunix/bin/python"
            )
    return args


def main() -> None:
    args = parse_arguments()
    workers = [Worker("ours", args.ours_python, HUGE_PAGES, variant) for variant in ("", *args.compare)]
    workers += [Worker("trl", args.trl_python, KEEP_MEMORY)] if args.trl_python else []
    workers += [Worker("tunix", args.tunix_python, HUGE_PAGES)] if args.tunix_python else []
    workers = present(workers)
    if not workers:
        raise SystemExit("nothing to run: pass --trl-python and --tunix-python (see benchmarks/setup_peers.sh)")
    runs: dict[str, list[Run]] = {worker.title: [] for worker in workers}
    for seed in range(args.rounds):
        for worker in workers:
            title = f"round {seed + 1}/{args.rounds} {worker.title}"
            runs[worker.title].append(run_undisturbed(worker, seed, title, args))
    size = f"{BATCH[args.mode]} examples an update, {args.steps} timed updates, {args.rounds} rounds, same examples"
    print(f"{args.mode}, {size}, {machine()}\n\n{table(runs)}\n")
    for name, own in runs.items():
        print(f"* {name}: {own[0].result.note}")


if __name__ == "__main__":
    main()
