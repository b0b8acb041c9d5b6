"""One command as one or two real processes over loopback that share eight emulated devices."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

PATIENCE = 240.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@dataclass
class Launch:
    """The processes of a command that has been started, and what they have said so far."""

    processes: list[subprocess.Popen[str]]
    said: list[list[str]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        for process in self.processes:
            lines: list[str] = []
            self.said.append(lines)
            threading.Thread(target=self._listen, args=(process, lines), daemon=True).start()

    @staticmethod
    def _listen(process: subprocess.Popen[str], lines: list[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())

    def steps(self) -> int:
        """How many steps this launch has told of."""
        return sum(line.startswith("step ") and "evaluation" not in line for line in self.said[0])

    def alive(self) -> bool:
        """Whether all processes run."""
        return all(process.poll() is None for process in self.processes)

    def wait_for_steps(self, more: int) -> None:
        """Until so many more steps are told, or a process has ended."""
        enough = self.steps() + more
        while self.alive() and self.steps() < enough:
            time.sleep(0.005)

    def wait_for_seconds(self, seconds: float) -> None:
        """Until so long after the start, or a process has ended."""
        while self.alive() and time.monotonic() < self.started + seconds:
            time.sleep(0.005)

    def wait(self, seconds: float) -> None:
        """So long, or until all processes have ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(process.poll() is None for process in self.processes):
            time.sleep(0.05)

    def end(self) -> list[int]:
        """Wait for all processes; what hangs for minutes is killed, and its code is -9."""
        until = time.monotonic() + PATIENCE
        for process in self.processes:
            try:
                process.wait(timeout=max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        time.sleep(0.05)  # the last lines
        return [process.returncode for process in self.processes]

    def words(self) -> str:
        """Everything that was said."""
        return "\n".join(line for lines in self.said for line in lines)

    def progress(self) -> list[int]:
        """The steps that were told, in order."""
        return [int(found[1]) for line in self.said[0] if (found := re.match(r"step (\d+)/\d+  loss", line))]


def start(words: list[str], count: int, environment: dict[str, str], clock: int | None = None) -> Launch:
    """Start a command as `count` processes. `clock`: a seed; the processes' clock jumps at moments drawn from it."""
    address, processes = f"localhost:{free_port()}", []
    module = ["-m", "zephyr_jax"] if clock is None else ["-m", "benchmarks.chaos.jumping", str(clock)]
    for index in range(count):
        own = {}
        if count > 1:
            own = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
        if "--mesh.emulated_devices" not in words:
            words = [*words, "--mesh.emulated_devices", str(8 // count)]
        command = [sys.executable, *module, *words]
        processes.append(
            subprocess.Popen(
                command,
                env={**os.environ, **environment, **own},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return Launch(processes)
