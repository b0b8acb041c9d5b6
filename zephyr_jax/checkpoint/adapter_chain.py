"""The adapters in a model by their records: none is added twice, or to a base that it does not name without a warning."""

import logging
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from zephyr_jax.checkpoint.hf.peft_config import PeftAdapter
from zephyr_jax.checkpoint.model_source import ModelSource, hub_commit
from zephyr_jax.checkpoint.provenance import Record, chain, read_record
from zephyr_jax.checkpoint.template_choice import log_on_host0
from zephyr_jax.config.sections import WeightsOptions
from zephyr_jax.errors import InputError, at_revision
from zephyr_jax.storage.files import Path, open_path


def folder_record(folder: Path, asked: str) -> Record:
    """The record of an adapter in PEFT's format: that of its export, else path and revision."""
    record = read_record(folder) or {}
    return record if record.get("format") == "adapter" else {"path": asked, "revision": hub_commit(folder)}


def own_links(record: Record) -> tuple[list[Record], Record]:
    """The links of an adapter's record that are this adapter, newest first, and the record of the model below it ({}: unknown).

    An export of an adapter is the adapter that it holds, and a run that continues an adapter has trained that one further.
    """
    links = [record]
    while links[-1].get("format") == "adapter" or links[-1].get("adapter", {}).get("start") == "continue":
        if not links[-1].get("parent"):
            return links, {}
        links.append(links[-1]["parent"])
    return links, links[-1].get("parent", {})


def check_not_contained(base: ModelSource, adapter: Path, record: Record, asked: str) -> None:
    """Raise InputError for an adapter that the weights of a model already have.

    Args:
        base: The model.
        adapter: Folder of the adapter, or the run that trained it.
        record: Of the adapter.
        asked: Its name, for the message.
    """
    contained = {_identity(link) for link in chain(base.record)}
    own = {_identity(link) for link in own_links(record)[0]} - {()}
    if _location(adapter) in map(_location, _adapters_of(base)) or own & contained:
        raise InputError(
            f"model.adapter is {asked}, whose adapter the weights of {base.asked} have already: it would be added twice. Pass "
            f"`--model.path {base.asked}` alone, or the model that the adapter was trained on: `--model.path BASE "
            f"--model.adapter {asked}`."
        )


def warn_of_other_base(base: ModelSource, given: WeightsOptions, adapter: PeftAdapter, record: Record) -> None:
    """Warn where an adapter names another base than the model that it is added to.

    Fingerprints decide where both records have them, else names: a local copy of a hub model has another path.

    Args:
        base: The model.
        given: The settings that name it, and the adapter.
        adapter: What adapter_config.json holds.
        record: Of the adapter.
    """
    below, actual = own_links(record)[1], base.record
    name, revision = adapter.base or below.get("path"), adapter.revision if adapter.base else below.get("revision")
    described = f"{name or below.get('output')}{at_revision(revision)}"
    same_kind = all(below.get(key) == actual.get(key) for key in ("format", "dtype"))
    if below.get("weights") and actual.get("weights") and (same_kind or below["weights"] == actual["weights"]):
        if below["weights"] == actual["weights"]:
            return
        described += f" with weights {below['weights']}, not {actual['weights']}"
    elif not (name or below) or (below and _origin(below) == _origin(actual)) or _is_named(base, given, name, revision):
        return
    log_once(
        logging.WARNING,
        f"{given.adapter} names another base than {base.asked}: {described}. On other weights an adapter gives other outputs: "
        f"set model.path and model.revision to its base, unless {base.asked} is a copy of it",
    )


log_once = cache(log_on_host0)
"""`log_on_host0` for lines that commands which look at a model several times would repeat."""


def _adapters_of(model: ModelSource) -> Iterator[Path]:
    """Folders and runs of the adapters that a model consists of."""
    while model.adapter:
        yield model.adapter.folder or model.weights
        model = model.adapter.base


def _identity(link: Record) -> tuple[Any, ...]:
    """What a link of a chain has in common with its copies; () if unknown."""
    if link.get("made_by"):
        names = ("made_by", "at", "output")
        return tuple(link.get(name) for name in names) if link.get("at") else ()
    return model_identity(link["path"], link.get("revision")) if link.get("path") else ()


def _origin(record: Record) -> tuple[Any, ...] | None:
    """Identity and step of the run, or identity of the foreign model, whose weights a record's exports have."""
    while record.get("made_by") == "export":
        record = record.get("parent", {})
    return (*_identity(record), record.get("step")) if record else None


def _is_named(base: ModelSource, given: WeightsOptions, name: str | None, revision: str | None) -> bool:
    """Whether a model has this name and revision; names of which one is a local copy are equal in their last part."""
    if not name:
        return False
    commit = hub_commit(base.weights)
    repository = base.weights.parent.parent.name.removeprefix("models--").replace("--", "/") if commit else ""
    if name in (base.asked, repository) and not open_path(name).is_dir():
        return revision in (None, commit, given.revision) or (given.revision is None and revision == "main")
    locations = [_location(path) for path in (base.asked, base.weights, repository) if path]
    endings = {PurePosixPath(location).name.lower() for location in locations}
    return _location(name) in locations or PurePosixPath(name).name.lower() in endings


def model_identity(path: str, revision: str | None) -> tuple[str, str | None]:
    """Equal for all names of a local folder, and for those of a hub id at one revision."""
    location = _location(path)
    return location, None if os.path.isdir(location) else revision


def _location(path: Path | str) -> str:
    """A path without links, relative parts and a slash at its end; a hub id as it is."""
    text = os.fspath(path)
    local = not re.match(r"\w+://", text) and os.path.isdir(text)
    return os.path.realpath(text) if local else text.rstrip("/")
