"""The cards of model families from end to end on tiny random models: sft, reference, dpo, export."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from tests.adapter_runs import write_rows
from tests.models import load, resized
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.cli import main
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.model.families.registry import config_from_hf

ROOT = Path(__file__).parents[2]
TURNS = ("<start_of_turn>", "<end_of_turn>")
QUIET = "--schedule.max_steps 2 --schedule.evaluate_every 0 --report.no_progress_bar --report.num_samples 0"
SMALL = (
    "--data.max_length 256 --data.row_length 512 --batch.microbatch_rows 8 --data.split train --data.eval_split None "
    "--data.revision None"
)


def with_turns(tiny_model: Path, folder: Path, out: Path) -> Path:
    """A model with the tiny model's tokenizer and the special tokens of Gemma's turns."""
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in TURNS])
    resized(folder, out, tokenizer.get_vocab_size())
    tokenizer.save(str(out / "tokenizer.json"))
    settings = json.loads((tiny_model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    return out


@pytest.mark.parametrize(
    ("card", "family", "architecture"),
    [
        ("gemma-2-9b", "gemma2", "Gemma2ForCausalLM"),
        ("llama-3.1-8b", "llama31", "LlamaForCausalLM"),
        ("qwen3-8b", "qwen3", "Qwen3ForCausalLM"),
        ("smollm3-3b", "smollm3", "SmolLM3ForCausalLM"),
    ],
)
def test_sft_reference_dpo_export(
    tiny_model: Path,
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    card: str,
    family: str,
    architecture: str,
) -> None:
    """The exported folder has the family's config.json, a stop token, and the weights of the run, bit for bit."""
    monkeypatch.chdir(ROOT)  # cards name their template from there
    model = with_turns(tiny_model, golden / "families" / family, tmp_path / "base")
    chats = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 24, "train")))
    pairs = write_rows(tmp_path / "pairs.jsonl", list(preferences(0, 16, "train")))
    sft, dpo = tmp_path / "sft", tmp_path / "dpo"
    main(
        f"sft --config configs/{card}/sft.yaml --model.path {model} --data.path {chats} --output {sft} --batch.rows 8 "
        f"{SMALL} {QUIET}".split()
    )
    same = (
        f"--config configs/{card}/dpo.yaml --model.path {sft} --data.path {pairs} --reference {tmp_path}/table "
        f"--output {dpo} --batch.examples 8 --data.max_prompt_length 128 {SMALL} {QUIET}"
    ).split()
    main(["reference", *same])
    main(["dpo", *same])
    first = json.loads((dpo / "metrics.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(first["loss"], np.log(2), atol=1e-3)
    main(f"export --model.path {dpo} --output {tmp_path}/hf --dtype float32".split())
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert config_from_hf(config) == find_model(ModelOptions(path=str(model))).model_config
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    exported, trained = (load(folder).parameters for folder in (tmp_path / "hf", dpo))
    jax.tree.map(np.testing.assert_array_equal, exported, trained)
