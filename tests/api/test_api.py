"""`import zephyr_jax as zj`: lazy names, and functions that give the numbers and texts of the commands."""

import ast
import json
import pkgutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zephyr_jax as zj
from tests.conftest import write_rows
from zephyr_jax.cli import main
from zephyr_jax.config.models import EvaluateConfig
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.demo.demo import BASE
from zephyr_jax.evaluate.held_out import evaluate

type Row = dict[str, Any]
FLOAT32 = zj.ScoringOptions(path=str(BASE), compute_dtype="float32")
MESH = zj.MeshOptions(data=-1, fsdp=1, tensor=2)
"""What `generate` makes of the default on eight devices; one mesh for all tests, so that programs compile once."""


@pytest.fixture(scope="module")
def model() -> zj.LoadedModel:
    return zj.load_model(FLOAT32, mesh=MESH)


@pytest.fixture(scope="module")
def chats() -> list[Row]:
    return list(conversations(0, 12, "train"))


@pytest.fixture(scope="module")
def pairs() -> list[Row]:
    return list(preferences(0, 8, "train"))


# ---- names ----


def test_importing_the_package_imports_nothing_else() -> None:
    """Names, docstrings of the package and reading metrics need no JAX; an unknown name is an AttributeError."""
    code = """if True:
        import sys
        import zephyr_jax as zj
        from zephyr_jax import InputError, SftConfig, read_metrics
        assert set(zj.__all__) <= set(dir(zj))
        try:
            zj.load_modle
        except AttributeError as error:
            assert "load_modle" in str(error)
        else:
            sys.exit(2)
        try:
            read_metrics("nowhere")
        except zj.InputError:
            sys.exit(len({"jax", "flax", "transformers", "datasets"} & set(sys.modules)))
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_is_there_for_programs_and_for_type_checkers() -> None:
    """The lazy table, the imports under TYPE_CHECKING and the page hold the same names; each has a docstring."""
    tree = ast.parse(Path(zj.__file__).read_text())
    typed = {
        (str(node.module).removeprefix("zephyr_jax."), alias.asname)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != "typing" and node.module != "importlib"
        for alias in node.names
    }
    assert typed == {(module, name) for module, names in zj._NAMES.items() for name in names}
    assert all(getattr(zj, name).__doc__ for name in zj.__all__ if name != "__version__")
    page = (Path(__file__).parents[2] / "docs" / "python-api.md").read_text()
    assert not [name for name in zj.__all__ if f"`{name}" not in page and f"zj.{name}" not in page]


def test_no_name_is_that_of_a_package() -> None:
    """Importing `zephyr_jax.train` sets the attribute `train` of the package: a function of that name would be lost."""
    assert not set(zj.__all__) & {module.name for module in pkgutil.iter_modules(zj.__path__)}


# ---- tokens ----


def test_targets_are_the_answers_with_their_end_tokens() -> None:
    tokenizer = zj.load_tokenizer(BASE)
    messages = [
        {"role": "user", "content": "Hello! What is new?"},
        {"role": "assistant", "content": "Not much."},
        {"role": "user", "content": "Goodbye."},
        {"role": "assistant", "content": "See you soon."},
    ]
    (segment,) = zj.tokenize(tokenizer, {"messages": messages})
    assert [text for text, is_target in segment.pieces if is_target] == ["Not much.</s>", "See you soon.</s>"]
    assert segment.marked("<<", ">>").count("<<") == 2
    prompt = zj.render(tokenizer, messages[:1], add_generation_prompt=True)
    assert zj.render(tokenizer, messages).startswith(prompt)
    assert prompt.endswith("<|assistant|>\n")
    chosen, rejected = zj.tokenize(tokenizer, {"prompt": "Hello!", "chosen": "Good day.", "rejected": "Hm."})
    assert (chosen.name, rejected.name) == ("chosen", "rejected")
    assert chosen.pieces[0] == rejected.pieces[0]


def test_rows_that_cannot_be_used_are_named() -> None:
    tokenizer = zj.load_tokenizer(BASE)
    with pytest.raises(zj.InputError, match="an assistant answer is empty"):
        zj.tokenize(tokenizer, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]})
    with pytest.raises(zj.InputError, match="cannot be rendered: roles go assistant"):
        zj.render(tokenizer, [{"role": "assistant", "content": "a"}])
    strict = zj.load_tokenizer(BASE, data=zj.DataOptions(max_length=16, on_bad_row="error"))
    with pytest.raises(zj.InputError, match="more than max_length 16"):
        zj.tokenize(
            strict, {"messages": [{"role": "user", "content": "a" * 30}, {"role": "assistant", "content": "b"}]}
        )


# ---- scores ----


def test_scores_equal_evaluate(model: zj.LoadedModel, chats: list[Row], tmp_path: Path) -> None:
    """The loss over a file of conversations, packed in rows of another length."""
    rows = write_rows(tmp_path / "chats.jsonl", chats)
    data = zj.DataOptions(path=str(rows), max_length=256, row_length=256)
    loss = evaluate(EvaluateConfig(model=FLOAT32, data=data, mesh=MESH))["loss"]
    assert zj.score(model, chats).loss == pytest.approx(loss, rel=1e-6)
    assert zj.read_rows(rows) == chats


def test_a_score_does_not_depend_on_the_other_rows(model: zj.LoadedModel, chats: list[Row]) -> None:
    scores, reverse, alone = (zj.score(model, rows) for rows in (chats, chats[::-1], chats[3:4]))
    np.testing.assert_allclose(reverse.sums[::-1], scores.sums, rtol=1e-6)
    np.testing.assert_allclose(alone.sums, scores.sums[3:4], rtol=1e-6)
    assert np.array_equal(reverse.counts[::-1], scores.counts)
    assert scores.sums.dtype == np.float32
    assert len(np.unique(scores.sums)) == len(chats)


def test_rows_that_cannot_be_scored_are_named(model: zj.LoadedModel, chats: list[Row], pairs: list[Row]) -> None:
    with pytest.raises(zj.InputError, match="Row 1 is one of preferences and row 0 of conversations"):
        zj.score(model, [chats[0], pairs[0]])
    with pytest.raises(zj.InputError, match="Row 1 cannot be used: .*it has .'text'"):
        zj.score(model, [chats[0], {"text": "a"}])
    with pytest.raises(zj.InputError, match="at least one row"):
        zj.score(model, [])
    with pytest.raises(zj.InputError, match="batch_size: expected a multiple of 4, got 6"):
        zj.score(model, chats, batch_size=6)


def test_over_long_rows_are_cut_as_the_settings_say(model: zj.LoadedModel, chats: list[Row]) -> None:
    """The first targets stay, so that a cut row has a part of the whole row's targets; `error` refuses it."""
    lengths = [len(zj.tokenize(model.tokenizer, row)[0].tokens) for row in chats]
    limit = sorted(lengths)[-2]
    cut = replace(model, data=zj.DataOptions(max_length=limit))
    whole, scores = zj.score(model, chats), zj.score(cut, chats)
    longest = int(np.argmax(lengths))
    assert scores.truncated == (longest,)
    assert scores.counts[longest] < whole.counts[longest]
    np.testing.assert_allclose(np.delete(scores.sums, longest), np.delete(whole.sums, longest), rtol=1e-6)
    with pytest.raises(zj.InputError, match=f"Row {longest} cannot be used: over-length"):
        zj.score(replace(model, data=zj.DataOptions(max_length=limit, on_bad_row="drop")), chats)


# ---- text ----


def test_text_equals_the_command(model: zj.LoadedModel, tmp_path: Path) -> None:
    """A prompt may be text, messages or a row with an answer."""
    prompts = ["Tell a story about a fox and a drum.", "Tell a story about a cat and a kite."]
    out = tmp_path / "answers.jsonl"
    words = ["--model", str(BASE), "--model.compute_dtype", "float32", "--max_new_tokens", "24", "--output", str(out)]
    main(["generate", *words, "--prompts", *prompts])
    expected = [json.loads(line)["answer"] for line in out.read_text().splitlines()]
    messages = [{"role": "user", "content": prompts[1]}]
    row = {"messages": [*messages, {"role": "assistant", "content": "Once."}]}
    answers = zj.generate_text(model, [*prompts, messages, row], zj.TopKSamplingOptions(max_new_tokens=24))
    assert [answer.text for answer in answers] == [*expected, expected[1], expected[1]]
    assert expected[0] != expected[1]
    with pytest.raises(zj.InputError, match="sequence of at least one prompt"):
        zj.generate_text(model, "Hello!")
    with pytest.raises(zj.InputError, match="Prompt 0 cannot be used"):
        zj.generate_text(model, [{"text": "a"}])


# ---- runs ----


def test_metrics_are_rows_and_columns(tmp_path: Path) -> None:
    """A line that a kill cut off is skipped; rows without a metric have NaN in its column."""
    lines = [{"step": 0, "eval/loss": 3.0}, {"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0, "eval/loss": 2.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    metrics = zj.read_metrics(str(tmp_path))
    assert list(metrics.rows) == lines
    assert metrics.names == ("step", "eval/loss", "loss")
    np.testing.assert_array_equal(metrics.column("loss"), [np.nan, 2.5, 2.0])
    steps, losses = metrics.series("eval/loss")
    assert (steps.tolist(), losses.tolist()) == ([0, 2], [3.0, 2.25])
    with pytest.raises(zj.InputError, match="Did you mean `loss`"):
        metrics.column("los")


def test_settings_are_checked_as_by_the_command(tmp_path: Path) -> None:
    with pytest.raises(zj.InputError, match="`output` is not set"):
        zj.train_model(zj.SftConfig(model=zj.ModelOptions(path="a"), data=zj.DataOptions(path="b")))
    with pytest.raises(zj.InputError, match="optimizer.learning_rate"):
        zj.train_model(
            zj.SftConfig(
                "a",
                model=zj.ModelOptions(path="a"),
                data=zj.DataOptions(path="b"),
                optimizer=zj.OptimizerOptions(learning_rate=-1),
            )
        )
    with pytest.raises(zj.InputError, match="model.path is empty"):
        zj.load_model("")
    with pytest.raises(zj.InputError, match="metrics.jsonl does not exist"):
        zj.read_metrics(tmp_path)
    with pytest.raises(zj.InputError, match="`output` is not set"):
        zj.export_model(zj.ExportConfig(model=zj.WeightsOptions(path="a")))
