"""Content keys follow the bytes of files and nothing else."""

import os
from pathlib import Path

import pytest

from zephyr_jax.storage import content
from zephyr_jax.storage.content import content_key


def put(path: Path, text: str) -> Path:
    """Write a file dated 2024-01-01, as `rsync -a`, tar and image layers restore dates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1704067200, 1704067200))
    return path


def test_equal_size_and_date_do_not_hide_a_change(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", "old")
    before = content_key([path])
    put(path, "new")
    assert content_key([path]) != before
    put(path, "old")
    assert content_key([path]) == before


def test_dates_and_places_do_not_count(tmp_path: Path) -> None:
    here, there = put(tmp_path / "a.jsonl", "rows"), put(tmp_path / "sub/b.jsonl", "rows")
    os.utime(there)
    assert content_key([here]) == content_key([there])
    assert content_key([tmp_path / "sub"]) != content_key([there])  # in a folder the names count


def test_order_and_borders_count(tmp_path: Path) -> None:
    first, second, third = (put(tmp_path / name, text) for name, text in (("a", "ab"), ("b", "c"), ("c", "a")))
    fourth = put(tmp_path / "d", "bc")
    assert content_key([first, second]) != content_key([second, first])
    assert content_key([first, second]) != content_key([third, fourth])


def test_a_folder_counts_with_names_and_without_hidden_files(tmp_path: Path) -> None:
    put(tmp_path / "one/state.json", "{}")
    put(tmp_path / "one/part/data.arrow", "rows")
    before = content_key([tmp_path / "one"])
    put(tmp_path / "one/.lock", "")
    assert content_key([tmp_path / "one"]) == before
    (tmp_path / "one/part/data.arrow").rename(tmp_path / "one/part/other.arrow")
    assert content_key([tmp_path / "one"]) != before


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 35])
def test_every_byte_of_every_chunk_counts(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_CHUNK", 10)
    monkeypatch.setattr(content, "_READ", 4)
    path = put(tmp_path / "rows", "x" * size)
    keys = {content_key([path])}
    for place in range(size):
        put(path, "x" * place + "y" + "x" * (size - place - 1))
        keys.add(content_key([path]))
    assert len(keys) == size + 1


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        content_key([tmp_path / "none.jsonl"])
