"""Every script in examples/ runs and returns what its header promises, and so do the code blocks of docs/python-api.md."""

import math
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import zephyr_jax as zj
from zephyr_jax.cli import main
from zephyr_jax.data.segments import PREFERENCE
from zephyr_jax.data.splits import load_splits
from zephyr_jax.demo.demo import BASE
from zephyr_jax.reference.table import MANIFEST, Identity, ReferenceTable, read_manifest, require_complete

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CLOCK = ("step_time", "per_second", "mfu", "memory")


def run(name: str, *arguments: str) -> Any:
    """What `main` of an example returns."""
    spec = spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(*arguments)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def sft(output: Path) -> Path:
    """The run of train_sft.py."""
    return run("train_sft", str(output))


@pytest.fixture(scope="module")
def dpo(output: Path) -> Path:
    """The run of reference_and_dpo.py."""
    return run("reference_and_dpo", str(output))


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """A run's metrics without those that depend on the clock."""
    rows = zj.read_metrics(folder).rows
    return [{name: row[name] for name in row if not any(word in name for word in CLOCK)} for row in rows]


def test_targets_stand_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    run("preview_targets")
    printed = capsys.readouterr().out
    assert "[Once a small cat wanted a kite.</s>]" in printed
    assert "--- rejected: " in printed
    assert "[Tell" not in printed


def test_a_likely_answer_scores_higher() -> None:
    chats, pairs = run("score_conversations")
    assert chats.sums[0, 0] / chats.counts[0, 0] > chats.sums[1, 0] / chats.counts[1, 0]
    assert pairs.sums[0, 0] > pairs.sums[0, 1]


def test_greedy_and_sampled_text_differ() -> None:
    answers = run("generate_text")
    assert [answer.text for answer in answers["greedy"]] != [answer.text for answer in answers["sampled"]]
    assert all(0 < len(answer.tokens) <= 32 for several in answers.values() for answer in several)


def test_sft_learns_and_its_metrics_are_printed(sft: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zj.load_model(sft)
    assert (model.options.compute_dtype, model.tokenizer.data.max_length) == ("float32", 128)  # the run's
    metrics = run("read_metrics", str(sft))
    _, losses = metrics.series("loss")
    assert losses[-1] < 0.8 * losses[0]
    assert capsys.readouterr().out.count("\n") == 1 + len(metrics.rows)


def test_sft_equals_the_command(sft: Path, tmp_path: Path) -> None:
    """The same metrics to the bit from the command line with the run's card; the same call again trains nothing."""
    again = tmp_path / "command"
    main(["sft", "--config", str(sft / "config.yaml"), "--output", str(again)])
    assert metrics_of(again) == metrics_of(sft)
    assert metrics_of(sft)[-1]["step"] > 2
    before = (again / "metrics.jsonl").read_bytes()
    config = zj.load_card(zj.SftConfig, again / "config.yaml")
    assert zj.train_model(config) == again
    assert (again / "metrics.jsonl").read_bytes() == before


def test_dpo_starts_at_ln_2_learns_and_is_exported(dpo: Path, output: Path) -> None:
    losses = zj.read_metrics(dpo).column("loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.1
    exported, base = (load_file(folder / "model.safetensors") for folder in (output / "export", BASE))
    name = "model.layers.0.mlp.up_proj.weight"
    assert exported[name].shape == base[name].shape
    assert not np.array_equal(exported[name], base[name])


def test_scores_equal_the_reference_table(dpo: Path, output: Path) -> None:
    """A second pass computes nothing."""
    config = zj.load_card(zj.DpoConfig, dpo / "config.yaml")
    filled = zj.fill_reference(config)
    assert (filled.computed, filled.reused) == (0, 8)
    tokenizer = zj.load_tokenizer(BASE, data=config.data)
    examples = load_splits(PREFERENCE, config.data, tokenizer.chat, None, "base")["training"]
    table = ReferenceTable(output / "reference", Identity(**read_manifest(filled.folder / MANIFEST)))
    stored = require_complete(output / "reference", table, examples.keys(), examples.ids(), "")
    pairs = zj.read_rows(output / "pairs.jsonl")
    options = zj.ScoringOptions(path=str(BASE), compute_dtype="float32")
    scores = zj.score(zj.load_model(options, data=config.data), pairs)
    assert scores.segments == ("chosen", "rejected")
    np.testing.assert_allclose(scores.sums, stored, rtol=1e-6)
    targets = [[int(segment.targets.sum()) for segment in zj.tokenize(tokenizer, pair)] for pair in pairs]
    assert scores.counts.tolist() == targets


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of docs/python-api.md in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python-api.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) > 8
    assert names["segment"].targets.any()
    assert names["margin"].shape == (1,)
    assert names["losses"][-1] < names["losses"][0]
    assert np.isfinite(names["column"]).any()
    assert (tmp_path / "export" / "model.safetensors").is_file()


def test_every_example_has_a_test_and_a_header() -> None:
    source = Path(__file__).read_text()
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert names == sorted(set(re.findall(r'run\("(\w+)"', source)))
    assert all(f"python examples/{name}.py" in (EXAMPLES / f"{name}.py").read_text().split('"""')[1] for name in names)
