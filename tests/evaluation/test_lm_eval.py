"""lm-eval with our adapter says what lm-eval says with its own Hugging Face backend (golden/lm_eval)."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from zephyr_jax.cli import main
from zephyr_jax.config import ModelOptions
from zephyr_jax.recipes.demo import BASE
from zephyr_jax.verbs.benchmarks import LmEvalConfig

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
            f"evaluate lm-eval --model {BASE} --model.compute_dtype float32 --tasks {tasks} --include {FOLDER} --rows 8 "
            f"--samples True --output {output}".split()
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


def test_what_has_no_context_disturbs_nobody() -> None:
    """An empty context is BOS; a continuation of nothing is refused; each request scores as it does alone."""
    from zephyr_jax.recipes.lm_eval import _adapter

    options = ModelOptions(path=str(BASE), compute_dtype="float32")
    lm = _adapter(LmEvalConfig(model=options, tasks=("x",)))
    first, second = (
        lm.tok_encode(text, add_special_tokens=False) for text in ("One day, a fox", "It was a happy ending.")
    )
    asked = [(("", "x"), [5, 9], first), (("", "y"), [], second), (("", "z"), [7], second[:3])]
    together = lm._loglikelihood_tokens(asked)
    for one, (alone, _) in zip(asked, together, strict=True):
        assert lm._loglikelihood_tokens([one])[0][0] == pytest.approx(alone, abs=1e-3)
    with pytest.raises(ValueError, match="there must be one"):
        lm._loglikelihood_tokens([(("a", ""), [5], [])])
