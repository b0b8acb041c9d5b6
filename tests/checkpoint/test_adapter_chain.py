"""Adapters and their bases by name and record alone: nothing is trained or loaded here."""

import json
import logging
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zephyr_jax.checkpoint.adapter_chain import log_once
from zephyr_jax.checkpoint.opened import open_model
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.adapter import EvaluationOptions
from zephyr_jax.config.sections import MeshOptions, WeightsOptions
from zephyr_jax.errors import InputError
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules

type Record = dict[str, Any]

FACTS = {
    "rank": 4, "alpha": 8, "use_rslora": False, "targets": ["attention.query"], "base_format": "float32", "block_size": 64,
}  # fmt: skip


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the tiny model; the hub client reads its cache only."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    log_once.cache_clear()
    return str(shutil.copytree(tiny_model, tmp_path / "base"))


def peft(folder: Path, base: str | None = None, record: Record | None = None, **fields: Any) -> str:
    """An adapter of the query projections of the tiny model in PEFT's format."""
    folder.mkdir(parents=True)
    sizes = {"lora_A": (4, 128), "lora_B": (128, 4)}
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.{name}.weight": np.ones(size, np.float32)
        for layer in range(4)
        for name, size in sizes.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": base,
    }
    (folder / "adapter_config.json").write_text(json.dumps(values | fields))
    return write(folder, record)


def run(folder: Path, base: str, parent: Record, start: str | None = "new", adapter: str | None = None) -> str:
    """A run that was started from `base` and `adapter`, with an adapter itself where `start` is given; without checkpoints."""
    model = folder.parent / "base"
    shutil.copytree(model, folder / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    record = {
        "made_by": "sft", "at": f"2026-11-30T10:00:00 {folder.name}", "output": str(folder),
        "config": {"model": {"path": base, "adapter": adapter}}, "parent": parent,
    }  # fmt: skip
    return write(folder, record | ({"adapter": {**FACTS, "start": start}} if start else {}))


def write(folder: Path, record: Record | None) -> str:
    if record is not None:
        (folder / "provenance.json").write_text(json.dumps(record))
    return str(folder)


def exported(run_folder: str, **facts: Any) -> Record:
    """The record of an export of a run's adapter, or of its merged weights."""
    parent = json.loads((Path(run_folder) / "provenance.json").read_text())
    return {"made_by": "export", "at": "later", "output": "/elsewhere", "format": "adapter", "parent": parent, **facts}


def model(path: str, home: Path, record: Record | None = None) -> str:
    """Another folder with the tiny model."""
    shutil.copytree(home / "base", home / path)
    return write(home / path, record)


def cached(home: Path, name: str, revision: str, content: Path) -> str:
    """A repository `lab/NAME` in the layout of the hub client's cache; returns its commit."""
    repository = home / "hub" / f"models--lab--{name}"
    commit = blake2b(f"{name} {revision}".encode(), digest_size=20).hexdigest()
    shutil.copytree(content, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return commit


def warnings_of(caplog: pytest.LogCaptureFixture, path: str, adapter: str, **options: Any) -> list[str]:
    caplog.clear()
    log_once.cache_clear()
    find_model(WeightsOptions(path, adapter=adapter, **options))
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# ---- twice ----


TWICE: dict[str, Callable[[Path, str], tuple[str, str]]] = {
    "the same folder": lambda home, base: ((name := peft(home / "a", base)), name),
    "the same folder by a link": lambda home, base: (
        (name := peft(home / "a", base)), str((home / "link").symlink_to(name) or home / "link")
    ),
    "a run and itself": lambda home, base: ((name := run(home / "r", base, {"path": base})), name),
    "a run and its export": lambda home, base: (
        (name := run(home / "r", base, {"path": base})), peft(home / "a", base, exported(name))
    ),
    "two exports": lambda home, base: (
        (name := peft(home / "a", base, exported(run(home / "r", base, {"path": base})))),
        str(shutil.copytree(name, home / "copy")),
    ),
    "merged weights and their run": lambda home, base: (
        model("hf", home, exported(name := run(home / "r", base, {"path": base}), format="merged")), name
    ),
    "a run and the adapter that it continues": lambda home, base: (
        run(home / "r", base, {"path": (name := peft(home / "a", base)), "parent": {"path": base}}, "continue", name), name
    ),
    "a run and one that continues its adapter": lambda home, base: (
        (name := run(home / "r", base, {"path": base})),
        run(home / "next", name, json.loads((home / "r" / "provenance.json").read_text()), "continue"),
    ),
    "all weights trained from the adapter": lambda home, base: (
        run(home / "next", (name := run(home / "r", base, {"path": base})), exported(name)["parent"], None), name
    ),
}  # fmt: skip
"""What is in the weights -> how to make a model, and the adapter that it holds."""


@pytest.mark.parametrize("name", TWICE)
def test_an_adapter_is_not_added_twice(name: str, base: str, tmp_path: Path) -> None:
    """Neither to itself nor to what was made from it; on the plain base it is added once."""
    path, adapter = TWICE[name](tmp_path, base)
    with pytest.raises(InputError, match=f"have already: it would be added twice. Pass `--model.path {path}` alone"):
        find_model(WeightsOptions(path, adapter=adapter))
    assert find_model(WeightsOptions(base, adapter=adapter)).adapter


def test_one_repository_of_the_hub_is_not_added_twice(base: str, tmp_path: Path) -> None:
    """By id and by the folder of its commit. Another revision is another adapter."""
    for revision in ("main", "older"):
        commit = cached(tmp_path, "adapter", revision, Path(peft(tmp_path / revision, base)))
    snapshot = tmp_path / "hub" / "models--lab--adapter" / "snapshots" / commit
    for adapter, revision in (("lab/adapter", "older"), (str(snapshot), None)):
        with pytest.raises(InputError, match="it would be added twice"):
            find_model(WeightsOptions("lab/adapter", "older", adapter, revision))
    assert find_model(WeightsOptions("lab/adapter", "older", "lab/adapter")).adapter


def test_another_adapter_on_top_is_added(base: str, tmp_path: Path) -> None:
    """An adapter that was trained on the merged first one belongs there."""
    first = run(tmp_path / "first", base, {"path": base})
    second = run(tmp_path / "second", first, json.loads((tmp_path / "first" / "provenance.json").read_text()), "merge")
    for adapter in (second, peft(tmp_path / "a", record=exported(second))):
        source = find_model(WeightsOptions(first, adapter=adapter))
        assert source.adapter and source.adapter.base.adapter


# ---- another base ----


def test_another_base_than_the_adapter_names_is_reported(
    base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By its name; copies of a model have the same last part of it."""
    other = model("other", tmp_path)
    adapter = peft(tmp_path / "a", base)
    assert not warnings_of(caplog, base, adapter)
    (warning,) = warnings_of(caplog, other, adapter)
    assert warning.startswith(f"{adapter} names another base than {other}: {base}. ")
    assert not warnings_of(caplog, base, peft(tmp_path / "b", "lab/Base"))
    assert not warnings_of(caplog, other, peft(tmp_path / "c", None))
    assert "lab/large" in warnings_of(caplog, base, peft(tmp_path / "d", "lab/large"))[0]
    assert not warnings_of(
        caplog, base, adapter=run(tmp_path / "r", other, {"path": other})
    )  # its weights are compared


def test_another_revision_of_the_base_is_reported(base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    commit = cached(tmp_path, "base", "main", Path(base))
    cached(tmp_path, "base", "v2", Path(base))
    snapshot = str(tmp_path / "hub" / "models--lab--base" / "snapshots" / commit)
    for revision, named in (("main", None), ("main", "main"), ("main", commit), ("v2", "v2")):
        adapter = peft(tmp_path / f"{revision}-{named}", "lab/base", revision=named)
        assert not warnings_of(caplog, "lab/base", adapter, revision=revision)
    assert not warnings_of(caplog, snapshot, peft(tmp_path / "a", "lab/base", revision=commit))
    adapter = peft(tmp_path / "b", "lab/base", revision=commit)
    (warning,) = warnings_of(caplog, "lab/base", adapter, revision="v2")
    assert f"lab/base at revision {commit}" in warning


def test_fingerprints_and_runs_decide_before_names(base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The base is an export: the same weights elsewhere pass, other weights at the same path do not."""
    stage = run(tmp_path / "stage", base, {"path": base}, None)
    first = exported(stage, format="merged", weights="11", dtype="bfloat16")
    for path, weights in (("here", "11"), ("there", "22")):
        model(path, tmp_path, {**first, "weights": weights, "output": path})
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    trained = run(tmp_path / "trained", there, {**first, "output": there})
    adapter = peft(tmp_path / "a", there, exported(trained))
    assert not warnings_of(caplog, here, adapter)
    assert "with weights 11, not 22" in warnings_of(caplog, there, adapter)[0]
    second = run(tmp_path / "second", stage, exported(stage)["parent"])  # on the run: its record has no fingerprint
    assert not warnings_of(caplog, here, peft(tmp_path / "b", stage, exported(second)))


# ---- in circles ----


def test_an_adapter_that_names_itself_is_refused(base: str, tmp_path: Path) -> None:
    """Directly, by way of another one, and by a relative name; the fix that the message names works."""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    peft(tmp_path / "one", two)
    peft(tmp_path / "two", one)
    own = peft(tmp_path / "own", f"{tmp_path}/two/../own/")
    for path, chain, last in ((one, f"{one} -> {two} -> {one}", two), (own, f"{own} -> {tmp_path}/two/../own/", own)):
        with pytest.raises(InputError) as error:
            find_model(WeightsOptions(path))
        message = str(error.value)
        assert f"names itself as its base ({chain})" in message
        assert message.count("--model.path BASE") == 1 and f"--model.adapter {path}`" in message
        assert f"base_model_name_or_path in {last}" in message
        assert find_model(WeightsOptions(base, adapter=path)).adapter


@pytest.mark.parametrize("start", ["new", "continue"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_run_that_was_moved_to_where_it_started_is_refused(
    base: str, start: str, beside: bool, tmp_path: Path
) -> None:
    """Its record names the path of the model, or of the adapter beside the base, where the run lies now."""
    here = str(tmp_path / "here")
    parent = {"path": here, "parent": {"path": base}}
    names = (base, parent, start, here) if beside else (here, parent, start)
    run(tmp_path / "here", *names)
    with pytest.raises(InputError, match=r"names itself as its base .*, by the run .*Put that model back, or pass"):
        find_model(WeightsOptions(here))
    assert find_model(WeightsOptions(base, adapter=here)).adapter


def test_a_branch_may_hold_an_adapter_of_the_main_branch(base: str, tmp_path: Path) -> None:
    """One repository, two models."""
    cached(tmp_path, "both", "main", Path(base))
    cached(tmp_path, "both", "lora", Path(peft(tmp_path / "a", "lab/both")))
    source = find_model(WeightsOptions("lab/both", "lora"))
    assert source.adapter and source.adapter.base.adapter is None


# ---- folders ----


def test_a_folder_with_merged_weights_beside_them_is_an_adapter_where_it_is_named_as_one(
    base: str, tmp_path: Path
) -> None:
    """As a model it stays ambiguous."""
    folder = tmp_path / "both"
    alone = find_model(WeightsOptions(base, adapter=peft(folder, base)))
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(Path(base) / name, folder / name)
    source = find_model(WeightsOptions(base, adapter=str(folder)))
    assert source.adapter and alone.adapter
    assert (source.adapter.spec, source.model_config) == (alone.adapter.spec, alone.model_config)
    rules = ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1]))
    open_model(EvaluationOptions(base, adapter=str(folder)), rules).check_weights()
    with pytest.raises(InputError, match=f"in two ways: .*pass `--model.path BASE --model.adapter {folder}`"):
        find_model(WeightsOptions(str(folder)))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"expected a folder with adapter_config.json and adapter_model.safetensors, got"
    ):
        find_model(WeightsOptions(base, adapter=str(folder)))


def test_weights_in_parts_have_to_be_joined(base: str, tmp_path: Path) -> None:
    """The fix that the message names works; also alone, where the parts are not taken for a model's."""
    folder = Path(peft(tmp_path / "a", base))
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    for number, parts in enumerate((list(tensors)[:3], list(tensors)[3:]), 1):
        save_file({name: tensors[name] for name in parts}, folder / f"adapter_model-0000{number}-of-00002.safetensors")
    for options in (WeightsOptions(str(folder)), WeightsOptions(base, adapter=str(folder))):
        with pytest.raises(
            InputError, match=r"in parts \(adapter_model-00001-of-.*Join them with safetensors: `load_file`"
        ):
            find_model(options)
    joined = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    save_file(joined, folder / "adapter_model.safetensors")
    assert find_model(WeightsOptions(str(folder))).adapter


def test_pickles_of_an_adapter_are_neither_downloaded_nor_read(base: str, tmp_path: Path) -> None:
    """A folder of the hub's cache has no pickle, as none is downloaded."""
    folder = Path(peft(tmp_path / "a", base))
    (folder / "adapter_model.safetensors").unlink()
    cached(tmp_path, "pickled", "main", folder)
    (folder / "adapter_model.bin").write_bytes(b"PK")
    for adapter, words in (
        ("lab/pickled", "neither downloaded nor read"),
        (str(folder), "is a pickle, and pickles are not"),
    ):
        with pytest.raises(
            InputError, match=rf"{words}.*Convert it with peft: `PeftModel.from_pretrained\(base, ADAPTER\)"
        ):
            find_model(WeightsOptions(base, adapter=adapter))


# ---- settings of its training ----


def test_dropout_is_reported_once(base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However often a command looks at the model; none is reported for 0."""
    caplog.set_level(logging.INFO)
    find_model(WeightsOptions(base, adapter=peft(tmp_path / "none", base, lora_dropout=0)))
    assert not [text for text in caplog.messages if "lora_dropout" in text]
    adapter = peft(tmp_path / "some", base, lora_dropout=0.05)
    for options in (WeightsOptions(base, adapter=adapter), WeightsOptions(adapter)):
        find_model(options)
    (line,) = [text for text in caplog.messages if "lora_dropout" in text]
    assert line.startswith(f"{adapter}: lora_dropout 0.05 is ignored")


def test_an_exported_adapter_of_another_program_has_no_base_format(base: str, tmp_path: Path) -> None:
    """That of a run below it is the run's: the record of a second adapter on top of it is not about its base."""
    merged = model("hf", tmp_path, exported(run(tmp_path / "r", base, {"path": base}), format="merged"))
    record = json.loads((tmp_path / "hf" / "provenance.json").read_text())
    foreign = {"path": "lab/foreign", "revision": None, "parent": record}
    again = {"made_by": "export", "format": "adapter", "at": "now", "output": "a", "parent": foreign}
    source = find_model(WeightsOptions(merged, adapter=peft(tmp_path / "a", merged, again)))
    assert source.adapter and source.adapter.base_format is None
