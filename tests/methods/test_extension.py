"""A third method that only the tests know: registered, it works in every command that asks for methods."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.conftest import write_rows
from tests.methods.kto import KTO, LABELED, KtoConfig, KtoOptions, LabeledBatch
from tests.methods.small import sft_config
from tests.train.test_resume import Killed, curve, equal, kill_after
from zephyr_jax.checkpoint.inheritance import open_tokenizer
from zephyr_jax.checkpoint.opened import abstract_of
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.cli import main
from zephyr_jax.commands import COMMANDS, Command
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.yaml_file import to_dict
from zephyr_jax.data.batch_file import BAD_BATCHES, write_batch
from zephyr_jax.data.examples import load_examples
from zephyr_jax.data.loader import BatchSource
from zephyr_jax.data.pack import plan_evaluation
from zephyr_jax.demo.corpus import preferences
from zephyr_jax.errors import InputError
from zephyr_jax.export.model_card import model_card
from zephyr_jax.methods.registry import METHODS, method_of
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.plan import search
from zephyr_jax.plan.plan import lower, planned_method
from zephyr_jax.plan.shape import planned_shape
from zephyr_jax.train_command import train


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    """The method and its two commands; nothing else knows it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "kto", KTO)
        patch.setitem(COMMANDS, "kto", Command("KTO", "tests.methods.kto:KtoConfig", ".train_command"))
        patch.setitem(COMMANDS, "reference kto", Command("its table", "tests.methods.kto:KtoConfig", ".reference.fill"))
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers to prompts, half of them good."""
    labeled = []
    for index, row in enumerate(preferences(0, 20, "train")):
        side = ("chosen", "rejected")[index % 2]
        prompt, answer = row[side][-2]["content"], row[side][-1]["content"]
        labeled.append({"id": f"row-{index}", "prompt": prompt, "completion": answer, "label": side == "chosen"})
    return write_rows(tmp_path_factory.mktemp("labeled") / "rows.jsonl", labeled)


def config_of(model: Path, rows: Path, output: Path, table: Path) -> KtoConfig:
    """Four steps of eight rows in two microbatches, evaluated at the end."""
    base = sft_config(model, rows, output)
    data = replace(base.data, eval_path=str(rows), max_length=128, max_prompt_length=64, row_length=128)
    sections = {
        name: getattr(base, name) for name in ("output", "model", "batch", "schedule", "optimizer", "mesh", "report")
    }
    return KtoConfig(**sections, data=data, reference=str(table), expected={"loss": (0.0, 1.0)})


@pytest.fixture(scope="module")
def run(registered: None, rows: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, trained by the command line from a card."""
    folder = tmp_path_factory.mktemp("kto")
    config = config_of(tiny_model, rows, folder / "run", folder / "table")
    (folder / "card.yaml").write_text(yaml.safe_dump(to_dict(config)))
    main(["reference", "kto", "--config", str(folder / "card.yaml")])
    main(["kto", "--config", str(folder / "card.yaml")])
    return folder / "run"


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_trains_on_its_own_columns(run: Path) -> None:
    """The policy starts as its reference: each example loses 1/2; later steps move rewards of either label."""
    first, last = lines(run)[0], lines(run)[-1]
    np.testing.assert_allclose(first["loss"], 0.5, atol=1e-4)
    assert last["eval/loss"] < 0.5
    assert last["eval/rewards/desirable"] > last["eval/rewards/undesirable"]


def test_labels_reach_the_batch(registered: None, rows: Path, tiny_model: Path) -> None:
    """Each label stands in the slot of its example."""
    config = config_of(tiny_model, rows, Path("unused"), Path("unused"))
    assert method_of(config) is KTO
    tokenizer = open_tokenizer(find_model(config.model), config.data)
    examples = load_examples(LABELED, config.data, tokenizer, str(rows), "train")
    plan_ = plan_evaluation(examples.lengths, config.data, 4)
    columns = KTO.reference_columns(None, len(examples))
    batch = BatchSource(examples, plan_, slice(0, 4), LabeledBatch, columns)[0]
    for line, row in enumerate(plan_.steps[0]):
        assert batch.label[0, line, : len(row)].tolist() == [index % 2 == 0 for index in row]
        assert batch.present[0, line].sum() == len(row)


def test_it_resumes_bit_identically(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["kto", "--config", str(run.parent / "card.yaml"), "--output", str(tmp_path / "killed")]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 3)
        main(words)
    main(words)
    assert curve(tmp_path / "killed") == curve(run)
    equal(run, tmp_path / "killed")


def test_it_evaluates(run: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the run's own table as training did, and without one by what means something then."""
    words = [
        "evaluate",
        "--model",
        str(run),
        "--data",
        str(rows),
        "--mesh.data",
        "2",
        "--mesh.fsdp",
        "2",
        "--mesh.tensor",
        "2",
    ]
    main([*words, "--reference", str(run.parent / "table")])
    values = dict(line.split() for line in capsys.readouterr().out.splitlines())
    for name in ("rewards/desirable", "rewards/undesirable"):  # the loss depends on the batch, by its KL estimate
        np.testing.assert_allclose(float(values[name]), lines(run)[-1][f"eval/{name}"], rtol=1e-3, atol=1e-4)
    main(words)
    assert capsys.readouterr().out.split()[0] == "logps/desirable"


def test_it_previews(run: Path, rows: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["preview", "--model", str(tiny_model), "--data", str(rows), "--data.max_length", "128"])
    shown = capsys.readouterr().out
    assert "answer:" in shown and "`prompt` + `completion` + `label`" in shown


def test_it_is_checked_and_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "--run", str(run)])
    assert "passed" in capsys.readouterr().out
    main(["report", "--run", str(run)])
    page = (run / "report.html").read_text()
    assert "KTO of" in page and "Labeled rewards" in page and "desirable reward" in page


def test_its_model_card_names_it(run: Path) -> None:
    record = json.loads((run / "provenance.json").read_text())
    assert record["made_by"] == "kto"
    card = model_card("model", record, {})
    assert KTO.description in card and "| undesirable_weight | 1.0 |" in card


def test_its_steps_are_debugged(run: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A saved batch is rebuilt as the method's type, and every example has its own loss and metrics."""
    config = config_of(
        Path(json.loads((run / "provenance.json").read_text())["config"]["model"]["path"]), rows, run, run
    )
    tokenizer = open_tokenizer(find_model(config.model), config.data)
    examples = load_examples(LABELED, config.data, tokenizer, str(rows), "train")
    plan_ = plan_evaluation(examples.lengths, config.data, 8)
    columns = KTO.reference_columns(None, len(examples))
    batch = BatchSource(examples, plan_, slice(0, 8), LabeledBatch, columns)[0]
    ids = [[examples.ids()[index] for index in row] for row in plan_.steps[0]]
    facts = {"step": 1, "kinds": [], "what": "a test", "ids": ids, "examples_per_row": plan_.examples_per_row}
    file = run / BAD_BATCHES / "step-000001.safetensors"
    file.parent.mkdir(exist_ok=True)
    write_batch(file, batch, facts | {"method": "kto", "config": to_dict(config)})
    main(["debug-step", "--batch_file", str(file)])
    shown = capsys.readouterr().out
    assert ids[0][0] in shown and "desirable reward" in shown


def test_its_step_is_planned(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan --step kto` takes the card with the method's section; the batch has the method's columns, so that the real step is
    traced and lowered without data."""
    planned: list[PlanConfig] = []
    monkeypatch.setattr(search, "plan", planned.append)
    monkeypatch.setattr(search, "table", lambda result: "a table")
    main(["plan", "--config", str(run.parent / "card.yaml"), "--step", "kto", "--kto.beta", "0.7"])
    [config] = planned
    assert KTO.options_of(config) == KtoOptions(beta=0.7) and planned_method(config) is KTO
    rules = ShardingRules(make_mesh(config.mesh))
    model = abstract_of(planned_shape(config), config.model, rules)
    assert lower(config, model, rules, 8) is not None


def test_a_plan_of_another_step_refuses_its_section(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--config", str(run.parent / "card.yaml")])
    assert stopped.value.code == 2
    assert "`kto` is not a setting" in capsys.readouterr().err


def test_its_missing_table_is_named_with_its_own_command(
    registered: None, rows: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(to_dict(config_of(tiny_model, rows, tmp_path / "run", tmp_path / "table"))))
    (tmp_path / "table").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["kto", "--config", str(card)])
    assert stopped.value.code == 2
    assert f"zephyr-jax reference kto --config {card}" in capsys.readouterr().err


def test_another_method_cannot_resume_its_run(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(run, output)
    with pytest.raises(InputError, match="is a run of `kto`, got `sft`"):
        train(sft_config(tiny_model, tmp_path / "rows.jsonl", output))
