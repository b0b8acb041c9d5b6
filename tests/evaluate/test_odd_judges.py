"""Three judges that answer oddly: a reply is a rating or none, nothing is paid for twice, and a resumed run ends alike."""

import _thread
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.endpoints import Answer, judge_at
from tests.evaluate.test_alpaca_judge import TEMPLATE
from tests.evaluate.test_mt_bench import BENCH, write_bench
from zephyr_jax.cli import main
from zephyr_jax.clients.base import ChatResponse
from zephyr_jax.evaluate.alpaca_eval.pairwise import parse_choice, parse_ranking
from zephyr_jax.evaluate.mt_bench.format import UNRATED, mean_scores, parse_rating, parse_ratings

RANKING = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"


def framed(content: Any, reason: str = "stop", **choice: Any) -> Answer:
    body = {
        "choices": [{"message": {"content": content, **choice.pop("message", {})}, "finish_reason": reason, **choice}]
    }
    return Answer(raw=json.dumps({**body, "usage": {"prompt_tokens": 100, "completion_tokens": 10}}))


def first(**chances: float) -> dict[str, Any]:
    top = [{"token": token, "logprob": number} for token, number in chances.items()]
    return {"content": [{"token": next(iter(chances)), "top_logprobs": top}]}


TEXTS = (
    "Rating: [[7]]", "Rating: [[85]]", "Rating: [[0]]", "[[8/10]]", "<think>[[2]]</think>[[9]]", "[[2]]</think>[[9]]",
    "<think>[[2]]", "as [3] says, x[0]: [[9]", "**[[9.5]]**", "[[7]] or [[3]]", "[[" + "1" * 200_000, "[" * 200_000,
    "]" * 200_000, "[[1" * 50_000, "\x00\ud800", " ", "", RANKING, RANKING.replace("1}", "{[1]: 1}}"), "[{'model': {[1]}}]",
    RANKING.replace("1}", "True}"), RANKING[:-1], f"```\n{RANKING}\n```", RANKING + RANKING, f"<think>{RANKING}</think>no",
    "[" + "-" * 9000 + "1]", "[" + "1+" * 9000 + "1]", "[{'a':" * 3000 + "1" + "}]" * 3000, "[" + "9" * 5000 + "]",
    '{"ratings": []}', '{"ratings": [{"answer": [1]}]}', "{" * 90_000, '{"ratings": NaN}', "<think>" * 9000, "</think>" * 9000,
    "m", "M", "null", "I cannot judge this.", "[[nan]]", "[[-1]]", "[[１]]",
)  # fmt: skip
FRAMES = (
    framed(None), framed("[[7]]", "content_filter"), framed([{"type": "text", "text": "[[7]]"}]),
    framed(None, message={"refusal": "no"}), framed("M", logprobs=first(M=800.0, m=-1.0)),
    framed("M", logprobs=first(M=float("nan"), m=-1.0)), framed("<think>", logprobs=first(**{"<think>": -0.0, "M": -18.0})),
    framed("M", logprobs=first(M=-0.2, m=-1.7)), Answer(422, "[[7]]"), Answer(raw='{"choices": [[]]}'),
)  # fmt: skip
ODD = (*map(framed, TEXTS), *FRAMES)


def commands(folder: Path) -> dict[str, list[str]]:
    """The three judges over as many things as there are odd replies."""
    numbers = range(len(ODD))
    rows = {
        "prompt.txt": TEMPLATE,
        "baseline.json": json.dumps([{"instruction": f"item {n}.", "output": "b"} for n in numbers]),
        "mine.json": json.dumps([{"instruction": f"item {n}.", "output": "m", "generator": "mine"} for n in numbers]),
        "recorded.jsonl": "".join(
            json.dumps({
                "question_id": 1, "turn": 1, "model": "old", "judge": ["g", "single-v1"], "user_prompt": f"item {n}.",
                "score": 5,
            }) + "\n" for n in numbers
        ),
        "answers.jsonl": "".join(
            json.dumps({"instruction": f"item {n}.", "completions": [{"response": "a"}, {"response": "b"}]}) + "\n"
            for n in range(len(ODD) // 5 + 2)
        ),
    }  # fmt: skip
    for name, content in rows.items():
        (folder / name).write_text(content)
    bench = write_bench(folder / "bench")
    pair = f"evaluate alpaca-eval --outputs {folder}/mine.json --baseline {folder}/baseline.json"
    pair += f" --judge_prompt {folder}/prompt.txt"
    return {
        "alpaca": pair.split(),
        "weighted": [*pair.split(), "--version", "2"],
        "mt-bench": f"evaluate mt-bench --judgments {folder}/recorded.jsonl --questions {bench}".split(),
        "rate": f"feedback rate --data {folder}/answers.jsonl".split(),
    }


class Judge:
    """Gives each request its odd reply, whenever it comes; interrupts the command at some of them."""

    def __init__(self, interrupt_at: tuple[int, ...] = ()):
        self.kept: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}
        self._interrupt_at = interrupt_at

    def __call__(self, body: dict[str, Any], number: int) -> Answer:
        text = json.dumps(body["messages"])
        answer = self._of(body["messages"])
        if number in self._interrupt_at:
            _thread.interrupt_main()
            time.sleep(0.2)
        elif answer.raw is not None and '"choices": [[' not in answer.raw:
            self.kept[text] += 1
        return answer

    def _of(self, messages: list[dict[str, str]]) -> Answer:
        content = "".join(message["content"] for message in messages)
        number = int(content.partition("item ")[2].partition(".")[0])
        if "Reply with one JSON object" not in content:
            return ODD[number]
        if number < 2:
            entries = [{"answer": place, "rationale": "because", "rating": 3} for place in (1, 2)]
            return framed(json.dumps({"ratings": entries}))
        return ODD[sum(content.encode()) % len(ODD)]


def run(words: list[str], url: str, out: Path, *more: str) -> int:
    address = f"wise@{url}" if words[0] == "feedback" else url
    try:
        main(
            [
                *words,
                "--judge",
                address,
                "--output",
                str(out),
                "--endpoint.backoff",
                "0.01",
                "--endpoint.max_retries",
                "1",
                *more,
            ]
        )
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def result(out: Path) -> dict[str, Any]:
    """What a command left, without times and journals."""
    files = [file for file in sorted(out.rglob("*.json*")) if file.is_file()]
    found = {}
    for file in files:
        rows = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        found[str(file.relative_to(out))] = [json.loads(row) for row in rows]
        for row in found[str(file.relative_to(out))]:
            if isinstance(row, dict):
                row.pop("tstamp", None)
    return found


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("name", ["alpaca", "weighted", "mt-bench", "rate"])
def test_odd_replies_interrupted_and_resumed(tmp_path: Path, name: str) -> None:
    """The result is that of a run without interruption, no reply that was kept is asked for again, and the limit holds."""
    words = commands(tmp_path)[name]
    whole, broken = Judge(), Judge((6, 17, 31))
    with judge_at(whole) as (url, _):
        assert run(words, url, tmp_path / "out") == 0
    expected = result(tmp_path / "out")
    assert expected
    (tmp_path / "out").rename(tmp_path / "first")
    one = ("--endpoint.max_concurrency", "1")
    with judge_at(broken) as (url, asked):
        codes = [run(words, url, tmp_path / "out", *one) for _ in range(3)]
        assert codes == [130, 130, 130]
        assert run(words, url, tmp_path / "out", *one, "--endpoint.max_total_tokens", "4500") == 2
        assert sum(broken.kept.values()) * 110 <= 4500
        assert run(words, url, tmp_path / "out", *one) == 0
        assert set(broken.kept.values()) == {1}
        before = len(asked)
        assert run(words, url, tmp_path / "out", *one) == 0
        repeated = {json.dumps(body["messages"]) for body in asked[before:]}
        assert repeated.isdisjoint(broken.kept)  # only requests that the endpoint refused
    assert result(tmp_path / "out") == expected


@pytest.mark.parametrize("read", [parse_rating, parse_ranking])
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_odd_texts_are_read_in_linear_time(read: Callable[[str], float]) -> None:
    """Each is a rating, or none."""
    long = ("[[" * 100_000 + "1" * 9, "[1." + "0" * 200_000, "[1]" * 60_000, "<" * 200_000, " " * 200_000 + "x")
    for text in (*TEXTS, *long):
        begun = time.perf_counter()
        value = read(text)
        assert value == UNRATED or math.isnan(value) or 1 <= value <= 10, text[:50]
        assert time.perf_counter() - begun < 0.5, text[:50]


def test_several_ratings_are_seen() -> None:
    assert parse_ratings("[[7]] or rather [[3]]") == [7, 3]
    assert parse_ratings("<think>[[2]]</think> [[7]], so [[7]]") == [7, 7]
    assert mean_scores(BENCH, [(1, 1, 85.0), (1, 2, 0.0), (1, 1, float("nan"))]).unrated == 3


def test_ratings_that_are_odd_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = commands(tmp_path)["mt-bench"]
    with judge_at(Judge()) as (url, _):
        assert run(words, url, tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "judgments have no rating from 1 to 10" in said
    assert "judgments have several different ratings" in said
    assert "judges 1 turns more than once (question.turn 1.1)" in said


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (ChatResponse("M", first_token_logprobs={"M": 800.0, "m": -1.0}), math.nan),
        (ChatResponse("M", first_token_logprobs={"M": 1e308}), math.nan),
        (ChatResponse("M", first_token_logprobs={"M": 0.5, "m": -1.0}), math.nan),
        (ChatResponse("M", first_token_logprobs={"M": 1e-6, "m": -14.0}), 2.0),
        (ChatResponse("m", first_token_logprobs={"x": math.nan, "m": -1.0}), math.nan),
        (ChatResponse("M", first_token_logprobs={"M": math.inf}), math.nan),
        (ChatResponse("<think>", first_token_logprobs={"<think>": -0.0, "M": -18.0, "m": -19.0}), math.nan),
        (ChatResponse("<think>x</think>M", first_token_logprobs={"<think>": -0.3, "M": -1.4}), 2.0),
        (ChatResponse("x</think>\n'm'"), 1.0),
        (ChatResponse("Okay", first_token_logprobs={"Okay": -0.0, "M": -14.0, "m": -12.0}), math.nan),
    ],
)
def test_choices_of_odd_log_probs(said: ChatResponse, verdict: float) -> None:
    assert parse_choice(said) == pytest.approx(verdict, nan_ok=True, abs=1e-3)
