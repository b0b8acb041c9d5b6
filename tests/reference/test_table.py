"""The reference table: equal to computing on the fly, resumable, and never mixed up."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.conftest import write_rows
from tests.methods.small import dpo_config
from tests.models import Loaded, load, whole_rows
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.examples import Examples, load_examples
from zephyr_jax.data.segments import PREFERENCE
from zephyr_jax.demo.corpus import preferences
from zephyr_jax.errors import InputError
from zephyr_jax.objective.logprob import Parameters, sequence_logprob
from zephyr_jax.reference import score as compute
from zephyr_jax.reference.fill import reference
from zephyr_jax.reference.score import Scorer, fill
from zephyr_jax.reference.table import Identity, ReferenceTable, require_complete

DATA = DataOptions(max_length=256, max_prompt_length=64, row_length=512)
IDENTITY = Identity("weights", "tokenizer", "rule", "float32", 1)


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Loaded:
    return load(tiny_model, devices=8, data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def pairs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    rows = write_rows(tmp_path_factory.mktemp("rows") / "pairs.jsonl", list(preferences(0, 21, "train")))
    tokenizer = load_tokenizer(str(tiny_model))
    return load_examples(
        PREFERENCE, DATA, ChatTokenizer(tokenizer, load_template("zephyr", tokenizer)), str(rows), "train"
    )


def scorer(loaded: Loaded, parameters: Parameters, row_length: int = DATA.row_length) -> Scorer:
    return Scorer(
        model=replace(loaded.model, logprob_chunk=64),
        parameters=parameters,
        data=replace(DATA, row_length=row_length),
        rules=loaded.rules,
        num_rows=4,
    )


def run(table: ReferenceTable, pairs: Examples, loaded: Loaded) -> tuple[int, int]:
    return fill(table, pairs, scorer(loaded, loaded.parameters), table.missing(pairs.keys()), lambda done, total: None)


def test_the_table_equals_scoring_each_answer_alone(tmp_path: Path, pairs: Examples, loaded: Loaded) -> None:
    """Packed and sharded against one unpacked row at a time."""
    table = ReferenceTable(tmp_path, IDENTITY)
    assert run(table, pairs, loaded) == (21, 0)
    stored = ReferenceTable(tmp_path, IDENTITY).look_up(pairs.keys())
    for index in (0, 7, 20):
        for side, segment in enumerate(pairs[index]):
            tokens = np.zeros((4, 256), np.int32)
            tokens[:, : len(segment)] = segment.tokens
            batch = whole_rows(tokens)
            targets = np.zeros((4, 256), bool)
            targets[:, : len(segment)] = segment.targets
            found = sequence_logprob(
                loaded.model.definition, loaded.parameters, batch._replace(targets=targets), segments=1, chunk=64
            )
            np.testing.assert_allclose(stored[index, side], found.sum[0, 0], rtol=1e-5)


def test_a_killed_pass_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pairs: Examples, loaded: Loaded
) -> None:
    """Only what is missing is computed; the content equals that of an uninterrupted pass."""
    whole = ReferenceTable(tmp_path / "whole", IDENTITY)
    run(whole, pairs, loaded)
    monkeypatch.setattr(compute, "_BATCHES_PER_SHARD", 1)
    table = ReferenceTable(tmp_path / "killed", IDENTITY)

    def die(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(table, pairs, scorer(loaded, loaded.parameters, row_length=256), table.missing(pairs.keys()), die)
    again = ReferenceTable(tmp_path / "killed", IDENTITY)
    computed, reused = run(again, pairs, loaded)
    assert computed + reused == 21
    assert 0 < reused < 21
    np.testing.assert_allclose(again.look_up(pairs.keys()), whole.look_up(pairs.keys()), rtol=1e-6)
    assert run(ReferenceTable(tmp_path / "killed", IDENTITY), pairs, loaded) == (0, 21)


def test_a_mismatch_shows_both_values_and_the_command(tmp_path: Path, pairs: Examples, loaded: Loaded) -> None:
    run(ReferenceTable(tmp_path, IDENTITY), pairs, loaded)
    other = replace(IDENTITY, weights="other weights")
    with pytest.raises(
        InputError, match="weights: table has 'weights', this run has 'other weights'.*zephyr-jax reference x"
    ):
        require_complete(tmp_path, ReferenceTable(tmp_path, other), pairs.keys(), pairs.ids(), "zephyr-jax reference x")


def test_an_absent_pair_is_named(tmp_path: Path, pairs: Examples, loaded: Loaded) -> None:
    run(ReferenceTable(tmp_path, IDENTITY), pairs.select(np.arange(20)), loaded)
    with pytest.raises(InputError, match=f"lacks 1 of 21 pairs .*{pairs.ids()[20][:20]}"):
        require_complete(tmp_path, ReferenceTable(tmp_path, IDENTITY), pairs.keys(), pairs.ids(), "command")


def test_values_that_are_not_finite_are_never_stored(tmp_path: Path, pairs: Examples, loaded: Loaded) -> None:
    table = ReferenceTable(tmp_path, IDENTITY)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, loaded.parameters)
    with pytest.raises(InputError, match="finite"):
        fill(table, pairs, scorer(loaded, broken), table.missing(pairs.keys()), lambda done, total: None)
    assert not list(tmp_path.rglob("*.parquet"))


def test_order_and_subset_are_no_part_of_the_table(tmp_path: Path, tiny_model: Path) -> None:
    """Rows turned round and halved reuse everything; one new row is computed alone; another template computes all again."""
    rows = list(preferences(0, 13, "train"))
    files = {
        "all": rows[:12], "half, turned round": rows[5::-1], "one more": rows,
    }  # fmt: skip
    done = {}
    for name, part in files.items():
        path = write_rows(tmp_path / f"{name}.jsonl", part)
        filled = reference(dpo_config(tiny_model, path, tmp_path / "run", tmp_path / "table"))
        done[name] = (filled.computed, filled.reused)
    assert done == {"all": (12, 0), "half, turned round": (0, 6), "one more": (1, 12)}
    config = dpo_config(tiny_model, tmp_path / "all.jsonl", tmp_path / "run", tmp_path / "table")
    other = reference(replace(config, data=replace(config.data, chat_template="zephyr-no-system")))
    assert (other.computed, other.reused) == (12, 0)
