"""Launchers under test: run with a PATH whose cloud tools only write down how they were called, and answer what a test says."""

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch"
TOOLS = ("gcloud", "kubectl", "sky", "sbatch", "srun", "scontrol", "curl", "uv", "zephyr-jax")
FAKE = r"""#!/usr/bin/env bash
# Writes its words down; answers with the next line of a file in $FAKE whose name is one of its words (or the fake's own name).
# The last line is given for ever; one that begins with ! is an error.
here=${0##*/}
{ printf '%s\0' "$here" "$@"; printf '\n'; } >> "$FAKE/calls"
for word in "$@"; do [ "$word" != --filename=- ] || cat > "$FAKE/stdin"; done
for word in "$@" "$here"; do
  case $word in *'host.sh state'*) word=state ;; */attributes/*) word=${word##*/} ;; esac
  case $word in */*) continue ;; esac
  if [ -f "$FAKE/$word.answers" ]; then
    answer=$(head -n 1 "$FAKE/$word.answers")
    [ "$(wc -l < "$FAKE/$word.answers")" -lt 2 ] || sed -i 1d "$FAKE/$word.answers"
    case $answer in '!'*) echo "${answer#!}" >&2; exit 1 ;; esac
    printf '%b\n' "$answer"
    exit
  fi
done
"""


@dataclass(frozen=True)
class Desk:
    """A machine with nothing but fakes of the tools that would reach a cloud."""

    folder: Path

    def run(self, script: str, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """The launcher with these words and environment; no setting comes from the environment of the tests."""
        command = ["bash", str(LAUNCH / script), *words]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment(settings), check=False)

    def environment(self, settings: dict[str, str]) -> dict[str, str]:
        """PATH with the fakes first, and the settings."""
        path = f"{self.folder}/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.folder), "FAKE": str(self.folder), "TMPDIR": "/tmp", **settings}

    def answer(self, word: str, *lines: str) -> None:
        """What a tool called with this word says: each time the next line, the last one for ever."""
        (self.folder / f"{word}.answers").write_text("".join(f"{line}\n" for line in lines))

    def calls(self) -> list[list[str]]:
        """Every call of a tool so far, in order."""
        file = self.folder / "calls"
        lines = file.read_text().split("\0\n") if file.exists() else []
        return [line.split("\0") for line in lines if line]


def desk_in(folder: Path) -> Desk:
    """Fakes of all tools in `folder`/bin."""
    (folder / "bin").mkdir()
    for tool in TOOLS:
        (folder / "bin" / tool).write_text(FAKE)
        (folder / "bin" / tool).chmod(0o755)
    return Desk(folder)


def commands(printed: str) -> list[list[str]]:
    """What a dry run printed, as the words that a shell would see."""
    return [shlex.split(line) for line in printed.splitlines()]


def options(words: list[str]) -> dict[str, str]:
    """`--name=value` words as a dictionary; a bare `--name` is there with an empty value."""
    return {name: value for name, _, value in (word.partition("=") for word in words if word.startswith("--"))}
