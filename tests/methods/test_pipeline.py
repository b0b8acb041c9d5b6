"""The verbs one after another, as a user types them."""

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import write_rows
from tests.models import load, logits, random_segments, whole_rows
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.fingerprint_cache import cache_fingerprint, find_fingerprint, weights_key
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.cli import main
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.generate.engine import Engine, RequestOutput
from zephyr_jax.model.weight_format import PLAIN

CARDS = Path(__file__).parents[2] / "configs" / "tiny"
CHECK = Path(__file__).parents[1] / "golden" / "check_export.py"


@pytest.fixture(scope="module")
def aligned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `sft` and `dpo`, the reference table and the folder `hf`, all made by the command line."""
    out = tmp_path_factory.mktemp("aligned")
    chats = write_rows(out / "chats.jsonl", list(conversations(0, 40, "train")))
    pairs = write_rows(out / "pairs.jsonl", list(preferences(0, 32, "train")))
    main(
        f"sft --config {CARDS}/sft.yaml --model.path {tiny_model} --data.path {chats} --output {out}/sft "
        "--schedule.max_steps 2 --report.no_progress_bar --report.num_samples 0".split()
    )
    same = (
        f"--config {CARDS}/dpo.yaml --model.path {out}/sft --data.path {pairs} --data.eval_path {pairs} --output {out}/dpo "
        f"--reference {out}/reference --schedule.max_steps 2 --report.no_progress_bar "
        "--report.num_samples 0"
    ).split()
    main(["reference", *same])
    main(["dpo", *same])
    main(f"export --model.path {out}/dpo --output {out}/hf --dtype float32".split())
    return out


def test_a_run_keeps_its_resolved_config_and_metrics(aligned: Path) -> None:
    config = yaml.safe_load((aligned / "dpo" / "config.yaml").read_text())
    assert config["dpo"]["beta"] == 0.1
    assert config["schedule"]["max_steps"] == 2
    lines = [json.loads(line) for line in (aligned / "dpo" / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [1, 2]
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
            "logps/rejected", "grad_norm", "learning_rate", "padding", "tokens_per_second"} <= training[0].keys()  # fmt: skip


def test_the_first_evaluation_is_log_two(aligned: Path) -> None:
    """Precomputed equals on the fly: before any step the loss is ln 2 to 1e-6, margins and accuracies are 0."""
    lines = [json.loads(line) for line in (aligned / "dpo" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["step"] == 0)
    np.testing.assert_allclose(first["eval/loss"], np.log(2), atol=1e-6)
    assert first["eval/rewards/margins"] == first["eval/rewards/chosen"] == first["eval/rewards/accuracies"] == 0


def test_a_second_reference_pass_computes_nothing(aligned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does one with another learning rate, beta, seed or batch."""
    main(
        f"reference --config {CARDS}/dpo.yaml --model.path {aligned}/sft --data.path {aligned}/pairs.jsonl "
        f"--reference {aligned}/reference --optimizer.learning_rate 1 --dpo.beta 0.7 --seed 9 --batch.examples 8".split()
    )
    assert "0 computed, 32 reused" in capsys.readouterr().err


def test_another_dtype_needs_another_table(aligned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`dpo` says what differs, both values, and the command that computes the right table."""
    with pytest.raises(SystemExit) as stop:
        main(
            f"dpo --config {CARDS}/dpo.yaml --model.path {aligned}/sft --model.compute_dtype bfloat16 "
            f"--data.path {aligned}/pairs.jsonl --output {aligned}/other --reference {aligned}/reference".split()
        )
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "compute_dtype" in said and "float32" in said and "bfloat16" in said
    assert "zephyr-jax reference --config" in said


def test_evaluate_reports_loss_or_preferences(aligned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the columns of the rows, at any `batch_size`; with the run's own table, rewards against the frozen reference."""
    lengths = "--batch_size 16 --data.max_length 256 --data.row_length 512 --model.compute_dtype float32"
    main(f"evaluate --model.path {aligned}/dpo --data.path {aligned}/chats.jsonl {lengths}".split())
    assert capsys.readouterr().out.startswith("loss ")
    main(f"evaluate --model.path {aligned}/hf --data.path {aligned}/pairs.jsonl {lengths}".split())
    said = capsys.readouterr()
    assert {line.split()[0] for line in said.out.splitlines()} == {
        "accuracy", "margin", "logps/chosen", "logps/rejected",
    }  # fmt: skip
    assert "pairs.jsonl: 32 examples, 7,172 tokens" in said.err
    lengths = "--data.max_length 512 --data.max_prompt_length 256 --data.row_length 1024 --model.compute_dtype float32"
    main(
        f"evaluate --model.path {aligned}/dpo --data.path {aligned}/pairs.jsonl --reference {aligned}/reference "
        f"{lengths}".split()
    )
    values = dict(line.split() for line in capsys.readouterr().out.splitlines())
    trained = [json.loads(line) for line in (aligned / "dpo" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in trained if "eval/loss" in line][-1]
    np.testing.assert_allclose(float(values["rewards/margins"]), last["eval/rewards/margins"], atol=1e-5)


def test_generate_answers_each_prompt(aligned: Path, tmp_path: Path) -> None:
    main(
        ["generate", "--model.path", str(aligned / "hf"), "--prompts", "Hello!", "Tell me a story.", "--batch_size", "8",
         "--max_new_tokens", "8", "--output", str(tmp_path / "answers.jsonl"), "--temperature", "1", "--seed", "3"]
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["Hello!", "Tell me a story."]
    assert all(isinstance(row["answer"], str) for row in rows)


def test_a_killed_generation_goes_on_where_it_was(
    aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers that were there are not made again, all are those of one run, and other settings are refused."""
    words = f"generate --model.path {aligned}/hf --data {aligned}/chats.jsonl --limit 12 --batch_size 8".split()
    words += ["--max_new_tokens", "9", "--temperature", "1", "--top_p", "0.9"]
    main([*words, "--output", str(tmp_path / "whole.jsonl")])
    run = Engine.run

    def dying(self: Engine) -> Iterator[RequestOutput]:
        ended = 0
        for output in run(self):
            yield output
            ended += bool(output.finish_reason)
            if ended == 5:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Engine, "run", dying)
        main([*words, "--output", str(tmp_path / "killed.jsonl")])
    assert not (tmp_path / "killed.jsonl").exists()
    with pytest.raises(SystemExit):
        main([*words, "--seed", "5", "--output", str(tmp_path / "killed.jsonl")])
    assert "belongs to other work: seed was 0, is 5" in capsys.readouterr().err
    main([*words, "--output", str(tmp_path / "killed.jsonl")])
    assert "7 samples" in capsys.readouterr().err
    assert (tmp_path / "killed.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert not (tmp_path / "killed.jsonl.part").exists()


def test_weights_are_the_same_by_name_in_every_form(aligned: Path) -> None:
    """The fingerprint that the run's step says is that of its safetensors; a table filled with one serves the other."""
    run, folder = (
        find_model(ModelOptions(path=str(aligned / "dpo"))),
        find_model(ModelOptions(path=str(aligned / "hf"))),
    )
    said = find_fingerprint(run, weights_key(run), PLAIN)
    assert said == weights_fingerprint(load(aligned / "hf").parameters)
    state = weights_key(folder)
    assert find_fingerprint(folder, state, PLAIN) in (None, said)
    cache_fingerprint(folder, state, PLAIN, said)
    assert find_fingerprint(folder, state, PLAIN) == said


def test_the_export_is_the_run(aligned: Path) -> None:
    """Weights, tokenizer and template of the folder are those that training used; the template renders for anyone."""
    batch = whole_rows(np.stack(random_segments([16, 16], vocab=1024)))
    np.testing.assert_array_equal(logits(load(aligned / "hf"), batch), logits(load(aligned / "dpo"), batch))
    tokenizer = load_tokenizer(str(aligned / "hf"))
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<s><|system|>\n</s>\n<|user|>\nHi</s>\n<|assistant|>\n"
    assert "generation %" not in tokenizer.chat_template
    assert json.loads((aligned / "hf" / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_export_reloads_in_torch_with_the_same_logits(aligned: Path, tmp_path: Path) -> None:
    """Run with ZEPHYR_TORCH_PYTHON=<a Python with torch and transformers>; torch is no dependency of the project."""
    python = os.environ.get("ZEPHYR_TORCH_PYTHON")
    if python is None:
        pytest.skip("ZEPHYR_TORCH_PYTHON names no Python with torch")
    tokens = np.stack(random_segments([16, 16], vocab=1024))
    np.save(tmp_path / "tokens.npy", tokens)
    subprocess.run([python, CHECK, aligned / "hf", tmp_path / "tokens.npy", tmp_path / "logits.npy"], check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "logits.npy"), logits(load(aligned / "hf"), whole_rows(tokens)), atol=1e-4
    )


def test_preview_marks_what_counts(aligned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        f"preview --model.path {aligned}/hf --data.path {aligned}/pairs.jsonl --num_examples 1 --data.max_length 256".split()
    )
    said = capsys.readouterr().out
    assert "chosen" in said and "rejected" in said and "targets" in said
    row = json.loads((aligned / "pairs.jsonl").read_text().splitlines()[0])
    answer = row["chosen"][-1]["content"]
    assert f"[{answer}</s>]" in said.replace("\n", " ").replace("  ", " ") or f"[{answer}</s>]" in said


def test_preview_needs_a_tokenizer_and_nothing_else(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with neither config.json nor weights will do."""
    main(
        f"preview --model {shared}/tokenizers/mistral-v0.1 --data {shared}/data/multiturn.jsonl --num_examples 1".split()
    )
    assert "[You too!</s>]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sft --optimizer.name rmsprop --optimizer.b1 0.5", "`rmsprop` with b1 0.5"),
        ("evaluate --data.eval_split test", "data.eval_split set for a command that reads one split"),
        ("evaluate --dpo.beta 0.5", "`dpo` settings have no effect without a reference"),
        ("preview --data.eval_path x.jsonl", "data.eval_path set for a command that reads one split"),
    ],
)
def test_a_setting_without_effect_is_refused(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        rest = "--model.path x --data.path y" + (" --output z --batch.rows 8" if words.startswith("sft") else "")
        main([*words.split(), *rest.split()])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_full_disk_is_one_paragraph_and_leaves_nothing(
    aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel refuses to let a file grow past 100 kB in the middle of an export."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SystemExit) as stop:
            main(f"export --model.path {aligned}/hf --output {tmp_path}/out".split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "error: File too large" in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []
