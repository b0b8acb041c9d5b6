"""Cards of model families run with a tiny random model of the family."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import write_rows
from tests.models import resized
from tests.tokenizers import ASSETS
from zephyr_jax.cli import main
from zephyr_jax.demo.corpus import conversations

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = (
    "--data.revision None --data.eval_split None --data.max_length 128 --data.row_length 128 --batch.rows 8 "
    "--batch.microbatch_rows 8 --model.remat none --schedule.max_steps 2 --schedule.evaluate_every 0 --report.num_samples 0"
)


@pytest.mark.parametrize(("card", "family"), [("qwen3-8b", "qwen3")])
def test_a_card_trains_a_tiny_model(golden: Path, tmp_path: Path, card: str, family: str) -> None:
    """Two steps of `sft` with the settings of the card but for sizes and data; the run has the family's config.json."""
    model = resized(golden / "families" / family, tmp_path / "model", vocab=1024)
    for file in ASSETS.glob("tokenizer*"):
        shutil.copyfile(file, model / file.name)
    rows = write_rows(tmp_path / "rows.jsonl", list(conversations(0, 16, "train")))
    words = f"sft --config {CONFIGS}/{card}/sft.yaml --model.path {model} --data.path {rows} --data.split train {SMALL}"
    main([*words.split(), "--output", str(tmp_path / "run")])
    written = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert written["architectures"] == ["Qwen3ForCausalLM"] and written["layer_types"] == ["full_attention"] * 2
