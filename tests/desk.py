"""A user's desk: sound settings, a sound model and sound rows, and the check that a mistake is refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.inheritance import open_tokenizer
from zephyr_jax.checkpoint.opened import open_model
from zephyr_jax.cli import main
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.yaml_file import from_dict, to_dict
from zephyr_jax.data.segments import PREFERENCE
from zephyr_jax.data.splits import load_splits
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.reference.fill import identity_of
from zephyr_jax.reference.table import ReferenceTable

type Words = list[str]

CHAT = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]
PAIR = {"prompt_id": "p1", "chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "No."}]}
SETTINGS: dict[str, Any] = {
    "model": {"compute_dtype": "float32", "remat": "none", "logprob_chunk": 32},
    "data": {"max_length": 64, "max_prompt_length": 48, "row_length": 128},
    "batch": {"rows": 8},
    "report": {"progress_bar": False, "num_samples": 0},
}


@dataclass(frozen=True)
class Desk:
    """Where a user works: a model that is sound, rows that are sound, and places for results."""

    home: Path
    tiny: Path

    @property
    def output(self) -> Path:
        return self.home / "out"

    def file(self, name: str, text: str) -> Path:
        path = self.home / name
        path.write_text(text)
        return path

    def rows(self, *rows: dict[str, Any]) -> Path:
        return self.file("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def model(self, **config: Any) -> Path:
        """A copy of the sound model, its config.json changed."""
        folder = Path(shutil.copytree(self.tiny, self.home / "model"))
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, **config}))
        return folder

    def tensors(self, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
        """A copy of the sound model, its tensors changed."""
        folder = self.model()
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    def settings(self, kind: str) -> dict[str, Any]:
        """Sound settings of a training run."""
        rows = {"messages": CHAT} if kind == "sft" else PAIR
        given = {
            **SETTINGS,
            "output": str(self.output),
            "model": {**SETTINGS["model"], "path": str(self.tiny)},
            "data": {**SETTINGS["data"], "path": str(self.file("sound.jsonl", json.dumps(rows) + "\n"))},
        }
        return given if kind == "sft" else {**given, "reference": str(self.home / "reference")}

    def config(self) -> DpoConfig:
        return from_dict(DpoConfig, self.settings("dpo"), "test")

    def sft(self, *overrides: object) -> Words:
        """`sft` with a sound card and what the user gets wrong."""
        return self._run("sft", SftConfig, overrides)

    def dpo(self, *overrides: object, verb: str = "dpo") -> Words:
        return self._run(verb, DpoConfig, overrides)

    def _run(self, verb: str, kind: type[SftConfig], overrides: tuple[object, ...]) -> Words:
        card = self.home / "card.yaml"
        content = to_dict(from_dict(kind, self.settings("sft" if verb == "sft" else "dpo"), "test"))
        del content["adapter"]  # that it is unset means another thing than its defaults
        card.write_text(yaml.safe_dump(content))
        return [verb, "--config", str(card), *map(str, overrides)]

    def generate(self, *overrides: object) -> Words:
        return ["generate", "--model.path", str(self.tiny), *map(str, overrides)]

    def evaluate(self, rows: Path, *overrides: object) -> Words:
        sizes = ["--data.max_length", 64, "--data.max_prompt_length", 48, "--data.row_length", 128]
        where = ["--model.path", self.tiny, "--data.path", rows]
        return ["evaluate", *map(str, [*where, *sizes, *overrides])]

    def export(self, *overrides: object) -> Words:
        return ["export", "--model.path", str(self.tiny), "--output", str(self.output), *map(str, overrides)]

    def fill(self, *pairs: dict[str, Any], weights: str | None = None) -> ReferenceTable:
        """A reference table with made-up numbers for `pairs`, for the sound weights by default."""
        config = self.config()
        opened = open_model(config.model, ShardingRules(make_mesh(config.mesh)))
        source = opened.source
        tokenizer = open_tokenizer(source, config.data)
        if weights is None:
            weights = weights_fingerprint(opened.load_weights())
        table = ReferenceTable(Path(config.reference), identity_of(config, tokenizer, weights))
        rows = replace(config, data=replace(config.data, path=str(self.rows(*pairs))))
        keys = load_splits(PREFERENCE, rows.data, tokenizer, None, "base")["training"].keys().reshape(-1).tolist()
        table.add("made-up", keys, np.full(len(keys), -5.0), np.full(len(keys), 3))
        return table


def open_desk(home: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A fresh desk in an empty folder, offline, with a cache of its own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "cache")
    return Desk(home, model)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path, the cache of tokenised rows left out."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if not name.startswith("cache/") and not path.name.startswith("cache-")
    }


def check_refused(words: Words, says: tuple[str, ...], desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """A command line exits 2 with one paragraph that holds all of `says`; no file is new or changed."""
    before = contents(desk.home)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "Traceback" not in errors
    messages = re.findall(r"^error: .*", errors, re.MULTILINE | re.DOTALL)
    assert len(messages) == 1, errors
    assert "\n" not in messages[0].strip(), "more than one paragraph"
    for said in says:
        assert said in messages[0], messages[0]
    assert contents(desk.home) == before
