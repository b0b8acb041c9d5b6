"""Files of rows: every kind and compression gives equal rows, types are not inferred, and errors name file and row."""

import bz2
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import write_rows
from zephyr_jax.data.json_values import JsonValues
from zephyr_jax.data.sources import open_rows, read_rows
from zephyr_jax.errors import InputError

type Row = dict[str, Any]
CHAT = [{"role": "user", "content": "Häuser 🏠"}, {"role": "assistant", "content": "Blue."}]
ROWS: list[Row] = [{"id": f"row-{n}", "messages": CHAT} for n in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache for every test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def rows(path: Path, split: str = "train") -> list[Row]:
    return list(open_rows(str(path), split))


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


def separated(delimiter: str) -> bytes:
    cells = [["id", "messages"], *([row["id"], json.dumps(row["messages"])] for row in ROWS)]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in cells]
    return "\n".join(delimiter.join(row) for row in quoted).encode()


def parquet(table: list[Row] = ROWS) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table), file)
    return file.getvalue()


def arrow(new: Callable[..., Any]) -> bytes:
    file, table = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with new(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


FILES: dict[str, bytes] = {
    "a.jsonl": LINES,
    "a.JSONL": LINES,
    "a.ndjson": LINES,
    "a.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "lines.json": LINES,
    "list.jsonl": json.dumps(ROWS).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "blank.jsonl": LINES.replace(b"\n", b"\n\n"),
    "a.jsonl.gz": gzip.compress(LINES),
    "two.jsonl.gz": gzip.compress(LINES[:150]) + gzip.compress(LINES[150:]),
    "a.json.bz2": bz2.compress(json.dumps(ROWS).encode()),
    "a.ndjson.xz": lzma.compress(LINES),
    "a.jsonl.zst": zstd(LINES),
    "two.jsonl.zst": zstd(LINES[:150]) + zstd(LINES[150:]),
    "named.jsonl": gzip.compress(LINES),
    "a.csv": separated(","),
    "a.TSV": separated("\t"),
    "a.csv.gz": gzip.compress(separated(",")),
    "a.parquet": parquet(),
    "a.snappy.parquet": parquet(),
    "file.arrow": arrow(pa.ipc.new_file),
    "stream.arrow": arrow(pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    found = rows(tmp_path / name)
    messages = [json.loads(m) if isinstance(m := row["messages"], str) else m for row in found]
    assert [{**row, "messages": m} for row, m in zip(found, messages, strict=True)] == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "stream.arrow"])
def test_only_the_first_rows_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert [row["id"] for row in open_rows(str(tmp_path / name), "train", limit=2)] == ["row-0", "row-1"]
    assert [row.content["id"] for row in read_rows(str(tmp_path / name), "train", limit=1)] == ["row-0"]


# ---- types ----

VALUES: list[Any] = [
    "2024-01-03", "2024-01-03T10:00:00Z", 12345678901234567890123, -(2**63) - 1, "007", "NaN", "true", "1e5", 0.1, True,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_value_keeps_its_type(value: Any, tmp_path: Path) -> None:
    """Law: nothing is inferred: text stays text, integers keep all digits, and a column may change its type."""
    path = write_rows(tmp_path / "rows.jsonl", [{"id": value, "prompt": "x"}, {"id": [1], "prompt": "y"}])
    assert [row["id"] for row in open_rows(str(path), "train")] == [value, [1]]


def test_dates_in_a_conversation_stay_text(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "2024-01-03"}]
    assert rows(write_rows(tmp_path / "rows.jsonl", [{"messages": chat}] * 3))[2]["messages"] == chat


def test_a_column_that_is_not_needed_does_not_matter(tmp_path: Path) -> None:
    """Law: it may change its type after megabytes, differ between files, or hold what JSON forbids."""
    big = [{"role": "user", "content": "x" * 2000}, CHAT[1]]
    lines = [json.dumps({"messages": big, "meta": None}) for _ in range(1500)]
    lines += [json.dumps({"messages": big, "meta": late}) for late in ({"src": "late"}, 3, "x", [[1], "y"])]
    lines += ['{"messages": [], "meta": NaN}']
    (tmp_path / "train-0.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.table({"messages": [CHAT], "meta": [1.5], "more": [b"\xff"]}), tmp_path / "train-1.parquet")
    found = open_rows(str(tmp_path), "train")
    assert (len(found), set(found.fields)) == (1506, {"messages", "meta", "more"})
    assert found.table.column_names == ["messages"]
    assert found[1505] == {"messages": CHAT}


def test_a_needed_column_may_differ_between_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "train-0.jsonl", [{"id": 1, "messages": CHAT}])
    write_rows(tmp_path / "train-1.jsonl", [{"id": "gsm-17", "messages": json.dumps(CHAT)}])
    assert [row["id"] for row in rows(tmp_path)] == [1, "gsm-17"]


def test_null_fields_of_arrow_are_absent(tmp_path: Path) -> None:
    """Law: fields that Arrow adds to each struct of a column are not there in the row."""
    chat = [CHAT[0], {**CHAT[1], "weight": 0}]
    pq.write_table(pa.Table.from_pylist([{"messages": chat}]), tmp_path / "rows.parquet")
    assert rows(tmp_path / "rows.parquet") == [{"messages": chat}]


def test_bytes_are_not_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": [b"abc"]}), tmp_path / "rows.parquet")
    assert rows(tmp_path / "rows.parquet") == [{"prompt": {"bytes": 3}}]


# ---- the cache ----


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    """Law: rows are kept by content: equal size and time of another file do not matter, nor do its name and place."""
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "one"}])
    stamp = path.stat()
    assert rows(path) == [{"prompt": "one"}]
    write_rows(path, [{"prompt": "two"}])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert rows(path) == [{"prompt": "two"}]


def test_equal_content_has_one_key(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / name, ROWS) for name in ("a.jsonl", "b.jsonl")]
    one, other = (open_rows(str(path), "train") for path in paths)
    assert one.table._fingerprint == other.table._fingerprint
    assert one.table._fingerprint != open_rows(str(paths[0]), "train", limit=1).table._fingerprint


# ---- what is wrong ----

WRONG: dict[str, tuple[str, bytes, str]] = {
    "a line": ("a.jsonl", LINES + b"{'x': 1}\n", "a.jsonl line 4 cannot be read: the line is not JSON"),
    "a line of another kind": ("a.jsonl", LINES + b"[1]\n", "a.jsonl line 4 .* it is not an object"),
    "a row of a list": ("a.json", b'[{"id": 1}, 3]', "a.json row 1 .* it is not an object"),
    "a list without end": ("a.json", b'[{"id": 1}, {"id": 2}', "a.json is not a JSON list"),
    "a broken list": ("a.jsonl", b'[{"id": 1} {"id": 2}]', "expected `,`"),
    "text after a list": ("a.json", b'[{"id": 1}] x', "text after the list"),
    "UTF-16": ("a.jsonl", LINES.decode().encode("utf-16"), "is UTF-16 or UTF-32; .*iconv"),
    "UTF-16 without mark": ("a.jsonl", LINES.decode().encode("utf-16-le"), "is UTF-16"),
    "UTF-16 CSV": ("a.csv", "prompt\nx".encode("utf-16"), "is UTF-16"),
    "an LFS pointer": ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "an LFS pointer of text": ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a cut archive": ("a.jsonl.gz", gzip.compress(LINES)[:-9], "a.jsonl.gz cannot be read"),
    "a cut Zstandard file": ("a.jsonl.zst", zstd(LINES)[:-9], "a.jsonl.zst cannot be read"),
    "not an archive": ("a.jsonl.gz", LINES, "not compressed that way"),
    "Parquet by another name": ("a.jsonl", FILES["a.parquet"], "is a Parquet file"),
    "a packed Parquet file": ("a.parquet.gz", gzip.compress(FILES["a.parquet"]), "Decompress it first"),
    "a long CSV row": ("a.csv", b"prompt,id\nx,1\ny,2,3\n", "a.csv row 1 .* more cells than the header"),
    "a CSV column twice": ("a.csv", b"prompt,prompt\nx,1\n", "column prompt twice"),
    "a CSV of another encoding": ("a.csv", "prompt\nä\n".encode("latin-1"), "a.csv row 0 .* not UTF-8"),
    "an open quote": ("a.csv", b'prompt\n"x\n', "a.csv cannot be read as CSV"),
    "a damaged Arrow file": ("a.arrow", FILES["file.arrow"][:-40], "a.arrow cannot be read as Arrow"),
    "an unknown suffix": ("a.xlsx", b"x", "ends in `.xlsx`"),
    "nothing": ("a.jsonl", b"", "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_is_named_with_file_and_row(name: str, tmp_path: Path) -> None:
    file, content, reason = WRONG[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=reason):
        rows(tmp_path / file)
    with pytest.raises(InputError, match=reason):
        list(read_rows(str(tmp_path / file), "train"))


def test_a_column_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"id": ["a"], "prompt": bad}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a.parquet row 0 .* its column `prompt` holds text that is not UTF-8"):
        rows(tmp_path / "a.parquet")


# ---- JSON in pieces ----


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_list_is_read_in_pieces(size: int) -> None:
    """Law: where the pieces end does not matter."""

    class Pieces(io.BytesIO):
        def read(self, count: int | None = -1, /) -> bytes:
            return super().read(size)

    values: list[Any] = [{"a": "häß"}, {"b": [1.5, 12345678901234567890, None]}, {"c": '\\" ]}, {'}]
    text = json.dumps(values, ensure_ascii=False, indent=1)
    assert list(JsonValues(Pieces(text.encode()))) == values
    assert list(JsonValues(Pieces("\n".join(json.dumps(value, indent=1) for value in values).encode()))) == values
    assert list(JsonValues(Pieces(b" [ ] "))) == []
