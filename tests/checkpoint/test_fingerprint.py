"""Fingerprints tell any two sets of weights apart, add up over parts, and are cached for the content that they are of."""

from pathlib import Path
from shutil import copytree
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from tests.conftest import flip_last_byte
from tests.models import load
from zephyr_jax.checkpoint import fingerprint_cache
from zephyr_jax.checkpoint.fingerprint import joint_fingerprint, weights_fingerprint
from zephyr_jax.checkpoint.fingerprint_cache import cache_fingerprint, find_fingerprint, weights_key
from zephyr_jax.checkpoint.frozen import FROZEN, check_frozen, frozen_record, merge, select, split
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.sections import MeshOptions, ModelOptions
from zephyr_jax.errors import InputError
from zephyr_jax.model.weight_format import PLAIN
from zephyr_jax.parallel.mesh import make_mesh

Tree = dict[str, Any]


def weights() -> Tree:
    values = np.random.default_rng(0).normal(0, 1, (3, 8, 4)).astype(np.float32)
    return {"a": jnp.asarray(values[0]), "b": {"c": jnp.asarray(values[1]), "d": {"e": jnp.asarray(values[2])}}}


def with_value(tree: Tree, value: jax.Array) -> Tree:
    return {**tree, "a": value}


CHANGES = {
    "the last bit of one value": lambda a: a.at[5, 2].set(jnp.nextafter(a[5, 2], jnp.float32(9))),
    "the sign of one value": lambda a: a.at[1, 1].multiply(-1),
    "the sign of a zero": lambda a: a.at[0, 0].set(-0.0),
    "two values that change places": lambda a: a.at[jnp.array([1, 2]), 3].set(a[jnp.array([2, 1]), 3]),
    "another shape of the same values": lambda a: a.reshape(4, 8),
    "a transpose": lambda a: a.T,
    "rows in reverse order": lambda a: a[::-1],
    "a value that is no number": lambda a: a.at[0, 0].set(jnp.nan),
}


def test_every_change_of_weights_changes_the_fingerprint() -> None:
    """Law: one bit, one place, one name or one shape is enough, and no two of these changes look alike."""
    plain = with_value(weights(), weights()["a"].at[0, 0].set(0.0))
    changed = [with_value(plain, change(plain["a"])) for change in CHANGES.values()]
    renamed = {**{name: node for name, node in plain.items() if name != "a"}, "z": plain["a"]}
    swapped = {**plain, "a": plain["b"]["c"], "b": {**plain["b"], "c": plain["a"]}}
    without = {"b": plain["b"]}
    prints = [weights_fingerprint(tree) for tree in (plain, *changed, renamed, swapped, without, {})]
    assert len(set(prints)) == len(prints)
    assert weights_fingerprint({}) == "0" * 32 and all(len(one) == 32 for one in prints)


def test_layout_and_dtype_of_the_same_values_do_not_matter() -> None:
    """Law: order of names, shards, NumPy or JAX, and bfloat16 of values that bfloat16 holds."""
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights())
    plain = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded)
    expected = weights_fingerprint(plain)
    sharding = NamedSharding(make_mesh(MeshOptions(data=1, fsdp=4, tensor=2)), PartitionSpec("fsdp", "tensor"))
    same = (
        dict(reversed(plain.items())), rounded, jax.tree.map(np.asarray, plain), jax.device_put(plain, sharding),
    )  # fmt: skip
    assert [weights_fingerprint(tree) for tree in same] == [expected] * len(same)


@pytest.mark.parametrize("frozen", [(), ("a",), ("b.c",), ("a", "b.d.e"), ("a", "b.c", "b.d.e")])
def test_parts_of_weights_join_again(frozen: tuple[str, ...]) -> None:
    """Law: `merge` undoes `split`, and the fingerprints of both parts are that of the whole."""
    whole = weights()
    trainable, rest = split(whole, lambda name: name not in frozen)
    assert len(jax.tree.leaves(rest)) == len(frozen)
    assert jax.tree.structure(merge(trainable, rest)) == jax.tree.structure(whole)
    parts = [weights_fingerprint(trainable), weights_fingerprint(rest)]
    assert joint_fingerprint(parts) == joint_fingerprint(parts[::-1]) == weights_fingerprint(whole)
    assert frozen_record(rest) == {"names": list(frozen), "weights": parts[1]}
    for part in (trainable, rest):
        for left, right in zip(jax.tree.leaves(select(whole, part)), jax.tree.leaves(part), strict=True):
            assert left is right, "no copies"


def test_frozen_weights_are_those_of_the_record() -> None:
    """Other values, other names, and a step without a record are refused with the model that is missing."""
    run, base = epath.Path("runs/one"), {"config": {"model": {"path": "base-model"}}}
    rest = split(weights(), lambda name: name != "a")[1]
    saved = {**base, FROZEN: frozen_record(rest)}
    check_frozen(saved, rest, run)
    other = {"a": rest["a"] + 1}
    for progress, current in ((saved, other), (saved, {"z": rest["a"]}), (base, rest)):
        with pytest.raises(InputError, match="frozen weights of runs/one are those of base-model: expected weights"):
            check_frozen(progress, current, run)


# ---- the cache ----


@pytest.fixture
def folder(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face folder, and an empty cache."""
    monkeypatch.setattr(fingerprint_cache, "cache_folder", lambda name: epath.Path(tmp_path / "cache" / name))
    return Path(copytree(golden / "models" / "gqa", tmp_path / "model"))


def test_a_fingerprint_is_cached_for_the_content_of_the_folder(folder: Path, tmp_path: Path) -> None:
    """Law: a copy elsewhere has the same key; one changed byte of weights or config another, whatever the dates."""
    source = find_model(ModelOptions(str(folder)))
    key, fingerprint = weights_key(source), weights_fingerprint(load(folder).parameters)
    assert find_fingerprint(source, key, PLAIN) is None
    cache_fingerprint(source, key, PLAIN, fingerprint)
    assert find_fingerprint(source, key, PLAIN) == fingerprint
    copied = find_model(ModelOptions(str(copytree(folder, tmp_path / "copy"))))
    assert find_fingerprint(copied, weights_key(copied), PLAIN) == fingerprint
    flip_last_byte(folder / "model.safetensors")
    assert weights_key(source) != key and find_fingerprint(source, weights_key(source), PLAIN) is None
    (tmp_path / "copy" / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert weights_key(copied) != key


def test_nothing_is_cached_for_files_that_changed_while_they_were_read(folder: Path) -> None:
    """The weights in memory may be of either version."""
    source = find_model(ModelOptions(str(folder)))
    key = weights_key(source)
    flip_last_byte(folder / "model.safetensors")
    cache_fingerprint(source, key, PLAIN, "0" * 32)
    assert find_fingerprint(source, key, PLAIN) is None and find_fingerprint(source, weights_key(source), PLAIN) is None
