"""One command as one or two real processes over loopback that share eight emulated devices."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

TIMEOUT = 240.0  # seconds for a command to end


def free_port() -> int:
    """An unused port."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@dataclass
class Launch:
    """The processes of a started command and their stderr so far."""

    processes: list[subprocess.Popen[str]]
    stderr: list[list[str]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        for process in self.processes:
            lines: list[str] = []
            self.stderr.append(lines)
            threading.Thread(target=self._listen, args=(process, lines), daemon=True).start()

    @staticmethod
    def _listen(process: subprocess.Popen[str], lines: list[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())

    def steps(self) -> int:
        """Training steps logged so far."""
        return sum(bool(re.search(r"\bstep \d+/\d+\s+loss", line)) for line in self.stderr[0])

    def alive(self) -> bool:
        """Whether all processes are running."""
        return all(process.poll() is None for process in self.processes)

    def wait_for_steps(self, more: int) -> None:
        """Wait for `more` logged steps, or until a process ends."""
        target = self.steps() + more
        while self.alive() and self.steps() < target:
            time.sleep(0.005)

    def wait_for_seconds(self, seconds: float) -> None:
        """Wait until `seconds` after the start, or until a process ends."""
        while self.alive() and time.monotonic() < self.started + seconds:
            time.sleep(0.005)

    def wait(self, seconds: float) -> None:
        """Wait for `seconds`, or until all processes have ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(process.poll() is None for process in self.processes):
            time.sleep(0.05)

    def end(self) -> list[int]:
        """Wait for all processes and return their exit codes; -9 for one that was killed after the timeout."""
        until = time.monotonic() + TIMEOUT
        for process in self.processes:
            try:
                process.wait(timeout=max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        time.sleep(0.05)  # the last lines
        return [process.returncode for process in self.processes]

    def log(self) -> str:
        """The stderr of all processes."""
        return "\n".join(line for lines in self.stderr for line in lines)


def start(arguments: list[str], count: int, environment: dict[str, str], clock: int | None = None) -> Launch:
    """Start a command as `count` processes. `clock`: seed of random clock jumps."""
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
        if "--mesh.emulated_devices" not in arguments:
            arguments = [*arguments, "--mesh.emulated_devices", str(8 // count)]
        command = [sys.executable, *module, *arguments]
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
