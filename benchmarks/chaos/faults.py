"""Fault injection: signals, full disks, failing storage, damaged checkpoints."""

import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.chaos.launch import Launch
from tests.gcs import Gcs

FAULTS = ("SIGKILL", "SIGTERM", "full disk", "cut gs://", "damaged step", "clock jump")


def wait_random(launch: Launch, draw: random.Random, usual: float, steps: int) -> None:
    """Wait for at most `steps` steps and 0.3 s; in a fifth of cases, until any moment of a run of `usual` seconds."""
    if launch.processes and draw.random() < 0.2:
        launch.wait_for_seconds(draw.uniform(0.2, 1) * usual)
    else:
        launch.wait_for_steps(draw.randint(1, steps))
        time.sleep(draw.uniform(0, 0.3))


def kill(launch: Launch, draw: random.Random, all_processes: bool = False) -> None:
    """SIGKILL to one process, or to all, as in a power failure."""
    chosen = launch.processes if all_processes else [draw.choice(launch.processes)]
    for process in chosen:
        process.kill()


def terminate(launch: Launch, draw: random.Random) -> None:
    """SIGTERM to one process."""
    draw.choice(launch.processes).send_signal(signal.SIGTERM)


class Disk:
    """A small tmpfs where mounting is allowed (root on Linux), otherwise a limit on file sizes."""

    def __init__(self, folder: Path, megabytes: int = 400):
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        self.real = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self, launch: Launch) -> None:
        """Make every write fail."""
        if not self.real:
            for process in launch.processes:
                with suppress(ProcessLookupError):
                    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (512, 512))
            return
        with suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def clear(self) -> None:
        """Free the space again."""
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount."""
        if self.real:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)


@contextmanager
def failing_storage(cloud: Gcs, draw: random.Random) -> Iterator[None]:
    """Make every request fail inside the block: dropped connections, or status 503 or 403."""
    fault = draw.choice(["drop", 503, 403])
    cloud.state.fault = lambda *_: fault
    try:
        yield
    finally:
        cloud.state.fault = None


def damage(run: Path, draw: random.Random) -> str:
    """Damage one file of the newest checkpoint. Returns what was done, or `nothing to damage`."""
    steps = [path for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
    if not steps:
        return "nothing to damage"
    newest = max(steps, key=lambda path: int(path.name))
    file = draw.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size))
    content, damage_kind = bytearray(file.read_bytes()), draw.choice(["flip", "cut", "delete", "zeros"])
    if damage_kind == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(content))
    elif damage_kind == "cut":
        file.write_bytes(bytes(content[: draw.randrange(len(content))]))
    elif damage_kind == "zeros":
        file.write_bytes(bytes(len(content)))
    else:
        file.unlink()
    return f"{damage_kind} {file.relative_to(run)}"
