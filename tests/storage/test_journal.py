"""Journals: what was written down is there after a kill, and work is never mixed up."""

from pathlib import Path

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
    monkeypatch.setattr(journals, "_SETTLED", 0)
    work.add({"index": 0})
    assert settled == [path.read_bytes()]
    monkeypatch.setattr(journals, "_SETTLED", 1000)
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
    monkeypatch.setattr(journals, "_EVERY", 1000)
    first = Journal("gs://bucket/work.part", HEADER)
    first.add({"index": 0})
    assert Journal("gs://bucket/work.part", HEADER).lines == []
    first.close()
    monkeypatch.setattr(journals, "_EVERY", 0)
    second = Journal("gs://bucket/work.part", HEADER)
    assert second.lines == [{"index": 0}]
    second.add({"index": 1})
    assert Journal("gs://bucket/work.part", HEADER).lines == [{"index": 0}, {"index": 1}]
