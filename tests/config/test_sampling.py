"""Sampling parameters: one set of bounds for every entrance."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from zephyr_jax.config.benchmarks import AlpacaEvalConfig
from zephyr_jax.config.models import ChatConfig, GenerateConfig, ServeConfig
from zephyr_jax.config.sampling import MAX_STOP_IDS, SamplingParams, check_stop_ids
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.config.validation import validate
from zephyr_jax.errors import InputError
from zephyr_jax.serve.serve import open_server

OUT_OF_BOUNDS: dict[str, list[Any]] = {
    "temperature": [-1, 101, math.nan, math.inf, "1", True, None, 10**400],
    "top_p": [0, -0.1, 1.01, math.nan, -math.inf, "0.5", []],
    "top_k": [-1, 2**31, 10**30, 1.0, "5", True, None],
    "seed": [(-1,), (2**63,), (), (1, -1), (1.5,), (True,), ("1",)],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_BOUNDS.items() for value in values]
)
def test_values_out_of_bounds_are_refused(name: str, value: Any) -> None:
    """Each message names the parameter and its bounds."""
    with pytest.raises(InputError, match=f"^{name} is .*xpected"):
        SamplingParams(**{name: value})


def test_values_near_the_bounds_are_normalized() -> None:
    """A temperature that float32 cannot divide by is greedy, and a nucleus is never smaller than its likeliest token."""
    params = SamplingParams(1e-320, 5e-324, 2**31 - 1, (2**63 - 1, 0))
    assert (params.temperature, params.top_k, params.seed) == (0.0, 2**31 - 1, (2**63 - 1, 0))
    assert 0 < params.top_p < 1e-5
    assert SamplingParams(-0.0).temperature == 0.0


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1e9}, {"temperature": math.nan}, {"top_k": 2**31}, {"seed": -1}, {"seed": 2**63}, {"top_p": 1.5}],
)
def test_commands_have_these_bounds(settings: dict[str, Any]) -> None:
    """`generate`, `chat` and `evaluate alpaca-eval` refuse them before a model is looked for."""
    model = ModelOptions(path="somewhere")
    configs: list[Any] = [GenerateConfig(model=model, prompts=("x",), **({"temperature": 1.0} | settings))]
    configs.append(ChatConfig(model=model, **settings))
    if settings.keys() <= {"temperature", "top_p"}:
        configs.append(AlpacaEvalConfig(model=model, **settings))
    for config in configs:
        with pytest.raises(InputError, match=f"`{next(iter(settings))}`: expected"):
            validate(config)


@pytest.mark.parametrize(
    "ids", [2**40, -1, 100, [[1]], [1, None], "2", ["2"], 1.0, True, {"a": 1}, list(range(MAX_STOP_IDS + 1))]
)
def test_end_token_ids_are_checked(ids: Any) -> None:
    """As they stand in a generation_config.json of a model with 100 tokens."""
    with pytest.raises(InputError, match=r"config\.json: expected .*end token ids"):
        check_stop_ids(ids, 100, "config.json")


def test_end_token_ids_are_sorted_and_unique() -> None:
    """None, one, or several."""
    assert check_stop_ids(None, 100, "x") == ()
    assert check_stop_ids(7, 100, "x") == (7,)
    assert check_stop_ids([9, 2, 9], 100, "x") == (2, 9)


def test_a_generation_config_with_unusable_ids_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """`serve` does not start on it."""
    for value in (2**40, [[1]], list(range(100)), -5):
        folder = Path(shutil.copytree(tiny_model, tmp_path / "model", dirs_exist_ok=True))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        with pytest.raises(InputError, match="end token ids"):
            open_server(ServeConfig(model=ModelOptions(path=str(folder))))


@pytest.mark.parametrize(("rows", "context"), [(8, 2**31 - 1), (2**31 - 1, 128)])
def test_a_cache_larger_than_memory_is_refused(tiny_model: Path, rows: int, context: int) -> None:
    """Before it is allocated."""
    folder = Path(shutil.copytree(tiny_model, tiny_model.parent / f"wide-{rows}", dirs_exist_ok=True))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 2**31 - 1, "sliding_window": None})
    )
    with pytest.raises(InputError, match="context_length or max_new_tokens"):
        open_server(ServeConfig(model=ModelOptions(path=str(folder)), max_concurrency=rows, context_length=context))
