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
from zephyr_jax.checkpoint.resolve import load_weights
from zephyr_jax.cli import main
from zephyr_jax.config.sections import BatchOptions, DpoOptions, OptimizerOptions
from zephyr_jax.config.training import DpoConfig
from zephyr_jax.demo.corpus import preferences
from zephyr_jax.errors import InputError
from zephyr_jax.reference.fill import Filled, reference, verify
from zephyr_jax.reference.shards import packed, read_part
from zephyr_jax.reference.table import Identity, ReferenceTable
from zephyr_jax.storage.files import open_path

PAIRS = 12


@pytest.fixture(scope="module")
def filled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DpoConfig, Filled]:
    """A card whose table is filled."""
    folder = tmp_path_factory.mktemp("passes")
    rows = write_rows(folder / "pairs.jsonl", list(preferences(0, PAIRS, "train")))
    config = dpo_config(tiny_model, rows, folder / "run", folder / "table")
    return config, reference(config)


def test_settings_of_training_never_invalidate(filled: tuple[DpoConfig, Filled]) -> None:
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


def test_another_template_says_why_all_is_computed(
    filled: tuple[DpoConfig, Filled], capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: one line names the field that differs, with both values."""
    config, first = filled
    capsys.readouterr()
    other = reference(replace(config, data=replace(config.data, chat_template="zephyr-no-system")))
    said = capsys.readouterr().err
    assert re.search(r"^tokenizer was '\w{32}' there, is '\w{32}' here: all 12 pairs are computed anew$", said, re.M)
    assert (other.computed, other.reused) == (PAIRS, 0)
    assert other.folder != first.folder
    capsys.readouterr()
    reference(config)
    assert "computed anew" not in capsys.readouterr().err


def test_a_full_table_needs_no_weights(filled: tuple[DpoConfig, Filled], monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: weights whose fingerprint is known, with all pairs there, are not read, nor after their date changed; others are."""
    config, first = filled
    again = reference(config)
    with monkeypatch.context() as patch:
        patch.setattr("zephyr_jax.checkpoint.resolve.load_weights", lambda *_: pytest.fail("weights were read"))
        assert (reference(config).computed, reference(config).reused) == (0, again.reused)
    [weights] = Path(config.model.path).glob("*.safetensors")
    os.utime(weights)
    read = []
    monkeypatch.setattr(
        "zephyr_jax.checkpoint.resolve.load_weights", lambda *words: read.append(1) or load_weights(*words)
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


def test_verify_finds_sound_values_sound(filled: tuple[DpoConfig, Filled]) -> None:
    """Law: so many pairs, computed in other company, are what the table holds; and nothing is written."""
    config, first = filled
    before = sorted(path.name for path in first.folder.iterdir())
    told = verify(config, 5)
    assert told.startswith("5 of 12 pairs computed anew: at most ")
    assert told.endswith(f"All 1 parts of {first.folder} are whole.")
    assert sorted(path.name for path in first.folder.iterdir()) == before


def test_verify_refuses_other_values_and_shows_them(filled: tuple[DpoConfig, Filled]) -> None:
    """Law: one sum that is off by more than the tolerance is found, though its part is whole."""
    config, first = filled
    (part,) = first.folder.glob("part-*")
    sound = part.read_bytes()
    entries = read_part(part)
    sums = entries.sums.copy()
    sums[7] *= 1.01
    part.write_bytes(packed(replace(entries, sums=sums)))
    try:
        there, here = f"{sums[7]:.6f} there", rf"{entries.sums[7]:.2f}\d* computed anew"
        with pytest.raises(InputError, match=f"pair .*: {there}, {here}, 1 of 12 pairs beyond"):
            verify(config, PAIRS)
    finally:
        part.write_bytes(sound)


def test_verify_on_the_command_line_and_a_flipped_byte(
    filled: tuple[DpoConfig, Filled], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    assert capsys.readouterr().out.startswith("4 of 14 pairs computed anew")
    main(["reference", *words.split(), "--verify_pairs", "5"])
    assert "5 of 14 pairs computed anew" in capsys.readouterr().out
    part = min(first.folder.glob("part-*"), key=lambda path: path.stat().length)
    spoilt = bytearray(part.read_bytes())
    spoilt[len(spoilt) // 2] ^= 16
    part.write_bytes(bytes(spoilt))
    with pytest.raises(SystemExit):
        main(["reference", "verify", *words.split(), "--num_pairs", "4"])
    said = capsys.readouterr().err
    assert f"{part} cannot be read: its digest is" in said
    assert f"Delete that file and run `zephyr-jax reference {words}` again: only its entries" in said
    part.unlink()
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
    assert "merge 3 small parts" in capsys.readouterr().out
    assert len([name for name in bucket.names("bucket", "tables/") if "part-" in name]) == 1
    again = ReferenceTable(open_path(root), table.identity)
    assert again.entries.sums.tolist() == [-1, -2, -3]
    main(["reference", "gc", "--reference", root, "--older_than_days", "0", "--apply"])
    assert bucket.names("bucket", "tables/") == []
