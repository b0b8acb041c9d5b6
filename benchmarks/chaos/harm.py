"""The ways in which a run is harmed."""

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

KINDS = ("SIGKILL", "SIGTERM", "full disk", "cut gs://", "damaged step", "clock jump")
STOPPED, REFUSED = 75, 2


def wait_for_a_moment(launch: Launch, draw: random.Random, usual: float, steps: int) -> None:
    """Most often after up to so many steps and a little more; now and then while the command starts."""
    if launch.processes and draw.random() < 0.2:
        launch.wait_for_seconds(draw.uniform(0.2, 1) * usual)
    else:
        launch.wait_for_steps(draw.randint(1, steps))
        time.sleep(draw.uniform(0, 0.3))


def kill(launch: Launch, draw: random.Random, everyone: bool = False) -> None:
    """SIGKILL to one process, or to all, as when the power goes."""
    chosen = launch.processes if everyone else [draw.choice(launch.processes)]
    for process in chosen:
        process.kill()


def terminate(launch: Launch, draw: random.Random) -> None:
    """SIGTERM to one process."""
    draw.choice(launch.processes).send_signal(signal.SIGTERM)


class Disk:
    """A small disk of its own where the system lets us have one (root on Linux), else a limit on the size of files."""

    def __init__(self, folder: Path, megabytes: int = 400):
        self.folder = folder
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        self.real = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self, launch: Launch) -> None:
        """From now on nothing can be written."""
        if not self.real:
            for process in launch.processes:
                with suppress(ProcessLookupError):
                    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (512, 512))
            return
        with suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def clear(self) -> None:
        """There is room again."""
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Give the disk back."""
        if self.real:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)


@contextmanager
def cut(cloud: Gcs, draw: random.Random) -> Iterator[None]:
    """Every request fails while the block runs: connections drop, or the server is out of order, or refuses."""
    how = draw.choice(["drop", 503, 403])
    cloud.state.fault = lambda *_: how
    try:
        yield
    finally:
        cloud.state.fault = None


def damage(run: Path, draw: random.Random) -> str:
    """Spoil one file of the newest step, where there is one; says which and how."""
    steps = [path for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
    if not steps:
        return "nothing to damage"
    newest = max(steps, key=lambda path: int(path.name))
    file = draw.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size))
    content, how = bytearray(file.read_bytes()), draw.choice(["flip", "cut", "delete", "zeros"])
    if how == "flip":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(content))
    elif how == "cut":
        file.write_bytes(bytes(content[: draw.randrange(len(content))]))
    elif how == "zeros":
        file.write_bytes(bytes(len(content)))
    else:
        file.unlink()
    return f"{how} {file.relative_to(run)}"
