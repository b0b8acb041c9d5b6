"""lm-eval with our adapter says what lm-eval says with its own Hugging Face backend (golden/lm_eval)."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from zephyr_jax.cli import main
from zephyr_jax.config.benchmarks import LmEvalConfig
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.demo.demo import BASE
from zephyr_jax.errors import InputError
from zephyr_jax.evaluate.lm_eval import _adapter

FOLDER = Path(__file__).parents[1] / "golden" / "lm_eval"
pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval and its tables


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results and samples of all tasks by the verb."""
    output = tmp_path_factory.mktemp("lm-eval") / "results.json"
    tasks = "zephyr_choice zephyr_end zephyr_whole zephyr_text"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(FOLDER)
        main(
            f"evaluate lm-eval --model {BASE} --model.compute_dtype float32 --tasks {tasks} --include_path {FOLDER} "
            f"--batch_size 8 --log_samples --output {output}".split()
        )
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((FOLDER / "golden.json").read_text())


def _in_order(found: dict[str, Any], task: str) -> list[Any]:
    return [row["filtered_resps"] for row in sorted(found["samples"][task], key=lambda row: row["doc_id"])]


@pytest.mark.parametrize("task", ["zephyr_choice", "zephyr_end"])
def test_log_likelihoods_are_theirs(found: dict[str, Any], golden: dict[str, Any], task: str) -> None:
    ours, theirs = _in_order(found, task), golden["samples"][task]
    assert len(ours) == len(theirs) == 24
    for mine, their in zip(ours, theirs, strict=True):
        for (value, greedy), (expected, best) in zip(mine, their, strict=True):
            assert float(value) == pytest.approx(float(expected), abs=1e-3)
            assert greedy == best
    assert len({greedy for row in theirs for _, greedy in row}) == (2 if task == "zephyr_end" else 1)


def test_whole_texts_are_scored_as_theirs(found: dict[str, Any], golden: dict[str, Any]) -> None:
    for mine, their in zip(_in_order(found, "zephyr_whole"), golden["samples"]["zephyr_whole"], strict=True):
        assert mine == pytest.approx(their, abs=1e-3)


def test_texts_are_theirs(found: dict[str, Any], golden: dict[str, Any]) -> None:
    assert _in_order(found, "zephyr_text") == golden["samples"]["zephyr_text"]


@pytest.mark.parametrize("task", ["zephyr_choice", "zephyr_end", "zephyr_whole", "zephyr_text"])
def test_metrics_are_theirs(found: dict[str, Any], golden: dict[str, Any], task: str) -> None:
    numbers = {
        name: value
        for name, value in golden["results"][task].items()
        if isinstance(value, float) and "stderr" not in name and not math.isnan(value)
    }
    assert numbers
    for name, value in numbers.items():
        assert found["results"][task][name] == pytest.approx(value, rel=1e-4), name


def test_what_has_no_context_changes_nothing() -> None:
    """An empty context is BOS; a continuation of nothing is refused; each request scores as it does alone."""
    options = ModelOptions(path=str(BASE), compute_dtype="float32")
    lm = _adapter(LmEvalConfig(model=options, tasks=("x",)))
    first, second = (
        lm.tok_encode(text, add_special_tokens=False) for text in ("One day, a fox", "It was a happy ending.")
    )
    asked = [(("", "x"), [5, 9], first), (("", "y"), [], second), (("", "z"), [7], second[:3])]
    together = lm._loglikelihood_tokens(asked)
    for one, (alone, _) in zip(asked, together, strict=True):
        assert lm._loglikelihood_tokens([one])[0][0] == pytest.approx(alone, abs=1e-3)
    with pytest.raises(ValueError, match="expected a continuation of 1 to"):
        lm._loglikelihood_tokens([(("a", ""), [5], [])])


def questions_asked(output: Path, *words: str) -> list[tuple[Any, Any]]:
    """Questions of one task with their log-likelihoods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(FOLDER)
        main(
            f"evaluate lm-eval --model {BASE} --model.compute_dtype float32 --tasks zephyr_end --include_path {FOLDER} "
            f"--log_samples --output {output} --limit 3".split()
            + list(words)
        )
    samples = json.loads(output.read_text())["samples"]["zephyr_end"]
    return [(row["arguments"], row["filtered_resps"]) for row in samples]


@pytest.fixture(scope="module")
def by_default(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Any]]:
    """What is asked with every setting at its default."""
    return questions_asked(tmp_path_factory.mktemp("lm_eval") / "default.json")


@pytest.mark.parametrize("other", ["--num_fewshot 1", "--limit 2", "--chat_template zephyr", "--context_length 6"])
def test_settings_change_what_is_asked(by_default: list[tuple[Any, Any]], tmp_path: Path, other: str) -> None:
    """Law: with any one setting changed, the same task gives other questions or other log-likelihoods."""
    assert questions_asked(tmp_path / "other.json", *other.split()) != by_default


def write_task(folder: Path, name: str, longest: int) -> None:
    """A task of three questions, one of them far longer than a small context."""
    rows = [{"q": "one day " * count, "a": "x"} for count in (2, 3, 400)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/rows.jsonl\ntest_split: test\n"
        'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\ngeneration_kwargs:\n  until: ["</s>"]\n'
        f"  max_gen_toks: {longest}\nmetric_list:\n  - metric: exact_match\n"
    )


def test_questions_that_lose_their_beginnings_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Per task, in what is printed and in the results."""
    write_task(tmp_path, "long_question", 4)
    words = f"--tasks long_question --include_path {tmp_path} --context_length 32 --output {tmp_path}/r.json".split()
    main(["evaluate", "lm-eval", "--model", str(BASE), "--model.compute_dtype", "float32", *words])
    assert "long_question: 1 of 3 requests were longer than the context of 32 tokens" in capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())["truncated"]["long_question"]
    assert (found["asked"], found["cut"]) == (3, 1)
    assert found["tokens"] > 300


def test_an_answer_that_leaves_no_room_for_the_question_is_refused() -> None:
    """As lm-eval's own backend does."""
    options = ModelOptions(path=str(BASE), compute_dtype="float32")
    lm = _adapter(LmEvalConfig(model=options, tasks=("x",), context_length=32))
    assert len(lm._generation_request("one day " * 40, {"max_gen_toks": 31}, 0)[0].prompt) == 1
    assert lm.truncated.cut == 1
    for settings in ({"max_gen_toks": 32}, {"max_gen_toks": 2048}, {"max_gen_toks": 0}, {}):
        with pytest.raises(InputError, match="max_gen_toks .* the context of 32 tokens"):
            lm._generation_request("one day", settings, 0)
