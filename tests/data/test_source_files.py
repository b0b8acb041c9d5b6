"""Folders of rows: splits, shards, cloned hub data sets, Spark's part files; what is ambiguous is refused, not joined."""

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import write_rows
from zephyr_jax.data.sources import Rows, open_rows
from zephyr_jax.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache for every test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    yield


def fill(folder: Path, *names: str) -> Path:
    """Files of one row each, whose prompt is the name of the file."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"prompt": [name]}), path)
        elif name.endswith((".jsonl", ".json")):
            write_rows(path, [{"prompt": name}])
        else:
            path.write_bytes(b"")
    return folder


def prompts(found: Rows) -> list[str]:
    return [row["prompt"] for row in found]


LAYOUTS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "a split": (("train.jsonl", "test.jsonl"), "test", ("test.jsonl",)),
    "shards": (("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"), "train",
               ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet")),
    "shards with a hash": (("train-00000-of-00001-a09b74b3ef9c3b56.parquet",), "train",
                           ("train-00000-of-00001-a09b74b3ef9c3b56.parquet",)),
    "mixed suffixes": (("train-0.jsonl", "train-1.parquet"), "train", ("train-0.jsonl", "train-1.parquet")),
    "a clone without configs": (("README.md", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"), "test",
                                ("data/test-00000-of-00001.parquet",)),
    "a folder a split": (("train/a.jsonl", "train/b.parquet", "test/a.jsonl"), "train", ("train/a.jsonl", "train/b.parquet")),
    "Spark": (("_SUCCESS", "part-00000-x.snappy.parquet", "part-00001-x.snappy.parquet"), "train",
              ("part-00000-x.snappy.parquet", "part-00001-x.snappy.parquet")),
    "an underscore": (("train_sft.jsonl", "train_gen.jsonl"), "train_sft", ("train_sft.jsonl",)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_its_split(name: str, tmp_path: Path) -> None:
    files, split, expected = LAYOUTS[name]
    assert prompts(open_rows(str(fill(tmp_path, *files)), split)) == list(expected)


HEADS = {
    "the hub's": "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n",
    "one pattern": "configs:\n- config_name: x\n  data_files: data/train-*.parquet\n",
    "by split": "configs:\n- config_name: x\n  data_files:\n    train: [data/train-0*, data/train-1*]\n",
    "a default among several": "configs:\n- config_name: a\n  data_files: nothing\n- config_name: b\n  default: true\n"
    "  data_files: data/train-*\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_the_readme_of_a_clone_names_the_files(name: str, tmp_path: Path) -> None:
    shards = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet")
    fill(tmp_path, *shards, "data/test-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text(f"---\n{HEADS[name]}license: mit\n---\n# Rows\n")
    assert prompts(open_rows(str(tmp_path), "train")) == list(shards)
    with pytest.raises(InputError, match="no split `dev`; its README.md names train"):
        open_rows(str(tmp_path), "dev")


@pytest.mark.parametrize("backup", ["train-old.jsonl", "train-backup-2024.jsonl", "train (1).jsonl", "train.bak.jsonl"])
def test_a_backup_is_not_joined_and_is_named(backup: str, tmp_path: Path) -> None:
    found = open_rows(str(fill(tmp_path, "train.jsonl", backup)), "train")
    assert prompts(found) == ["train.jsonl"]
    assert found.notes == (f"read train.jsonl; not read: {backup}",)


def test_an_empty_part_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "train-0.jsonl", "train-2.jsonl")
    (tmp_path / "train-1.jsonl").touch()
    found = open_rows(str(tmp_path), "train")
    assert prompts(found) == ["train-0.jsonl", "train-2.jsonl"]
    assert found.notes == ("without rows: train-1.jsonl (0 bytes)",)


def _two_configs(folder: Path) -> None:
    fill(folder, "a/x.jsonl")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in ("a", "b"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")


WRONG: dict[str, tuple[tuple[str, ...] | Callable[[Path], None], str]] = {
    "whole and shards": (("train.jsonl", "train-00000-of-00001.jsonl"), "both as train.jsonl and as the shards"),
    "a missing shard": (("train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"), "lacks 1 of the 3 shards .*: number 1"),
    "two sets": (("train-00000-of-00001.jsonl", "train-00000-of-00002.jsonl"), "shards of two sets"),
    "two suffixes": (("train.jsonl", "train.parquet"), "both train.jsonl and train.parquet"),
    "two suffixes of a shard": (("train-0.jsonl", "train-0.parquet"), "both train-0.jsonl and train-0.parquet"),
    "backups only": (("train-old.jsonl", "train-new.jsonl"), "neither `train.jsonl` nor numbered shards"),
    "another split": (("test.jsonl",), "no rows for the split `train`: it holds test"),
    "two configs": (_two_configs, "the configs a, b, and none is the default"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_has_two_readings_is_refused(name: str, tmp_path: Path) -> None:
    files, reason = WRONG[name]
    _ = files(tmp_path) if callable(files) else fill(tmp_path, *files)
    with pytest.raises(InputError, match=reason):
        open_rows(str(tmp_path), "train")
