"""What `sft` would refuse after an hour is refused at once, and by `preview` too: positions, vocabulary, weights, columns."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import write_rows
from tests.methods.small import dpo_config, sft_config
from zephyr_jax import demo
from zephyr_jax.config.inspect import PreviewConfig
from zephyr_jax.config.models import EvaluateConfig, GenerateConfig, PreferencesConfig
from zephyr_jax.config.sections import DataOptions, ModelOptions
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.errors import InputError
from zephyr_jax.evaluate.held_out import evaluate
from zephyr_jax.evaluate.preferences import preferences as evaluate_preferences
from zephyr_jax.generate.generate import generate
from zephyr_jax.reference.fill import reference
from zephyr_jax.report.preview import preview
from zephyr_jax.train_command import train

POSITIONS = 64


@pytest.fixture(scope="module")
def short(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with 64 positions."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("short") / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": POSITIONS}))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`chats.jsonl` and `pairs.jsonl`, longer than 64 tokens, and `brief.jsonl`, which is not."""
    folder = tmp_path_factory.mktemp("rows")
    chats = list(conversations(0, 8, "train"))
    chats[0]["messages"][1]["content"] *= 20
    pairs = list(preferences(0, 8, "train"))
    pairs[0]["chosen"][-1]["content"] *= 20
    write_rows(folder / "chats.jsonl", chats)
    write_rows(folder / "pairs.jsonl", pairs)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    write_rows(folder / "brief.jsonl", [{"messages": chat}] * 8)
    return folder


def commands(model: Path, rows: Path, tmp_path: Path) -> dict[str, Callable[[], Any]]:
    """Each command that reads rows, over rows that are longer than the model."""
    chats, pairs = rows / "chats.jsonl", rows / "pairs.jsonl"
    options = ModelOptions(path=str(model), compute_dtype="float32")
    data = DataOptions(path=str(chats), max_length=256, row_length=512)
    two = replace(data, path=str(pairs), max_prompt_length=64)
    training = dpo_config(model, pairs, tmp_path / "dpo", tmp_path / "reference")
    held_out = sft_config(model, rows / "brief.jsonl", tmp_path / "sft")
    return {
        "sft": lambda: train(sft_config(model, chats, tmp_path / "sft")),
        "sft, held out": lambda: train(replace(held_out, data=replace(held_out.data, eval_path=str(chats)))),
        "dpo": lambda: train(training),
        "reference": lambda: reference(training),
        "evaluate": lambda: evaluate(EvaluateConfig(model=options, data=data)),
        "evaluate pairs": lambda: evaluate(EvaluateConfig(model=options, data=two)),
        "evaluate preferences": lambda: evaluate_preferences(PreferencesConfig(model=options, data=two)),
        "preview": lambda: preview(PreviewConfig(model=options, data=data)),
        "preview of pairs": lambda: preview(PreviewConfig(model=options, data=two)),
    }


NAMES = list(commands(Path(), Path(), Path()))


@pytest.mark.parametrize("name", NAMES)
def test_rows_beyond_the_positions_are_refused(name: str, short: Path, rows: Path, tmp_path: Path) -> None:
    """With the number of rows, the longest, and the setting that cuts or drops them."""
    with pytest.raises(InputError, match=r"the 64 positions .*of 8 are longer.*data.max_length to 64"):
        commands(short, rows, tmp_path)[name]()
    assert not (tmp_path / "sft").exists()


def test_rows_that_are_cut_to_the_positions_are_fine(short: Path, rows: Path) -> None:
    """`max_length` may be as large as the positions, and larger where no row is."""
    options = ModelOptions(path=str(short))
    for file, length in (("chats.jsonl", POSITIONS), ("brief.jsonl", 2048)):
        found = preview(PreviewConfig(model=options, data=DataOptions(path=str(rows / file), max_length=length)))
        assert found.lengths.max() <= POSITIONS


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_another_width(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.norm.weight": np.ones(7, np.float32)}, folder / "model.safetensors")


def cut_short(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])


@pytest.mark.parametrize("damage", [without_weights, with_another_width, cut_short])
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("preview")])
def test_weights_are_checked_before_rows_are_tokenized(
    name: str,
    damage: Callable[[Path], None],
    tiny_model: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(folder)
    monkeypatch.setattr(
        "zephyr_jax.data.examples.open_rows", lambda *_: pytest.fail("rows were read before weights were checked")
    )
    with pytest.raises(InputError, match=r"model.safetensors|no \*.safetensors|model.norm.weight"):
        commands(folder, rows, tmp_path)[name]()


def test_preview_refuses_a_vocabulary_that_sft_refuses(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}))
    data = DataOptions(path=str(rows / "brief.jsonl"))
    for attempt in (
        lambda: preview(PreviewConfig(model=ModelOptions(path=str(folder)), data=data)),
        lambda: train(sft_config(folder, rows / "brief.jsonl", tmp_path / "run")),
    ):
        with pytest.raises(InputError, match="1024 tokens and the model embeds 1000"):
            attempt()


def test_preview_refuses_a_config_that_sft_refuses(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_bias": True}))
    data = DataOptions(path=str(rows / "brief.jsonl"))
    with pytest.raises(InputError, match="`attention_bias`"):
        preview(PreviewConfig(model=ModelOptions(path=str(folder)), data=data))


def test_preview_of_a_tokenizer_alone_says_what_it_cannot_check(
    tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "config.json").unlink()
    preview(PreviewConfig(model=ModelOptions(path=str(folder)), data=DataOptions(path=str(rows / "brief.jsonl"))))
    assert "has no config.json: vocabulary and positions" in capsys.readouterr().out.replace("\n", " ")


def test_a_prompt_with_a_token_beyond_the_embedding_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """`--template none` reads special tokens in text, as completion servers do."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 1024, "content": "[PAD]"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    options = ModelOptions(path=str(folder))
    with pytest.raises(InputError, match="ids below 1,024.*got 1,024"):
        generate(GenerateConfig(model=options, prompts=("a [PAD]",), chat_template="none", max_new_tokens=2))


@pytest.mark.shared
def test_reported_long_row(shared: Path, tmp_path: Path) -> None:
    """A row of 3,341 tokens for a model of 1,024 positions."""
    folder = shared / "cases"
    if not folder.is_dir():
        pytest.skip("these cases are not here")
    base = Path(demo.__file__).parent / "assets" / "base"
    config = sft_config(base, folder / "data" / "15-longer-than-context" / "long.jsonl", tmp_path / "run")
    config = replace(config, data=replace(config.data, max_length=4096, row_length=4096))
    with pytest.raises(InputError, match="the 1,024 positions"):
        train(config)
