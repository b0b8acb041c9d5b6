"""Every run leaves a page, whatever becomes of the run; and no run fails for the sake of its page."""

import json
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
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.cli import main
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.data.examples import Examples, load_preferences
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.errors import TrainingError
from zephyr_jax.methods.dpo import dpo
from zephyr_jax.methods.sft import sft
from zephyr_jax.reference.fill import reference
from zephyr_jax.report import report as recipe
from zephyr_jax.report import samples as run_answers
from zephyr_jax.report.samples import leave_answers
from zephyr_jax.train.setup import open_tokenizer

EXCUSE = recipe.excuse
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
    sft(first_config(tiny_model, out, out))
    second = second_config(out, out)
    reference(second)
    dpo(second)
    return out


@pytest.fixture
def for_users(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What fails on a page is what it is for users: a line."""
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "excuse", EXCUSE)
        patch.setattr(run_answers, "excuse", EXCUSE)
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
    return json.loads((run / "answers.json").read_text())


def stages(run: Path) -> list[str]:
    """Who answered, the same for each prompt."""
    (who,) = {tuple(said["stage"] for said in prompt["answers"]) for prompt in kept(run)["prompts"]}
    return list(who)


def first_prompts(rows: Path, count: int) -> list[str]:
    return list(dict.fromkeys(json.loads(line)["prompt"] for line in rows.read_text().splitlines()))[:count]


def test_a_run_answers_held_out_prompts_beside_the_stages_before_it(
    tiny_model: Path, runs: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base, dSFT and dDPO, each to the same three prompts, when a run has ended; started again, it answers nothing anew."""
    first, second = first_config(tiny_model, runs, copied), second_config(runs, copied)
    sft(asking(first, 3))
    leave_answers(asking(second, 3), epath.Path(copied / "dpo"))
    assert stages(copied / "sft") == ["base (model)", "dSFT (sft)"]
    assert stages(copied / "dpo") == ["base (model)", "dSFT (sft)", "dDPO (dpo)"]
    for name in ("sft", "dpo"):
        assert [each["text"] for each in kept(copied / name)["prompts"]] == first_prompts(runs / "chats.jsonl", 3)
        page = page_of(copied / name)
        assert [node.words() for node in page.all("h4")][: len(stages(copied / name))] == stages(copied / name)
        assert f"{runs}/chats.jsonl (train), which was held out when dSFT (sft) was trained" in page.words()
    assert "report.html: 3 answers each of base (model), dSFT (sft), dDPO (dpo)" in capsys.readouterr().err
    sft(asking(first, 3))
    assert " answers" not in capsys.readouterr().err


def test_prompts_of_the_training_are_told_and_give_way_to_held_out_ones(
    tiny_model: Path, runs: Path, copied: Path
) -> None:
    first, second = first_config(tiny_model, runs, copied), second_config(runs, copied)
    first = replace(first, data=replace(first.data, eval_path=None))
    leave_answers(asking(first, 2), epath.Path(copied / "sft"))
    assert "prompts that dSFT (sft) was trained on, as nothing was held out" in page_of(copied / "sft").words()
    leave_answers(asking(second, 2), epath.Path(copied / "dpo"))
    assert [each["text"] for each in kept(copied / "dpo")["prompts"]] == first_prompts(runs / "pairs.jsonl", 2)
    assert stages(copied / "dpo") == ["base (model)", "dSFT (sft)", "dDPO (dpo)"]
    assert "pairs.jsonl (train), which was held out when dDPO (dpo) was trained" in page_of(copied / "dpo").words()


def test_stages_whose_weights_are_gone_are_told_and_the_others_answer(runs: Path, copied: Path) -> None:
    """Nobody is asked over a network, neither."""
    run, second = copied / "dpo", asking(second_config(runs, copied), 2)
    record = json.loads((run / "provenance.json").read_text())
    record["parent"]["parent"]["path"] = "mistralai/Mistral-7B-v0.1"
    (run / "provenance.json").write_text(json.dumps(record))
    leave_answers(second, epath.Path(run))
    assert stages(run) == ["dSFT (sft)", "dDPO (dpo)"]
    gone = "base (Mistral-7B-v0.1) is not among them: its weights are not on this machine."
    assert kept(run)["about"].endswith(gone) and gone in page_of(run).words()
    (run / "answers.json").unlink()
    shutil.rmtree(copied / "sft")
    leave_answers(second, epath.Path(run))
    assert stages(run) == ["dDPO (dpo)"]
    assert "dSFT (sft) is not among them" in page_of(run).words()


def test_prompts_that_leave_no_room_for_an_answer_are_passed_over(tiny_model: Path, runs: Path, copied: Path) -> None:
    texts = ["long " * 300, "five words are enough here " * 20, " ", "Hello!"]
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]} for text in texts]
    first = asking(first_config(tiny_model, runs, copied), 4)
    first = replace(first, data=replace(first.data, eval_path=str(write_rows(copied / "rows.jsonl", rows))))
    leave_answers(first, epath.Path(copied / "sft"))
    assert [each["text"] for each in kept(copied / "sft")["prompts"]] == ["Hello!"]


def test_the_verb_has_stages_answer_later(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the settings of the run's own record, once."""
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
    assert "by itself" in page_of(copied / "dpo").words() and len(kept(copied / "dpo")["prompts"]) == 2
    capsys.readouterr()
    main(words)
    assert capsys.readouterr().err == "the page has the answers already: nobody was asked\n"


@pytest.mark.usefixtures("for_users")
def test_answers_that_fail_cost_a_line(
    tiny_model: Path, runs: Path, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends as it would have, and its page names the command."""

    def fail(config: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(run_answers, "generate", fail)
    sft(asking(first_config(tiny_model, runs, copied), 3))
    said = capsys.readouterr().err.splitlines()[-1]
    command = f"zephyr-jax report --run {copied}/sft --num_samples 10"
    assert said == f"no answers were made for the page (no room). To have them there: {command}"
    assert command in page_of(copied / "sft").words()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "as the run was told (report.num_samples: 0)"),
        ({"answers": 10}, "could not make them"),
        ({"answers": 10, "steps": 99}, "they are made when the run has ended"),
        ({"answers": 10, "processes": 4}, "spread over 4 processes"),
        ({"answers": 10, "resumed": [{"processes": 8}]}, "spread over 8 processes"),
        ({"answers": 10, "processes": 4, "resumed": [{"processes": 1}, None]}, "could not make them"),
    ],
)
def test_a_page_without_answers_says_why_and_how(copied: Path, changes: dict, said: str) -> None:
    run = copied / "dpo"
    record = json.loads((run / "provenance.json").read_text())
    record["config"]["report"]["num_samples"] = changes.pop("answers", 0)
    (run / "provenance.json").write_text(json.dumps(record | changes))
    main(["report", "--run", str(run)])
    (part,) = [each for each in page_of(run).all("section") if "Answers" in [h.words() for h in each.all("h2")]]
    assert said in part.words() and f"zephyr-jax report --run {run} --num_samples 10" in part.words()


def page_of(run: Path) -> Node:
    return read((run / "report.html").read_text())


def pictures(page: Node) -> dict[str, Node]:
    """The charts of a page by title; of several of one title the first."""
    return {each.all("strong")[0].words(): each for each in reversed(page.all("figure", "chart"))}


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_page(runs: Path) -> None:
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
    assert "conversations median" in pictures(page)["Length"].words()
    assert "6.0 to 7.5" in page.all("table")[0].words()


@pytest.mark.skipif(found() is None, reason="no Chromium is installed (apt-get install chromium)")
@pytest.mark.parametrize("size", [(390, 844), (1280, 900)], ids=str)
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_real_browser_draws_every_chart(runs: Path, stage: str, size: tuple[int, int]) -> None:
    """On a phone's screen and on a desk's, with nothing to push sideways and nothing asked for but the file."""
    seen = look(runs / stage / "report.html", *size, selector=".part > .charts > .chart")
    assert set(seen.boxes) == {"sft": CONVERSATIONS, "dpo": PAIRS}[stage]
    assert [title for title in seen.boxes if seen.blank(title)] == []
    assert seen.width == size[0]
    assert seen.requests == [(runs / stage / "report.html").as_uri()] and seen.complaints == []


def test_earlier_stages_stand_on_the_page_of_the_later(runs: Path, tmp_path: Path) -> None:
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
        assert "only its record is left" in before.words() and "optimizer.learning_rate" in before.words()


def test_another_run_that_took_the_place_of_an_earlier_stage_is_not_shown(runs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs / "sft", tmp_path / "sft"))
    first = json.loads((copy / "provenance.json").read_text())
    (copy / "provenance.json").write_text(json.dumps({**first, "at": "1999-12-31T23:59:59+00:00"}))
    child = Path(shutil.copytree(runs / "dpo", tmp_path / "dpo"))
    record = json.loads((child / "provenance.json").read_text())
    record["parent"]["output"] = str(copy)
    (child / "provenance.json").write_text(json.dumps(record))
    main(["report", "--run", str(child)])
    assert "only its record is left" in page_of(child).words()


def examples_of(runs: Path, rows: Path) -> Examples:
    config = dpo_config(runs / "sft", rows, runs / "x", runs / "y")
    return load_preferences(config.data, open_tokenizer(find_model(config.model), config.data), str(rows), "train")


def test_lengths_and_scores_are_counted_from_the_rows(runs: Path) -> None:
    """Each example once; scores are those of the rows that are used."""
    rows = [json.loads(line) for line in (runs / "pairs.jsonl").read_text().splitlines()]
    examples = examples_of(runs, runs / "pairs.jsonl")
    assert examples.segment_lengths().sum(axis=1).tolist() == examples.lengths.tolist()
    assert examples.scores is not None
    np.testing.assert_array_equal(examples.scores, [[row["score_chosen"], row["score_rejected"]] for row in rows])
    np.testing.assert_array_equal(examples.select(np.array([3, 1])).scores, examples.scores[[3, 1]])
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
    np.testing.assert_array_equal(examples.scores, [[0, 0], [2, -2], [3, np.nan]])
    words = [{**row, "score_chosen": "high", "score_rejected": "low"} for row in rows]
    assert examples_of(runs, write_rows(tmp_path / "words.jsonl", words)).scores is None
    for row in rows:
        del row["score_rejected"]
    assert examples_of(runs, write_rows(tmp_path / "none.jsonl", rows)).scores is None


def test_a_run_that_is_sick_leaves_its_page(runs: Path, tiny_model: Path, tmp_path: Path) -> None:
    """It tells how far it came, and names the step."""
    config = sft_config(tiny_model, runs / "chats.jsonl", tmp_path / "run", epochs=1)
    config = replace(config, optimizer=replace(config.optimizer, learning_rate=1e9, warmup_ratio=0, max_grad_norm=None))
    with pytest.raises(TrainingError):
        sft(config)
    said = page_of(tmp_path / "run").words()
    assert "Not finished." in said and "Sick steps were met" in said and "step-00000" in said


def test_what_a_killed_run_did_is_on_the_page_of_the_next_start_and_of_the_verb(
    runs: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves no time for a page."""
    config = sft_config(tiny_model, runs / "chats.jsonl", tmp_path / "run")
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        patch.setattr("zephyr_jax.train.fit.leave_page", lambda folder: None)
        with pytest.raises(Killed):
            sft(config)
    assert not (tmp_path / "run" / "report.html").exists()
    main(["report", "--run", str(tmp_path / "run")])
    by_verb = (tmp_path / "run" / "report.html").read_text()
    assert "Not finished. Step 2 of " in by_verb
    (tmp_path / "run" / "report.html").unlink()
    with monkeypatch.context() as patch:
        kill_after(patch, 0)
        with pytest.raises(Killed):
            sft(config)
    assert "Not finished. Step 2 of " in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.usefixtures("for_users")
def test_a_page_that_cannot_be_written_costs_a_line(
    runs: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends as it would have, and the line says how to make the page."""
    (tmp_path / "run" / "report.html").mkdir(parents=True)  # nothing can be written there
    sft(sft_config(tiny_model, runs / "chats.jsonl", tmp_path / "run", epochs=1))
    said = [line for line in capsys.readouterr().err.splitlines() if "report.html" in line]
    assert said[-1].startswith(f"{tmp_path}/run/report.html could not be written (")
    assert said[-1].endswith(f"To make it: zephyr-jax report --run {tmp_path}/run")
    assert len(metrics(tmp_path / "run")) > 1


def answers(folder: Path, name: str, rows: list[dict]) -> str:
    return str(write_rows(folder / f"{name}.jsonl", rows))


def test_answers_stand_side_by_side_and_stay(runs: Path, tmp_path: Path) -> None:
    """By prompt, whatever their order; the first ten; and later pages of the run have them still."""
    run = Path(shutil.copytree(runs / "dpo", tmp_path / "dpo"))
    asked = [f"question {number}" for number in range(12)]
    one = answers(tmp_path, "base", [{"prompt": each, "answer": f"a {each}", "ended": True} for each in asked])
    evil = "<script>alert('x')</script>"
    two = answers(tmp_path, "b", [{"prompt": each, "answer": evil, "ended": False} for each in reversed(asked)])
    main(["report", "--run", str(run), "--sample_files", one, f"dSFT + dDPO={two}"])
    main(["report", "--run", str(run)])
    articles = page_of(run).all("article")
    assert [each.all("h3", "asked")[0].words() for each in articles] == asked[:10]
    for each, prompt in zip(articles, asked, strict=False):
        assert [title.words() for title in each.all("h4")] == ["base", "dSFT + dDPO"]
        assert [text.words() for text in each.all("div", "said")] == [f"a {prompt}", evil]
        assert [text.words() for text in each.all("p", "note")] == ["did not end by itself"]
    main(["report", "--run", str(run), "--sample_files", one, "--num_prompts", "2"])
    assert len(page_of(run).all("article")) == 2


GOOD = {"prompt": "p", "answer": "a", "ended": True}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"prompt": "p", "answ', "line 1 is no JSON"),
        ('{"prompt": "p"}', "It needs the texts `prompt` and `answer`"),
        ('{"prompt": "p", "answer": 3}', "It needs the texts `prompt` and `answer`"),
        ("[1]", "It needs the texts `prompt` and `answer`"),
        (json.dumps({**GOOD, "prompt": "another"}), "is answered in all of"),
        ("", "is answered in all of"),
    ],
)
def test_answers_that_are_none_are_refused(
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
        ("report --run {home}", "is no run of ours"),
        ("report --run {home}/nothing", "is no run of ours"),
        ("report --run {runs}/dpo --num_prompts 0", "num_prompts is 0"),
        ("report --run {runs}/dpo --num_samples -1", "num_samples is -1"),
        ("report --run {runs}/dpo --num_samples 3 --sample_files {home}/a.jsonl", "both given"),
        ("report --run {runs}/dpo --sample_files {home}/none.jsonl", "There is no file"),
        ("report --run {runs}/dpo --sample_files {home}/a.jsonl {home}/a.jsonl", "have the same name"),
    ],
)
def test_mistakes_are_one_paragraph(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    answers(tmp_path, "a", [GOOD])
    with pytest.raises(SystemExit) as stopped:
        main(words.format(home=tmp_path, runs=runs).split())
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert said in shown and "Traceback" not in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("histograms.json", '{"lengths": 3}'),
        ("histograms.json", "{"),
        ("histograms.json", "[]"),
        ("provenance.json", "{"),
        ("provenance.json", '{"made_by": "dpo", "config": [1]}'),
        ("provenance.json", '{"made_by": "dpo", "steps": "many"}'),
        ("provenance.json", '{"made_by": "dpo", "parent": "sft"}'),
        ("provenance.json", '{"made_by": "dpo", "parent": {"made_by": "sft", "versions": "x"}}'),
        ("answers.json", "[3]"),
        ("answers.json", '{"prompts": [{"text": "x"}]}'),
        ("answers.json", "\xff"),
    ],
)
def test_damaged_files_of_the_page_are_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    run = Path(shutil.copytree(runs / "dpo", tmp_path / "dpo", ignore=shutil.ignore_patterns("checkpoints")))
    (run / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(SystemExit) as stopped:
        main(["report", "--run", str(run)])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert re.search(rf"{name} (cannot be read|is damaged|is not)", said) and "Traceback" not in said


def test_held_out_numbers_are_those_that_were_measured_there(tmp_path: Path) -> None:
    """Whichever line they stand on, and whatever else it says."""
    (tmp_path / "provenance.json").write_text('{"made_by": "dpo", "steps": 9, "config": {}}')
    lines = [{"step": 4, "eval/loss": 0.25, "loss": 0.5, "padding": 0.1}, {"step": 9, "loss": 0.75}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(["report", "--run", str(tmp_path)])
    page = page_of(tmp_path)
    assert [cell.words() for cell in page.all("table")[0].all("td")] == ["0.25", "0.25"]
    assert "Not finished. Nothing is saved yet of 9 steps." in page.words()


def test_a_record_that_says_little_makes_a_page_that_says_little(tmp_path: Path) -> None:
    """Sections that are something else are as good as none."""
    (tmp_path / "provenance.json").write_text(
        '{"made_by": "dpo", "config": {"data": [1], "model": null, "expected": 3, "dpo": "x"}, '
        '"resumed": [null, {"step": 3, "processes": "two"}]}'
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
