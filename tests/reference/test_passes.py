"""Passes of the verb: what never invalidates a table, what does and why it is said, and `--verify_pairs`."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import flip_last_byte, write_rows
from tests.gcs import Gcs
from tests.methods.small import dpo_config
from zephyr_jax.checkpoint.weights import load_weights
from zephyr_jax.cli import main
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.training import DpoConfig
from zephyr_jax.config.training_sections import BatchOptions, DpoOptions, OptimizerOptions
from zephyr_jax.demo.corpus import preferences
from zephyr_jax.errors import InputError
from zephyr_jax.reference.fill import PassResult, reference, verify
from zephyr_jax.reference.index import merge
from zephyr_jax.reference.shards import read_shard, write_shard
from zephyr_jax.reference.table import Identity, ReferenceTable
from zephyr_jax.storage.files import open_path

PAIRS = 12


@pytest.fixture(scope="module")
def filled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DpoConfig, PassResult]:
    """A card whose table is filled."""
    folder = tmp_path_factory.mktemp("passes")
    rows = write_rows(folder / "pairs.jsonl", list(preferences(0, PAIRS, "train")))
    config = dpo_config(tiny_model, rows, folder / "run", folder / "table")
    return config, reference(config)


def test_settings_of_training_never_invalidate(filled: tuple[DpoConfig, PassResult]) -> None:
    """Law: with another beta, loss, learning rate, batch, seed or limit, nothing is computed."""
    config, first = filled
    assert (first.computed, first.reused) == (PAIRS, 0)
    changes = [
        {"dpo": DpoOptions(beta=0.7)},
        {"dpo": DpoOptions(loss="ipo")},
        {"optimizer": OptimizerOptions(learning_rate=1.0)},
        {"batch": BatchOptions(examples=4, microbatch_rows=8)},
        {"seed": 9, "data": replace(config.data, limit=5)},
    ]
    for change in changes:
        again = reference(replace(config, **change))
        assert (again.computed, again.folder) == (0, first.folder), change


def test_a_table_is_the_same_with_and_without_shared_prompts(
    filled: tuple[DpoConfig, PassResult], tmp_path: Path
) -> None:
    """Law: a table's identity does not hold the layout; both have the same keys and counts, and sums equal to 1e-6."""
    config, first = filled
    plain = replace(config, data=replace(config.data, share_prompts=False))
    assert (reference(plain).computed, reference(plain).folder) == (0, first.folder)
    other = reference(replace(plain, reference=str(tmp_path)))
    assert (other.computed, other.folder.name) == (PAIRS, first.folder.name)
    tables = [merge([read_shard(path) for path in one.folder.glob("shard-*")]) for one in (first, other)]
    assert tables[0].keys.tolist() == tables[1].keys.tolist()
    assert tables[0].counts.tolist() == tables[1].counts.tolist()
    np.testing.assert_allclose(tables[0].sums, tables[1].sums, rtol=1e-6)


def test_a_new_adapter_of_singular_vectors_has_a_table_for_each_seed(
    filled: tuple[DpoConfig, PassResult], tmp_path: Path
) -> None:
    """PiSSA draws a random subspace, so the weights that are scored depend on the seed; a repeated pass computes nothing."""
    config, _ = filled
    config = replace(config, reference=str(tmp_path), data=replace(config.data, limit=4))
    config = replace(config, adapter=AdapterOptions(rank=4, init="pissa"))
    first, other, again = (reference(replace(config, seed=seed)) for seed in (0, 1, 1))
    assert first.folder != other.folder and first.computed == other.computed > 0
    assert again.folder == other.folder and again.computed == 0


def test_another_template_says_why_all_is_computed(
    filled: tuple[DpoConfig, PassResult], caplog: pytest.LogCaptureFixture
) -> None:
    """Law: one line names the field that differs, with both values."""
    config, first = filled
    caplog.set_level("INFO")
    other = reference(replace(config, data=replace(config.data, chat_template="zephyr-no-system")))
    reason = r"tokenizer: table has '\w{32}', this run has '\w{32}': computing all 12 pairs"
    assert [bool(re.fullmatch(reason, message)) for message in caplog.messages].count(True) == 1
    assert (other.computed, other.reused) == (PAIRS, 0)
    assert other.folder != first.folder
    caplog.clear()
    reference(config)
    assert "computing all" not in caplog.text


def test_a_full_table_needs_no_weights(filled: tuple[DpoConfig, PassResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: weights whose fingerprint is known, with all pairs there, are not read, nor after their date changed; others are."""
    config, first = filled
    again = reference(config)
    with monkeypatch.context() as patch:
        patch.setattr("zephyr_jax.checkpoint.opened.load_weights", lambda *_: pytest.fail("weights were read"))
        assert (reference(config).computed, reference(config).reused) == (0, again.reused)
    [weights] = Path(config.model.path).glob("*.safetensors")
    os.utime(weights)
    read = []
    monkeypatch.setattr(
        "zephyr_jax.checkpoint.opened.load_weights", lambda *words: read.append(1) or load_weights(*words)
    )
    assert reference(config).folder == first.folder
    assert not read
    whole = weights.read_bytes()
    try:
        flip_last_byte(weights)
        assert reference(config).folder != first.folder
        assert read
    finally:
        weights.write_bytes(whole)


def test_verify_accepts_a_sound_table(filled: tuple[DpoConfig, PassResult]) -> None:
    """Law: pairs that are packed with other pairs have the sums of the table; nothing is written."""
    config, first = filled
    before = sorted(path.name for path in first.folder.iterdir())
    summary = verify(config, 5)
    assert summary.startswith("5 of 12 pairs recomputed")
    assert summary.endswith(f"1 shards of {first.folder} verified.")
    assert sorted(path.name for path in first.folder.iterdir()) == before


def test_verify_rejects_other_values_and_names_the_pair(filled: tuple[DpoConfig, PassResult]) -> None:
    """Law: one sum beyond the tolerance is found, though its shard has a valid digest."""
    config, first = filled
    (shard,) = first.folder.glob("shard-*")
    content, index = shard.read_bytes(), read_shard(shard)
    sums = index.sums.copy()
    sums[7] *= 1.01
    shard.unlink()
    changed = first.folder / write_shard(first.folder, "0", replace(index, sums=sums))
    try:
        expected, got = rf"expected {index.sums[7]:.2f}\d*", f"got {sums[7]:.6f}"
        with pytest.raises(InputError, match=f"pair .*: {expected}, {got}; 1 of 12 pairs"):
            verify(config, PAIRS)
    finally:
        changed.unlink()
        shard.write_bytes(content)


def test_verify_on_the_command_line_and_a_flipped_byte(
    filled: tuple[DpoConfig, PassResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: the message names the file and the very command that computes its entries; that command computes no more."""
    config, first = filled
    extra = write_rows(tmp_path / "more.jsonl", list(preferences(0, PAIRS + 2, "train")))
    more = replace(config, data=replace(config.data, path=str(extra)))
    assert reference(more).computed == 2
    words = (
        f"--model.path {config.model.path} --model.compute_dtype float32 --data.path {extra} --output {config.output} "
        f"--reference {config.reference} --data.max_length 256 --data.max_prompt_length 64 --data.row_length 512 "
        "--batch.examples 8 --batch.rows None --batch.microbatch_rows 4 --mesh.data 2 --mesh.fsdp 2 --mesh.tensor 2"
    )
    capsys.readouterr()
    main(["reference", "verify", *words.split(), "--num_pairs", "4"])
    assert capsys.readouterr().out.startswith("4 of 14 pairs recomputed")
    main(["reference", *words.split(), "--verify_pairs", "5"])
    assert "5 of 14 pairs recomputed" in capsys.readouterr().out
    shard = min(first.folder.glob("shard-*"), key=lambda path: path.stat().length)
    spoilt = bytearray(shard.read_bytes())
    spoilt[len(spoilt) // 2] ^= 16
    shard.write_bytes(bytes(spoilt))
    with pytest.raises(SystemExit):
        main(["reference", "verify", *words.split(), "--num_pairs", "4"])
    said = capsys.readouterr().err
    assert f"{shard} cannot be read: expected the digest" in said
    assert f"`zephyr-jax reference {words}`" in said
    shard.unlink()
    assert reference(more).computed == 2


def test_tables_in_the_cloud_are_listed_and_tidied(bucket: Gcs, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: `reference ls` and `gc` take gs:// as they take folders."""
    root = "gs://bucket/tables"
    table = ReferenceTable(open_path(root), Identity("weights", "tokenizer", "rule", "float32", 1))
    for part in range(3):
        table.add(f"{part}", [f"{part:032x}"], np.array([-1.0 - part]), np.ones(1))
    main(["reference", "ls", "--reference", root])
    assert "3 entries" in capsys.readouterr().out
    main(["reference", "gc", "--reference", root, "--apply"])
    assert "merge 3 small shards" in capsys.readouterr().out
    assert len([name for name in bucket.names("bucket", "tables/") if "shard-" in name]) == 1
    again = ReferenceTable(open_path(root), table.identity)
    assert again.index.sums.tolist() == [-1, -2, -3]
    main(["reference", "gc", "--reference", root, "--older_than_days", "0", "--apply"])
    assert bucket.names("bucket", "tables/") == []
