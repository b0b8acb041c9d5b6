"""Journals: what was written down is there after a kill, and work is never mixed up."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gcs import Gcs
from zephyr_jax.errors import InputError
from zephyr_jax.storage import journal as journals
from zephyr_jax.storage.journal import Journal

HEADER = {"seed": 1, "model": {"path": "m"}}


def test_lines_are_there_at_once_and_a_cut_one_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "work.part"
    first = Journal(path, HEADER)
    first.add({"index": 0, "text": "ü\u2028\n"})
    first.add({"index": 1})
    with path.open("a") as file:
        file.write('{"index": 2, "te')
    again = Journal(path, HEADER)
    assert again.lines == [{"index": 0, "text": "ü\u2028\n"}, {"index": 1}]
    again.add({"index": 2})
    assert Journal(path, HEADER).lines[-1] == {"index": 2}
    again.delete()
    assert not path.exists()


def test_the_disk_is_waited_for_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loss of power would leave: what was in the file when the disk was last waited for."""
    settled: list[bytes] = []
    path = tmp_path / "work.part"
    work = Journal(path, HEADER)
    monkeypatch.setattr(journals.os, "fsync", lambda _: settled.append(path.read_bytes()))
    monkeypatch.setattr(journals, "_FSYNC_EVERY", 0)
    work.add({"index": 0})
    assert settled == [path.read_bytes()]
    monkeypatch.setattr(journals, "_FSYNC_EVERY", 1000)
    work.add({"index": 1})
    assert len(settled) == 1
    work.close()
    assert settled[-1] == path.read_bytes() and b'"index": 1' in settled[-1]


def test_other_work_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "work.part"
    Journal(path, HEADER).add({"index": 0})
    before = path.read_bytes()
    with pytest.raises(InputError, match="belongs to other work: seed was 1, is 2"):
        Journal(path, {**HEADER, "seed": 2})
    assert path.read_bytes() == before


def test_a_journal_without_work_is_no_hindrance(tmp_path: Path) -> None:
    """Law: settings that were wrong from the first request on can be put right; what is no journal of this kind stays."""
    path = tmp_path / "work.part"
    Journal(path, HEADER)
    assert Journal(path, {**HEADER, "seed": 2}).lines == []
    Journal(path, {**HEADER, "seed": 2}).add({"index": 0})
    with pytest.raises(InputError, match="seed was 2, is 1"):
        Journal(path, HEADER)
    path.write_text('{"somebody": "else"}\n')
    with pytest.raises(InputError, match="belongs to other work"):
        Journal(path, HEADER)
    assert path.read_text() == '{"somebody": "else"}\n'


def test_a_journal_in_the_cloud(bucket: Gcs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be appended there: the whole is written now and then, and at the end."""
    monkeypatch.setattr(journals, "_UPLOAD_EVERY", 1000)
    first = Journal("gs://bucket/work.part", HEADER)
    first.add({"index": 0})
    assert Journal("gs://bucket/work.part", HEADER).lines == []
    first.close()
    monkeypatch.setattr(journals, "_UPLOAD_EVERY", 0)
    second = Journal("gs://bucket/work.part", HEADER)
    assert second.lines == [{"index": 0}]
    second.add({"index": 1})
    assert Journal("gs://bucket/work.part", HEADER).lines == [{"index": 0}, {"index": 1}]


DAMAGE = {
    "a flipped bit": (lambda line: line.replace(b"{", b"\xfb", 1), "byte 1 of it is not UTF-8"),
    "half a line": (lambda line: line[: len(line) // 2], "it is not JSON"),
    "zeros": (lambda line: b"\0" * len(line), "it is not JSON"),
    "an empty line": (lambda _: b"", "it is not JSON"),
    "no object": (lambda _: b"[1]", "expected an object"),
    "deep": (lambda _: b"[" * 100_000, "it is not JSON"),
    "a field too few": (lambda line: line.replace(b"index", b"place"), "no index"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_in_the_middle_is_refused_by_line_and_mended_by_its_command(tmp_path: Path, name: str) -> None:
    """The lines after it are paid for: none of them is dropped, and the file stays as it is."""

    def problem(line: dict[str, Any]) -> str:
        return "" if "index" in line else "no index"

    path = tmp_path / "wo rk.part"
    work = Journal(path, HEADER, problem)
    for index in range(4):
        work.add({"index": index})
    change, words = DAMAGE[name]
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], change(lines[2]), *lines[3:]]))
    before = path.read_bytes()
    with pytest.raises(InputError, match="wo rk.part, line 3, is damaged: ") as found:
        Journal(path, HEADER, problem)
    assert words in str(found.value)
    assert path.read_bytes() == before
    subprocess.run(re.findall("`(.*)`", str(found.value))[0], shell=True, check=True)
    assert Journal(path, HEADER, problem).lines == [{"index": 0}, {"index": 2}, {"index": 3}]


@pytest.mark.parametrize("first", [b"{\n", b"\xff\n", b"[]\n"])
def test_a_damaged_header_loses_no_line(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "work.part"
    path.write_bytes(first + b'{"index": 0}\n')
    with pytest.raises(InputError, match="line 1, is damaged: .*restore the line, or move the file away"):
        Journal(path, HEADER)
    assert path.read_bytes() == first + b'{"index": 0}\n'


HOLD = """
import sys
from zephyr_jax.storage.journal import Journal
work = Journal(sys.argv[1], {"seed": 1, "model": {"path": "m"}})
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["killed", "done"])
def test_one_process_writes_at_a_time(tmp_path: Path, end: str) -> None:
    """The second one is refused with the first one's number, and may begin when that has ended, however it did."""
    path = tmp_path / "work.part"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"work.part is in use by process {other.pid}: expected one writer"):
            Journal(path, HEADER)
        if end == "killed":
            other.kill()
        other.communicate("\n")
    work = Journal(path, HEADER)
    assert Journal(path, HEADER).lines == []  # the same process may
    work.add({"index": 0})
    del work
    assert [file.name for file in tmp_path.iterdir()] == ["work.part"]
