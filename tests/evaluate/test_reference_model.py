"""Pairs are evaluated against any checkpoint, or against a table that other weights made, when it is named."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import write_rows
from tests.methods.small import dpo_config
from zephyr_jax.checkpoint.weights import load_weights
from zephyr_jax.cli import main
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.reference.fill import reference

BETA = 0.3


@pytest.fixture(scope="module")
def home(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`first` and `second`: folders of two models; `pairs.jsonl`; `table`: the reference table of `first`."""
    home = tmp_path_factory.mktemp("references")
    for name, factor in (("first", 1.0), ("second", 1.5)):
        shutil.copytree(tiny_model, home / name)
        tensors = load_file(home / name / "model.safetensors")
        save_file(
            {key: value * np.float32(factor) for key, value in tensors.items()}, home / name / "model.safetensors"
        )
    write_rows(home / "pairs.jsonl", list(preferences(0, 20, "train")))
    write_rows(home / "chats.jsonl", list(conversations(0, 4, "train")))
    reference(dpo_config(home / "first", home / "pairs.jsonl", home / "unused", home / "table"))
    return home


def words(home: Path, verb: str, *more: str, model: str = "second", rows: str = "pairs") -> list[str]:
    options = "--data.max_length 256 --data.max_prompt_length 64 --model.compute_dtype float32"
    data = f"--model {home}/{model} --data.path {home}/{rows}.jsonl"
    return [*verb.split(), *data.split(), *options.split(), *more]


def numbers(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, float], str]:
    printed = capsys.readouterr()
    return {name: float(value) for name, value in (line.split() for line in printed.out.splitlines())}, printed.err


def table_name(home: Path) -> str:
    (name,) = [folder.name for folder in (home / "table").iterdir()]
    return name


def test_rewards_are_differences_of_two_models(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a checkpoint, against its table by name, and by the log-probs of both models alone."""
    alone = {}
    for model in ("first", "second"):
        main(words(home, "evaluate", model=model))
        alone[model] = numbers(capsys)[0]
    main(words(home, "evaluate", "--reference_model", f"{home}/first", "--dpo.beta", str(BETA)))
    found, said = numbers(capsys)
    for side in ("chosen", "rejected"):
        expected = BETA * (alone["second"][f"logps/{side}"] - alone["first"][f"logps/{side}"])
        assert found[f"rewards/{side}"] == pytest.approx(expected, abs=2e-3)
    assert re.search(rf"reference: log-probs of {home}/first, weights [0-9a-f]{{32}}\n", said)
    named = ["--reference", f"{home}/table", "--reference_table", table_name(home), "--dpo.beta", str(BETA)]
    main(words(home, "evaluate", *named))
    by_table, said = numbers(capsys)
    assert by_table == pytest.approx(found, rel=1e-5, abs=2e-5)  # six digits are printed
    assert f"reference: table {table_name(home)} in {home}/table, weights " in said


def test_the_same_model_has_no_rewards(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(words(home, "evaluate", "--reference_model", f"{home}/second"))
    found = numbers(capsys)[0]
    assert found["rewards/margins"] == pytest.approx(0, abs=1e-5) and found["loss"] == pytest.approx(
        np.log(2), abs=1e-5
    )


def test_evaluate_preferences_agrees(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(words(home, "evaluate", "--reference_model", f"{home}/first"))
    expected = numbers(capsys)[0]
    for place, more in enumerate(
        (
            ["--reference_model", f"{home}/first"],
            ["--reference", f"{home}/table", "--reference_table", table_name(home)],
        )
    ):
        out = tmp_path / f"{place}.json"
        main(words(home, "evaluate preferences", *more, "--output", str(out)))
        overall = json.loads(out.read_text())["overall"]
        assert overall["margin"] == pytest.approx(expected["rewards/margins"], abs=1e-5)
        assert overall["accuracy"] == pytest.approx(expected["rewards/accuracies"], abs=1e-6)


@pytest.mark.parametrize("verb", ["evaluate", "evaluate preferences"])
def test_one_model_is_in_memory_at_a_time(verb: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is loaded first, and is gone when the model is loaded."""
    order: list[str] = []
    live: list[int] = []

    def loading(source, layout, new_adapter):
        import gc

        import jax

        gc.collect()
        live.append(sum(array.size for array in jax.live_arrays()))
        order.append(Path(source.asked).name)
        return load_weights(source, layout, new_adapter)

    monkeypatch.setattr("zephyr_jax.checkpoint.opened.load_weights", loading)
    main(words(home, verb, "--reference_model", f"{home}/first"))
    assert order == ["first", "second"]
    assert live[1] - live[0] < 50_000  # of 400,000 weights and more


@pytest.mark.parametrize(
    ("more", "rows", "said"),
    [
        (["--reference", "{home}/table", "--reference_model", "{home}/first"], "pairs", "expected one of them"),
        (["--reference_table", "0123"], "pairs", "reference_table is 0123 without `reference`"),
        (["--reference_revision", "main"], "pairs", "reference_revision is set without `reference_model`"),
        (
            ["--reference", "{home}/table", "--reference_table", "0123"],
            "pairs",
            "got '0123'",
        ),
        (["--reference", "{home}/table"], "pairs", "does not belong to this run"),
        (["--dpo.beta", "0.2"], "pairs", "without a reference"),
        (
            ["--reference_model", "{home}/first"],
            "chats",
            "holds conversations, which are not compared with a reference",
        ),
        (["--reference_model", "{home}/nothing"], "pairs", "nothing"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused(
    more: list[str], rows: str, said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words(home, "evaluate", *[word.format(home=home) for word in more], rows=rows))
    assert said in capsys.readouterr().err


def test_a_table_of_other_rules_is_refused_by_name(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the weights may be others."""
    with pytest.raises(SystemExit):
        main(
            words(
                home,
                "evaluate",
                "--reference",
                f"{home}/table",
                "--reference_table",
                table_name(home),
                "--data.max_length",
                "255",
            )
        )
    assert "does not fit this evaluation: expected length_rule 'max_length 255" in capsys.readouterr().err


def test_a_reference_with_another_tokenizer_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "first", tmp_path / "other")
    content = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    names = {number: name for name, number in content["model"]["vocab"].items()}
    one, two = 300, 301
    content["model"]["vocab"][names[one]], content["model"]["vocab"][names[two]] = two, one
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        main(words(home, "evaluate", "--reference_model", f"{tmp_path}/other"))
    assert re.search("has another tokenizer than .*ids differ", capsys.readouterr().err)


def test_a_named_table_whose_template_prints_a_date_is_read(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its manifest has one field more."""
    root = Path(shutil.copytree(home / "table", tmp_path / "table"))
    manifest = root / table_name(home) / "manifest.json"
    manifest.write_text(
        json.dumps({**json.loads(manifest.read_text()), "template_date": "2026-01-01"}, indent=2) + "\n"
    )
    main(words(home, "evaluate", "--reference", str(root), "--reference_table", table_name(home)))
    assert "rewards/accuracies" in numbers(capsys)[0]
