"""The round-trip law: what is exported and loaded by torch has the ids, the logits and the greedy text of the run."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.chat.test_exported_template import conversations
from tests.conftest import write_rows
from tests.generate.test_engine import answers, engine_of
from tests.methods.small import MESH, MODEL, REPORT
from tests.models import load, logits, random_segments, whole_rows
from tests.tokenizers import ASSETS, CHATML, write_tokenizer
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.hf.export import export_folder
from zephyr_jax.config.models import ExportConfig, GenerateConfig
from zephyr_jax.config.sections import DataOptions, ModelOptions
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.training_sections import BatchOptions, OptimizerOptions, ScheduleOptions
from zephyr_jax.demo.remake import CONFIG
from zephyr_jax.export.export import export
from zephyr_jax.generate.engine import GenerationRequest
from zephyr_jax.generate.generate import generate
from zephyr_jax.model.decoder import Compute, Decoder
from zephyr_jax.model.families.registry import config_from_hf
from zephyr_jax.train_command import train

CHECK = Path(__file__).parents[1] / "golden" / "check_round_trip.py"
COLORS = ("red", "green", "blue", "pink")
PROMPTS = [[{"role": "user", "content": f"Say {color}."}] for color in COLORS]
NEW = 12
SMALL = {
    **CONFIG,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
}
SHAPES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "mistral-window": ("sentencepiece", "zephyr", {"sliding_window": 16, "tie_word_embeddings": False}),
    "mistral-5": ("llama-2", "zephyr", {"rope_theta": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    "llama-tied": ("llama-3", "zephyr-no-system", {"model_type": "llama", "head_dim": 16, "sliding_window": None}),
    "llama-chatml": ("no-bos", CHATML, {"model_type": "llama", "tie_word_embeddings": False, "rope_theta": 5e5}),
    "llama-untemplated": ("add-eos", None, {"model_type": "llama", "num_key_value_heads": 4}),
}  # fmt: skip
"""Name -> tokenizer, chat template and fields of config.json."""
CASES = {
    "01-04-mistral-saved-by-transformers5": "zephyr",
    "02-03-smollm2-base-chatml": CHATML,
    "05-llama2-legacy-false": "zephyr",
    "24-tokenizer.model-only": "zephyr",
    "28-pad-token-not-resized": "zephyr",
}


def write_base(folder: Path, kind: str, template: str | None, fields: dict[str, Any]) -> Path:
    """A checkpoint with random weights whose logits differ enough that greedy text has no ties."""
    config = {**SMALL, **fields}
    shape = config_from_hf(config)
    model = Decoder(shape, Compute(dtype=jnp.dtype("float32")), nnx.Rngs(0))
    parameters = nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])
    parameters["embedding"] = parameters["embedding"] * 20
    export_folder(folder, parameters, shape, config, {}, dtype="float32", max_file_bytes=2**30)
    return with_template(write_tokenizer(kind, folder), template)


def with_template(folder: Path, template: str | None) -> Path:
    tokenizer = load_tokenizer(str(folder))
    if template is not None:
        source = template if "{" in template else load_template(template, tokenizer).source
        (folder / "chat_template.jinja").write_text(source)
    return folder


def write_chatml_base(folder: Path) -> Path:
    """The demo's base with ChatML's tokens added, none of which is its eos."""
    shutil.copytree(ASSETS, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    for index, token in enumerate(("<|im_start|>", "<|im_end|>")):
        kinds = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"].append({"id": 1022 + index, "content": token, "special": True, **kinds})
        old = next(piece for piece, place in content["model"]["vocab"].items() if place == 1022 + index)
        del content["model"]["vocab"][old]  # a piece that nothing merges further gives its id
        content["model"]["merges"] = [merge for merge in content["model"]["merges"] if "".join(merge) != old]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `run` (which has learned to answer and to end with <|im_end|>) and `export`."""
    out = tmp_path_factory.mktemp("trained")
    chats = [
        {"messages": [*prompt, {"role": "assistant", "content": color}]}
        for prompt, color in zip(PROMPTS, COLORS, strict=True)
    ] * 8
    (out / "chatml.jinja").write_text(CHATML)
    train(
        SftConfig(
            output=str(out / "run"),
            model=ModelOptions(path=str(write_chatml_base(out / "base")), **MODEL),
            data=DataOptions(
                path=str(write_rows(out / "chats.jsonl", chats)),
                chat_template=str(out / "chatml.jinja"),
                max_length=64,
                row_length=64,
            ),
            batch=BatchOptions(rows=8, microbatch_rows=8),
            schedule=ScheduleOptions(epochs=30, max_steps=40, save_every=0, evaluate_every=0, log_every=20),
            optimizer=OptimizerOptions(learning_rate=3e-3),
            mesh=MESH,
            report=REPORT,
        )
    )
    export(ExportConfig(model=ModelOptions(path=str(out / "run")), output=str(out / "export"), dtype="float32"))
    return out


def test_generation_stops_where_training_did(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At <|im_end|>, which is no eos token: in the run and in the export, in text and in the files of both."""
    for folder in (trained / "run", trained / "export"):
        settings = GenerateConfig(
            model=ModelOptions(path=str(folder), compute_dtype="float32"), chat_template=str(trained / "chatml.jinja"),
            prompts=tuple(prompt[-1]["content"] for prompt in PROMPTS), max_new_tokens=NEW, batch_size=8,
        )  # fmt: skip
        made = generate(settings)
        assert [answer.text for answer in made] == list(COLORS)
        assert all(answer.ended and answer.tokens[-1] == 1023 for answer in made)
        files = folder / "model" if folder.name == "run" else folder
        for name in ("generation_config.json", "config.json"):
            assert json.loads((files / name).read_text())["eos_token_id"] == [1023, 2], (folder.name, name)
    capsys.readouterr()


def test_a_run_and_its_export_hold_one_tokenizer(trained: Path) -> None:
    """Byte for byte, and the ids of the base that training started from."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (trained / "run" / "model" / name).read_text() == (trained / "export" / name).read_text()
    base, exported = (load_tokenizer(str(trained / name)) for name in ("base", "export"))
    chat = ChatTokenizer(base, load_template(str(trained / "chatml.jinja"), base))
    for messages in conversations():
        expected = chat.encode(chat.template.render(messages)).tokens.tolist()
        assert exported.apply_chat_template(messages, tokenize=True, return_dict=False) == expected


@pytest.mark.slow
def test_torch_has_the_ids_logits_text_and_stops_of_the_run(trained: Path, tmp_path: Path) -> None:
    """Run with ZEPHYR_TORCH_PYTHON=<a Python with torch and transformers>, of version 4 or 5; `.ci/run` makes one.

    Every shape that loads, the folders that failed once where they are there, and a run that has learned to stop.
    """
    python = os.environ.get("ZEPHYR_TORCH_PYTHON")
    if not python:
        pytest.skip("ZEPHYR_TORCH_PYTHON names no Python with torch")
    folders = [(trained / "export", trained / "export")]
    for name, (kind, template, fields) in SHAPES.items():
        folders.append((write_base(tmp_path / "bases" / name, kind, template, fields), tmp_path / name))
    shared = Path(__file__).parents[3] / "shared" / "cases" / "checkpoints"
    for name, template in CASES.items() if shared.is_dir() else ():
        base = tmp_path / "bases" / name
        shutil.copytree(shared / name, base, copy_function=shutil.copyfile)
        base.chmod(0o755)
        folders.append((with_template(base, template), tmp_path / name))
    cases = [case_of(*pair) for pair in folders]
    theirs = [{name: value for name, value in case.items() if name != "ours"} for case in cases]
    (tmp_path / "cases.json").write_text(json.dumps(theirs))
    subprocess.run([python, CHECK, tmp_path / "cases.json", tmp_path / "results.json"], check=True)
    for case, result in zip(cases, json.loads((tmp_path / "results.json").read_text()), strict=True):
        check(case, result)


def case_of(base: Path, out: Path) -> dict[str, Any]:
    """An exported folder and what our side makes of it."""
    if base != out:
        export(ExportConfig(model=ModelOptions(path=str(base)), output=str(out), dtype="float32"))
    loaded, tokenizer = load(out), load_tokenizer(str(base))
    tokens = np.stack(random_segments([24, 24], vocab=300))
    case: dict[str, Any] = {"folder": str(out), "tokens": tokens.tolist(), "chats": [], "prompts": [], "new": NEW}
    ours: dict[str, Any] = {"logits": np.asarray(logits(loaded, whole_rows(tokens))), "trained": [], "greedy": []}
    if tokenizer.chat_template:
        chat = ChatTokenizer(tokenizer, load_template("tokenizer", tokenizer))
        chats = [probe for messages in conversations() for probe in ((messages, False), (messages[:-1], True))]
        case |= {"chats": chats, "prompts": PROMPTS}
        ours["trained"] = [
            chat.encode(chat.template.render(messages, asks)).tokens.tolist() for messages, asks in chats
        ]
        ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
        stops = tuple(ends if isinstance(ends, list) else [ends])
        requests = [GenerationRequest(chat.prompt(messages), NEW, stops) for messages in PROMPTS]
        ours["greedy"] = answers(engine_of(loaded, context=128), requests)
    return {**case, "ours": ours}


def check(case: dict[str, Any], result: dict[str, Any]) -> None:
    folder, ours = Path(case["folder"]), case["ours"]
    np.testing.assert_allclose(np.array(result["logits"]), ours["logits"], atol=1e-4, err_msg=folder.name)
    assert result["template"] == result["text"] == ours["trained"], folder.name
    assert result["greedy"] == ours["greedy"], folder.name
    assert "Hello!" in result["snippet"], folder.name
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert result["generation"]["eos_token_id"] == stops
    if folder.name == "export":
        assert all(made[-1] == 1023 for made in result["greedy"]) and result["snippet"].endswith("<|im_end|>")
