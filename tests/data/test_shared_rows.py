"""Rows and folders after public bug reports, replayed: what is read, what counts, and what is refused by name."""

import json
import os
import runpy
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.examples import Examples, load_examples
from zephyr_jax.data.sources import open_rows
from zephyr_jax.errors import InputError
from zephyr_jax.methods.registry import method_of_rows

pytestmark = pytest.mark.shared
FIELDS, COLUMNS, STRAY, FOLDERS, NAMES, SHAPES = (
    "05-message-fields-ignored", "06-columns-ignored", "08-unneeded-columns-differ", "09-folder-layouts",
    "19-not-what-its-name-says", "22-unsupported-shapes",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache for every test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    tokenizer = load_tokenizer(str(tiny_model))
    return ChatTokenizer(tokenizer, load_template("zephyr-no-system", tokenizer))


def load(tokenizer: ChatTokenizer, path: Path, length: int = 256) -> Examples:
    data = DataOptions(path=str(path), max_length=length, max_prompt_length=64, row_length=2 * length)
    return load_examples(method_of_rows(data).examples, data, tokenizer, data.path, "train")


def case(shared: Path, folder: str, name: str) -> Path:
    path = shared / "cases" / "data" / folder / name
    if not path.exists():
        pytest.skip("this case is not here")
    return path


COUNTS = {
    (FIELDS, "loss0.jsonl"): 2,
    (FIELDS, "s15_weight0.jsonl"): 1,
    (FIELDS, "s16_train_false.jsonl"): 1,
    (FIELDS, "trainable.jsonl"): 2,
    (COLUMNS, "d06_system_col_prompt.jsonl"): 1,
    (COLUMNS, "d11_history_col.jsonl"): 1,
    (COLUMNS, "sys_col_sft.jsonl"): 2,
    (STRAY, "f09_schema_drift"): 2,
    (STRAY, "g03_parts_extra_column"): 6,
    (STRAY, "g04_parts_extra_column_jsonl"): 6,
    (STRAY, "g05_parts_id_types"): 6,
    (FOLDERS, "backup_joined"): 1,
    (FOLDERS, "f03_hubclone"): 6,
    (FOLDERS, "f05_mixed_ext"): 6,
    (FOLDERS, "g06_empty_part"): 3,
    (FOLDERS, "g07_spark"): 6,
    (NAMES, "g14_gz_named.jsonl"): 1,
    (NAMES, "g22_jsonl_is_list.jsonl"): 6,
    (SHAPES, "d05_orca.jsonl"): 1,
    (SHAPES, "d07_hh.jsonl"): 1,
    (SHAPES, "d09_lf_conversations.jsonl"): 1,
    (SHAPES, "d15_multi_turn_answers.jsonl"): 2,
    (SHAPES, "s01_sharegpt.jsonl"): 1,
    (SHAPES, "s02_conv_rolecontent.jsonl"): 1,
    (SHAPES, "s03_alpaca.jsonl"): 1,
    (SHAPES, "s04_prompt_completion_lists.jsonl"): 1,
    (SHAPES, "s05_prompt_completion_str.jsonl"): 1,
    (SHAPES, "s07_content_parts.jsonl"): 1,
    (SHAPES, "s08_content_mixed_str_parts.jsonl"): 2,
    (SHAPES, "s19_developer_role.jsonl"): 7,
    (SHAPES, "s21_role_human_gpt.jsonl"): 7,
    (SHAPES, "s42_messages_json_string.jsonl"): 1,
    (SHAPES, "s52_ndjson.ndjson"): 6,
    (SHAPES, "s53_upper_ext.JSONL"): 6,
    (SHAPES, "s54_gz.jsonl.gz"): 6,
    (SHAPES, "s55.csv"): 6,
    (SHAPES, "s56.arrow"): 6,
    (SHAPES, "s62_struct_of_lists.parquet"): 1,
}
"""What is read whole -> its examples."""


@pytest.mark.parametrize(("folder", "name"), COUNTS)
def test_what_is_read_whole(shared: Path, tokenizer: ChatTokenizer, folder: str, name: str) -> None:
    examples = load(tokenizer, case(shared, folder, name))
    assert (len(examples), examples.skipped) == (COUNTS[folder, name], {})
    if folder == FIELDS:
        assert not any(example.targets.sum() > 6 for (example,) in (examples[i] for i in range(len(examples)))), (
            "only `Four.`"
        )


REASONS = {
    (FIELDS, "s14_toolcall_with_content.jsonl"): "`tool_calls`",
    (FIELDS, "s17_reasoning_content.jsonl"): "`reasoning_content`",
    (FIELDS, "s18_thinking_field.jsonl"): "`thinking`",
    (COLUMNS, "d10_prompt_mismatch.jsonl"): "`prompt` contradicts",
    (COLUMNS, "d25_flipped_scores.jsonl"): "`score_chosen` is below",
    (COLUMNS, "images.jsonl"): "`images`",
    (COLUMNS, "tools_col.jsonl"): "`tool_calls`",
    (NAMES, "g12_lfs_pointer.parquet"): "git-LFS pointer",
    (NAMES, "g13_lfs_pointer.jsonl"): "git-LFS pointer",
    (NAMES, "s32_utf16.jsonl"): "is UTF-16",
    (SHAPES, "d17_kto.jsonl"): "KTO",
    (SHAPES, "s13_tool_role.jsonl"): "`tool_calls`",
}
"""What is refused, whole or row by row -> words of the reason."""


@pytest.mark.parametrize(("folder", "name"), REASONS)
def test_what_is_refused_by_name(shared: Path, tokenizer: ChatTokenizer, folder: str, name: str) -> None:
    path = case(shared, folder, name)
    try:
        reasons = " ".join(load(tokenizer, path).skipped)
    except InputError as error:
        reasons = str(error)
    assert REASONS[folder, name] in reasons


def test_a_column_that_changes_late(shared: Path, tmp_path: Path) -> None:
    """Law: 12 MB of rows whose last one differs in a column that nothing needs, or in the type of its id, are all read."""
    script = case(shared, STRAY, "late.py")
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        runpy.run_path(str(script))
    finally:
        os.chdir(here)
    for path in sorted(tmp_path.glob("*.jsonl")):
        rows = open_rows(str(path), "train")
        last = json.loads(path.read_text().splitlines()[-1])
        assert len(rows) == 6001
        assert rows[6000] == {name: value for name, value in last.items() if name in ("id", "messages")}
