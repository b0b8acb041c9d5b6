"""Every run leaves a page, whatever becomes of the run; and no run fails for the sake of its page."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from tests.conftest import write_rows
from tests.gcs import Gcs
from tests.methods.small import dpo_config, sft_config
from tests.report.browser import found, look
from tests.report.reading import Node, dots, measured, read
from tests.train.test_resume import Killed, kill_after
from zephyr_jax.checkpoint.inheritance import open_tokenizer
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.cli import main
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.data.examples import Examples, load_examples
from zephyr_jax.data.segments import PREFERENCE
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.errors import TrainingError
from zephyr_jax.reference.fill import reference
from zephyr_jax.report import report as report_module
from zephyr_jax.report import samples as samples_module
from zephyr_jax.report.report import add_samples
from zephyr_jax.report.sample_files import SAMPLES
from zephyr_jax.train_command import train

LOG_FAILURE = report_module.log_failure
CONVERSATIONS = {"Loss", "Learning rate", "Gradient norm", "Padding", "Throughput", "Length"}
PAIRS = CONVERSATIONS | {"Accuracy", "Margin", "Rewards", "Log-probs", "Score"}


def first_config(model: Path, home: Path, out: Path) -> SftConfig:
    first = sft_config(model, home / "chats.jsonl", out / "sft", epochs=1)
    data, schedule = replace(first.data, eval_path=first.data.path), replace(first.schedule, evaluate_every=2)
    return replace(first, data=data, schedule=schedule, expected={"loss": (6.0, 7.5)})


def second_config(home: Path, out: Path) -> DpoConfig:
    second = dpo_config(out / "sft", home / "pairs.jsonl", out / "dpo", home / "reference")
    data, schedule = replace(second.data, eval_path=second.data.path), replace(second.schedule, evaluate_every=2)
    return replace(second, data=data, schedule=schedule)


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished runs `sft` and `dpo`, with held-out numbers after every second step."""
    out = tmp_path_factory.mktemp("runs")
    write_rows(out / "chats.jsonl", list(conversations(0, 40, "train")))
    write_rows(out / "pairs.jsonl", list(preferences(0, 24, "train")))
    train(first_config(tiny_model, out, out))
    second = second_config(out, out)
    reference(second)
    train(second)
    return out


@pytest.fixture
def for_users(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What fails on a page is what it is for users: a line."""
    with monkeypatch.context() as patch:
        patch.setattr(report_module, "log_failure", LOG_FAILURE)
        yield


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Path:
    """A folder with copies of both runs, each of which says that it lies there."""
    for name in ("sft", "dpo"):
        shutil.copytree(runs / name, tmp_path / name)
        for record in (tmp_path / name / "provenance.json", *(tmp_path / name).glob("checkpoints/*/*/metadata")):
            record.write_text(record.read_text().replace(str(runs / "sft"), str(tmp_path / "sft")))
    return tmp_path


def asking[C: SftConfig](config: C, prompts: int) -> C:
    return replace(config, report=replace(config.report, num_samples=prompts))


def kept(run: Path) -> dict:
    return json.loads((run / SAMPLES).read_text())


def stages(run: Path) -> list[str]:
    """Who answered, the same for each prompt."""
    (models,) = {tuple(sample["model"] for sample in prompt["samples"]) for prompt in kept(run)["prompts"]}
    return list(models)


def first_prompts(rows: Path, count: int) -> list[str]:
    return list(dict.fromkeys(json.loads(line)["prompt"] for line in rows.read_text().splitlines()))[:count]


def test_a_run_and_the_stages_before_it_answer_held_out_prompts(
    tiny_model: Path, runs: Path, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The base, dSFT and dDPO, each to the same three prompts, after training; a second start generates nothing."""
    caplog.set_level(logging.INFO, "zephyr_jax")
    first, second = first_config(tiny_model, runs, copied), second_config(runs, copied)
    train(asking(first, 3))
    add_samples(asking(second, 3), epath.Path(copied / "dpo"))
    assert stages(copied / "sft") == ["base (model)", "dSFT (sft)"]
    assert stages(copied / "dpo") == ["base (model)", "dSFT (sft)", "dDPO (dpo)"]
    for name in ("sft", "dpo"):
        assert [each["prompt"] for each in kept(copied / name)["prompts"]] == first_prompts(runs / "chats.jsonl", 3)
        page = page_of(copied / name)
        assert [node.words() for node in page.all("h4")][: len(stages(copied / name))] == stages(copied / name)
        assert f"held-out rows of dSFT (sft), {runs}/chats.jsonl (train)" in page.words()
        assert kept(copied / name)["held_out"]
    assert [
        log
        for log in caplog.messages
        if log.startswith(f"{copied}/dpo/{SAMPLES}: 3 samples each of base (model), dSFT")
    ]
    caplog.clear()
    train(asking(first, 3))
    assert not [log for log in caplog.messages if "samples" in log]


def test_training_prompts_are_marked_and_held_out_ones_preferred(tiny_model: Path, runs: Path, copied: Path) -> None:
    first, second = first_config(tiny_model, runs, copied), second_config(runs, copied)
    first = replace(first, data=replace(first.data, eval_path=None))
    add_samples(asking(first, 2), epath.Path(copied / "sft"))
    assert not kept(copied / "sft")["held_out"]
    assert "training rows, since nothing is held out (data.eval_path" in page_of(copied / "sft").words()
    add_samples(asking(second, 2), epath.Path(copied / "dpo"))
    assert [each["prompt"] for each in kept(copied / "dpo")["prompts"]] == first_prompts(runs / "pairs.jsonl", 2)
    assert stages(copied / "dpo") == ["base (model)", "dSFT (sft)", "dDPO (dpo)"]
    assert kept(copied / "dpo")["held_out"]


def test_missing_weights_of_a_stage_are_noted(runs: Path, copied: Path) -> None:
    """And nothing is downloaded."""
    run, second = copied / "dpo", asking(second_config(runs, copied), 2)
    record = json.loads((run / "provenance.json").read_text())
    record["parent"]["parent"]["path"] = "mistralai/Mistral-7B-v0.1"
    (run / "provenance.json").write_text(json.dumps(record))
    add_samples(second, epath.Path(run))
    assert stages(run) == ["dSFT (sft)", "dDPO (dpo)"]
    gone = "base (Mistral-7B-v0.1) is missing: its weights are not on this machine."
    assert kept(run)["about"].endswith(gone) and gone in page_of(run).words()
    (run / SAMPLES).unlink()
    shutil.rmtree(copied / "sft")
    add_samples(second, epath.Path(run))
    assert stages(run) == ["dDPO (dpo)"]
    assert "dSFT (sft) is missing" in page_of(run).words()


def test_prompts_too_long_for_a_sample_are_skipped(tiny_model: Path, runs: Path, copied: Path) -> None:
    texts = ["long " * 300, "five words are enough here " * 20, " ", "Hello!"]
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]} for text in texts]
    first = asking(first_config(tiny_model, runs, copied), 4)
    first = replace(first, data=replace(first.data, eval_path=str(write_rows(copied / "rows.jsonl", rows))))
    add_samples(first, epath.Path(copied / "sft"))
    assert [each["prompt"] for each in kept(copied / "sft")["prompts"]] == ["Hello!"]


def test_the_command_generates_samples_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the settings of the run's own record."""
    words = [
        "report",
        "--run",
        str(copied / "dpo"),
        "--num_samples",
        "2",
        *["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"],
    ]
    main(words)
    assert stages(copied / "dpo") == ["base (model)", "dSFT (sft)", "dDPO (dpo)"]
    assert len(kept(copied / "dpo")["prompts"]) == 2
    written = kept(copied / "dpo")
    monkeypatch.setattr(samples_module, "generate", None)
    main(words)
    assert kept(copied / "dpo") == written


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of the report module."""
    records = [record for record in caplog.records if record.name == report_module.__name__]
    return [record.getMessage() for record in records if record.levelno == logging.WARNING]


@pytest.mark.usefixtures("for_users")
def test_a_sampling_failure_is_one_warning(
    tiny_model: Path, runs: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run succeeds, and the warning and the report have the command to retry."""

    def fail(config: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(samples_module, "generate", fail)
    train(asking(first_config(tiny_model, runs, copied), 3))
    command = f"zephyr-jax report --run {copied}/sft --num_samples 10"
    (warning,) = warnings_of(caplog)
    assert "(no room)" in warning and warning.endswith(command)
    assert command in page_of(copied / "sft").words()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "report.num_samples is 0"),
        ({"answers": 10}, "interrupted or failed"),
        ({"answers": 10, "steps": 99}, "at the end of the run"),
        ({"answers": 10, "processes": 4}, "4 processes"),
        ({"answers": 10, "resumed": [{"processes": 8}]}, "8 processes"),
        ({"answers": 10, "processes": 4, "resumed": [{"processes": 1}, None]}, "interrupted or failed"),
    ],
)
def test_a_report_without_samples_gives_reason_and_command(copied: Path, changes: dict, said: str) -> None:
    run = copied / "dpo"
    record = json.loads((run / "provenance.json").read_text())
    record["config"]["report"]["num_samples"] = changes.pop("answers", 0)
    (run / "provenance.json").write_text(json.dumps(record | changes))
    main(["report", "--run", str(run)])
    (part,) = [each for each in page_of(run).all("section") if "Samples" in [h.words() for h in each.all("h2")]]
    assert said in part.words() and f"zephyr-jax report --run {run} --num_samples 10" in part.words()


def page_of(run: Path) -> Node:
    return read((run / "report.html").read_text())


def pictures(page: Node) -> dict[str, Node]:
    """The charts of a page by title; of several of one title the first."""
    return {each.all("strong")[0].words(): each for each in reversed(page.all("figure", "chart"))}


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_its_report(runs: Path) -> None:
    """All that was asked for: curves, data, numbers, settings, versions; each number is the run's own."""
    page = page_of(runs / "dpo")
    assert set(pictures(page)) == PAIRS
    held_out = [(line["step"], line["eval/loss"]) for line in metrics(runs / "dpo") if "eval/loss" in line]
    back = measured(pictures(page)["Loss"], dots(pictures(page)["Loss"]), 0, held_out[-1][0])
    np.testing.assert_allclose(back, held_out, atol=0.02)
    tiles = dict(zip((e.words() for e in page.all("dt")), (e.words() for e in page.all("dd")), strict=True))
    assert tiles["loss, held out"] == f"{held_out[-1][1]:.4g}"
    assert tiles["steps"] == f"{held_out[-1][0]}"
    said = page.words()
    record = json.loads((runs / "dpo" / "provenance.json").read_text())
    for name, value in record["versions"].items():
        assert name in said and value in said
    assert "optimizer.learning_rate" in said and "dpo.beta" in said and record["devices"] in said
    assert "Finished." in said


def test_a_run_of_conversations_has_its_own_curves_and_what_its_card_expects(runs: Path) -> None:
    page = page_of(runs / "sft")
    assert set(pictures(page)) == CONVERSATIONS
    assert "nats per target token" in pictures(page)["Loss"].words()
    assert "conversation median" in pictures(page)["Length"].words()
    assert "6.0 to 7.5" in page.all("table")[0].words()


@pytest.mark.skipif(found() is None, reason="no Chromium is installed (apt-get install chromium)")
@pytest.mark.parametrize("size", [(390, 844), (1280, 900)], ids=str)
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_real_browser_draws_every_chart(runs: Path, stage: str, size: tuple[int, int]) -> None:
    """On a phone's screen and on a desk's, with nothing to push sideways and nothing asked for but the file."""
    seen = look(runs / stage / "report.html", *size, selector=".section > .charts > .chart")
    assert set(seen.boxes) == {"sft": CONVERSATIONS, "dpo": PAIRS}[stage]
    assert [title for title in seen.boxes if seen.blank(title)] == []
    assert seen.width == size[0]
    assert seen.requests == [(runs / stage / "report.html").as_uri()] and seen.complaints == []


def test_earlier_stages_are_in_the_report(runs: Path, tmp_path: Path) -> None:
    """With their curves where their folder is still theirs, and by their record alone where it is not."""
    (before,) = [each for each in page_of(runs / "dpo").all("details") if "dSFT: " in each.words()]
    assert {"Loss", "Length"} <= set(pictures(before))
    copy = Path(shutil.copytree(runs, tmp_path / "copy"))
    record = json.loads((copy / "dpo" / "provenance.json").read_text())
    for output in (str(tmp_path / "nowhere"), "gs://a-bucket/sft"):
        record["parent"]["output"] = output
        (copy / "dpo" / "provenance.json").write_text(json.dumps(record))
        main(["report", "--run", str(copy / "dpo")])
        (before,) = [each for each in page_of(copy / "dpo").all("details") if "dSFT: " in each.words()]
        assert pictures(before) == {}
        assert "only its record" in before.words() and "optimizer.learning_rate" in before.words()


def test_another_run_in_the_folder_of_an_earlier_stage_is_ignored(runs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs / "sft", tmp_path / "sft"))
    first = json.loads((copy / "provenance.json").read_text())
    (copy / "provenance.json").write_text(json.dumps({**first, "at": "1999-12-31T23:59:59+00:00"}))
    child = Path(shutil.copytree(runs / "dpo", tmp_path / "dpo"))
    record = json.loads((child / "provenance.json").read_text())
    record["parent"]["output"] = str(copy)
    (child / "provenance.json").write_text(json.dumps(record))
    main(["report", "--run", str(child)])
    assert "only its record" in page_of(child).words()


def examples_of(runs: Path, rows: Path) -> Examples:
    config = dpo_config(runs / "sft", rows, runs / "x", runs / "y")
    return load_examples(
        PREFERENCE, config.data, open_tokenizer(find_model(config.model), config.data), str(rows), "train"
    )


def test_lengths_and_scores_are_counted_from_the_rows(runs: Path) -> None:
    """Each example once; scores are those of the rows that are used."""
    rows = [json.loads(line) for line in (runs / "pairs.jsonl").read_text().splitlines()]
    examples = examples_of(runs, runs / "pairs.jsonl")
    assert examples.segment_lengths().sum(axis=1).tolist() == examples.lengths.tolist()
    np.testing.assert_array_equal(
        examples.columns["scores"], [[row["score_chosen"], row["score_rejected"]] for row in rows]
    )
    selected = examples.select(np.array([3, 1]))
    np.testing.assert_array_equal(selected.columns["scores"], examples.columns["scores"][[3, 1]])
    content = json.loads((runs / "dpo" / "histograms.json").read_text())
    assert {name: sum(counts) for name, counts in content["scores"]["groups"].items()} == {"chosen": 24, "rejected": 24}
    assert content["lengths"]["medians"]["chosen"] == np.median(examples.segment_lengths()[:, 0])


def test_scores_belong_to_the_rows_that_are_used(runs: Path, tmp_path: Path) -> None:
    """A row that is left out takes its scores along; whole numbers and gaps are numbers too, words are none."""
    rows = [json.loads(line) for line in (runs / "pairs.jsonl").read_text().splitlines()][:4]
    for number, row in enumerate(rows):
        row |= {"score_chosen": number, "score_rejected": None if number == 3 else -number}
    rows[1]["chosen"] = rows[1]["chosen"][:1]  # no answer
    examples = examples_of(runs, write_rows(tmp_path / "rows.jsonl", rows))
    np.testing.assert_array_equal(examples.columns["scores"], [[0, 0], [2, -2], [3, np.nan]])
    words = [{**row, "score_chosen": "high", "score_rejected": "low"} for row in rows]
    assert "scores" not in examples_of(runs, write_rows(tmp_path / "words.jsonl", words)).columns
    for row in rows:
        del row["score_rejected"]
    assert "scores" not in examples_of(runs, write_rows(tmp_path / "none.jsonl", rows)).columns


def test_a_run_with_anomalies_writes_its_report(runs: Path, tiny_model: Path, tmp_path: Path) -> None:
    """With the last step and the files of the bad batches."""
    config = sft_config(tiny_model, runs / "chats.jsonl", tmp_path / "run", epochs=1)
    config = replace(config, optimizer=replace(config.optimizer, learning_rate=1e9, warmup_ratio=0, max_grad_norm=None))
    with pytest.raises(TrainingError):
        train(config)
    said = page_of(tmp_path / "run").words()
    assert "Not finished" in said and "Anomalous steps" in said and "step-00000" in said


def test_a_killed_run_is_reported_by_the_command_and_the_next_start(
    runs: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves no time for a report."""
    config = sft_config(tiny_model, runs / "chats.jsonl", tmp_path / "run")
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        patch.setattr("zephyr_jax.report.report.try_write_report", lambda folder: None)
        with pytest.raises(Killed):
            train(config)
    assert not (tmp_path / "run" / "report.html").exists()
    main(["report", "--run", str(tmp_path / "run")])
    by_verb = (tmp_path / "run" / "report.html").read_text()
    assert "Not finished: step 2 of " in by_verb
    (tmp_path / "run" / "report.html").unlink()
    with monkeypatch.context() as patch:
        kill_after(patch, 0)
        with pytest.raises(Killed):
            train(config)
    assert "Not finished: step 2 of " in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.usefixtures("for_users")
def test_a_report_failure_is_one_warning(
    runs: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run succeeds, and the warning has the command to retry."""
    (tmp_path / "run" / "report.html").mkdir(parents=True)  # nothing can be written there
    train(sft_config(tiny_model, runs / "chats.jsonl", tmp_path / "run", epochs=1))
    warnings = warnings_of(caplog)
    assert f"{tmp_path}/run/report.html" in warnings[-1]
    assert warnings[-1].endswith(f"zephyr-jax report --run {tmp_path}/run")
    assert len(metrics(tmp_path / "run")) > 1


def answers(folder: Path, name: str, rows: list[dict]) -> str:
    return str(write_rows(folder / f"{name}.jsonl", rows))


def test_sample_files_are_shown_side_by_side_and_kept(runs: Path, tmp_path: Path) -> None:
    """By prompt, whatever their order; the first ten; and later pages of the run have them still."""
    run = Path(shutil.copytree(runs / "dpo", tmp_path / "dpo"))
    asked = [f"question {number}" for number in range(12)]
    one = answers(tmp_path, "base", [{"prompt": each, "answer": f"a {each}", "ended": True} for each in asked])
    evil = "<script>alert('x')</script>"
    two = answers(tmp_path, "b", [{"prompt": each, "answer": evil, "ended": False} for each in reversed(asked)])
    main(["report", "--run", str(run), "--sample_files", one, f"dSFT + dDPO={two}"])
    main(["report", "--run", str(run)])
    articles = page_of(run).all("article")
    assert [each.all("h3", "prompt")[0].words() for each in articles] == asked[:10]
    for each, prompt in zip(articles, asked, strict=False):
        assert [title.words() for title in each.all("h4")] == ["base", "dSFT + dDPO"]
        assert [text.words() for text in each.all("div", "sample")] == [f"a {prompt}", evil]
        assert [text.words() for text in each.all("p", "note")] == ["stopped at the token limit"]
    main(["report", "--run", str(run), "--sample_files", one, "--num_prompts", "2"])
    assert len(page_of(run).all("article")) == 2


GOOD = {"prompt": "p", "answer": "a", "ended": True}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"prompt": "p", "answ', "line 1: expected JSON"),
        ('{"prompt": "p"}', "expected the texts `prompt` and `answer`"),
        ('{"prompt": "p", "answer": 3}', "expected the texts `prompt` and `answer`"),
        ("[1]", "expected the texts `prompt` and `answer`"),
        (json.dumps({**GOOD, "prompt": "another"}), "same prompts"),
        ("", "same prompts"),
    ],
)
def test_malformed_sample_files_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str, said: str
) -> None:
    """And the page that was there stays."""
    before = (runs / "dpo" / "report.html").read_bytes()
    (tmp_path / "bad.jsonl").write_text(lines)
    good = answers(tmp_path, "good", [GOOD])
    with pytest.raises(SystemExit) as stopped:
        main(["report", "--run", str(runs / "dpo"), "--sample_files", good, str(tmp_path / "bad.jsonl")])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert (runs / "dpo" / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("report", "`run` is not set"),
        ("report --run {home}", "provenance.json"),
        ("report --run {home}/nothing", "provenance.json"),
        ("report --run {runs}/dpo --num_prompts 0", "`num_prompts`: expected a number greater than 0, got 0"),
        ("report --run {runs}/dpo --num_samples -1", "got -1"),
        ("report --run {runs}/dpo --num_samples 3 --sample_files {home}/a.jsonl", "both set"),
        ("report --run {runs}/dpo --sample_files {home}/none.jsonl", "file not found: {home}/none.jsonl"),
        ("report --run {runs}/dpo --sample_files {home}/a.jsonl {home}/a.jsonl", "NAME=FILE"),
    ],
)
def test_errors_are_one_paragraph(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    answers(tmp_path, "a", [GOOD])
    with pytest.raises(SystemExit) as stopped:
        main(words.format(home=tmp_path, runs=runs).split())
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert said.format(home=tmp_path) in shown and "Traceback" not in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("histograms.json", '{"lengths": 3}'),
        ("histograms.json", "{"),
        ("histograms.json", "[]"),
        ("provenance.json", "{"),
        ("provenance.json", '{"made_by": "dpo", "config": [1]}'),
        ("provenance.json", '{"made_by": "dpo", "config": {"data": [1]}}'),
        ("provenance.json", '{"made_by": "dpo", "config": {"dpo": "x"}}'),
        ("provenance.json", '{"made_by": "dpo", "steps": "many"}'),
        ("provenance.json", '{"made_by": "dpo", "parent": "sft"}'),
        ("provenance.json", '{"made_by": "dpo", "parent": {"made_by": "sft", "versions": "x"}}'),
        (SAMPLES, "[3]"),
        (SAMPLES, '{"prompts": [{"text": "x"}]}'),
        (SAMPLES, "\xff"),
    ],
)
def test_damaged_files_are_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    run = Path(shutil.copytree(runs / "dpo", tmp_path / "dpo", ignore=shutil.ignore_patterns("checkpoints")))
    (run / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(SystemExit) as stopped:
        main(["report", "--run", str(run)])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert re.search(rf"{name}", said) and "Traceback" not in said


def test_held_out_numbers_are_those_that_were_measured_there(tmp_path: Path) -> None:
    """Whichever line they stand on, and whatever else it says."""
    (tmp_path / "provenance.json").write_text('{"made_by": "dpo", "steps": 9, "config": {}}')
    lines = [{"step": 4, "eval/loss": 0.25, "loss": 0.5, "padding": 0.1}, {"step": 9, "loss": 0.75}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["report", "--run", str(tmp_path)])
    page = page_of(tmp_path)
    assert [cell.words() for cell in page.all("table")[0].all("td")] == ["0.25", "0.25"]
    assert "no checkpoint yet of 9 steps" in page.words()


def test_a_record_that_says_little_makes_a_page_that_says_little(tmp_path: Path) -> None:
    """Sections that are empty or not there."""
    (tmp_path / "provenance.json").write_text(
        '{"made_by": "dpo", "config": {"data": {}, "expected": {}}, "resumed": [null, {"step": 3, "processes": "two"}]}'
    )
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2, "tokens_per_second": NaN, "eval/loss": 1}\n')
    main(["report", "--run", str(tmp_path)])
    assert set(pictures(page_of(tmp_path))) == {"Loss", "Throughput"}


def test_names_and_settings_from_elsewhere_stay_text(runs: Path, tmp_path: Path) -> None:
    """A folder's name, a path, a version, a metric: whatever they say, the page has the same elements."""
    evil = "\"><img src=x onerror='alert(1)'>"
    run = Path(shutil.copytree(runs / "dpo", tmp_path / "<b>run & co", ignore=shutil.ignore_patterns("checkpoints")))
    record = json.loads((run / "provenance.json").read_text())
    record["config"]["data"]["path"] = record["commit"] = record["versions"]["jax"] = record["parent"]["output"] = evil
    record["config"]["expected"] = {"loss": [0.1, 0.2]}
    record["versions"][evil] = evil
    (run / "provenance.json").write_text(json.dumps(record))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 999, f"eval/{evil}": 1.0, "eval/loss": 0.5}) + "\n")
    main(["report", "--run", str(run)])
    page = page_of(run)
    assert not page.all("img")
    assert page.all("h1")[0].words() == "<b>run & co"
    assert page.words().count(evil) >= 5


def test_a_run_on_cloud_storage_has_its_page_there(runs: Path, bucket: Gcs) -> None:
    """Like any of its files; its earlier stage is on a disk and is not asked for over the network."""
    run = epath.Path("gs://bucket/dpo")
    for name in ("provenance.json", "metrics.jsonl", "histograms.json"):
        (run / name).write_bytes((runs / "dpo" / name).read_bytes())
    main(["report", "--run", "gs://bucket/dpo"])
    page = read((run / "report.html").read_text())
    assert {"Loss", "Length", "Score"} <= set(pictures(page))
