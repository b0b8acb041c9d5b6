"""Preferences through `reference`, `dpo` and `evaluate` with their paths alone: every default works together, end to end."""

import json
import math
from pathlib import Path

import pytest
import yaml

from tests.conftest import write_rows
from zephyr_jax.cli import main
from zephyr_jax.demo import remake
from zephyr_jax.demo.corpus import preferences

SMALLER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 8}
"""A model of one layer: the default batch is 16 rows of 4,096 tokens."""
HEADS = {"num_key_value_heads": 8, "head_dim": 4}


def test_pairs_need_no_setting_but_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table that `reference` fills by default is the one that `dpo` and `evaluate` ask for by default."""
    monkeypatch.setattr(remake, "CONFIG", remake.CONFIG | SMALLER | HEADS)
    remake.write_untrained(tmp_path / "model")
    pairs = write_rows(tmp_path / "pairs.jsonl", list(preferences(0, 4, "train")))
    rows = ["--data", str(pairs), "--reference", str(tmp_path / "table")]
    start = ["--model", str(tmp_path / "model")]
    main(["reference", *start, *rows])
    main(["dpo", *start, *rows, "--output", str(tmp_path / "run")])
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["data"]["row_length"], config["data"]["max_prompt_length"]) == (4096, 512)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-4), "the policy starts as its reference"
    capsys.readouterr()
    main(["evaluate", "--model", str(tmp_path / "run"), *rows])
    values = dict(line.split() for line in capsys.readouterr().out.splitlines())
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert float(values["logps/chosen"]) == pytest.approx(last["logps/chosen"], rel=1e-3)
    assert values.keys() >= {"rewards/accuracies", "rewards/margins", "loss"}
