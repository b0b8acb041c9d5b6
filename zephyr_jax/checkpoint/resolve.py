"""Locating and opening a model: a Hugging Face folder or hub id, or the output folder of a run."""

import logging
import os
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.template import ChatTemplate
from zephyr_jax.checkpoint.adapter_chain import (
    check_not_contained,
    folder_record,
    log_once,
    model_identity,
    own_links,
    warn_of_other_base,
)
from zephyr_jax.checkpoint.hf.folder import is_hub_id, open_folder
from zephyr_jax.checkpoint.hf.peft_config import read_adapter_base, read_adapter_config
from zephyr_jax.checkpoint.hf.weight_files import ADAPTER, ADAPTER_WEIGHTS, check_no_adapter, holds_adapter_only
from zephyr_jax.checkpoint.model_source import (
    MODEL_FOLDER,
    SMALL_FILES,
    AdapterSource,
    ModelSource,
    hub_commit,
    open_source,
    overlay,
    split_step,
)
from zephyr_jax.checkpoint.provenance import Record, read_record
from zephyr_jax.checkpoint.run_adapter import run_adapter, started_from
from zephyr_jax.config.sections import WeightsOptions
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.storage.files import Path, check_readable, list_names, local_copy, open_path

_BASE_ELSEWHERE = "If the base is elsewhere: `--model.path BASE --model.adapter {}`."


type _Names = tuple[tuple[str, str | None], ...]
"""Path and revision of adapters, of which each names the next one as its base."""


class CyclicBaseError(InputError):
    """The base of an adapter is this adapter itself, by way of others or not."""


def tokenizer_only(options: WeightsOptions) -> str | None:
    """The path of a folder with a tokenizer and no model, which `preview` takes, too; None for all else."""
    path = open_path(options.path)
    if options.adapter or (path / MODEL_FOLDER).is_dir() or not path.is_dir():
        return None
    if {"config.json", ADAPTER}.intersection(list_names(path)):
        return None
    return str(local_copy(path, SMALL_FILES))


def find_model(options: WeightsOptions, *, weights: bool = True) -> ModelSource:
    """Locate a model and read its config. Raises InputError when it is nowhere or not ours to compute.

    The weights of a hub id are downloaded last, when all that the small files and the adapters show has been checked. With
    `weights` false, they are not downloaded.
    """
    source = _find(options, weights, ())
    if weights:
        _download_weights(source)
    return source


def _find(options: WeightsOptions, weights: bool, above: _Names) -> ModelSource:
    """`find_model` of the model below the adapters `above`, of which each names the next one as its base."""
    if options.adapter:
        _check_acyclic((options.adapter, options.adapter_revision), above)
        below = replace(options, adapter=None, adapter_revision=None)
        return _with_adapter(_find(below, weights, above), options, options.adapter)
    if options.adapter_revision:
        raise InputError("model.adapter_revision is set without `model.adapter`. Pass the hub id of the adapter.")
    above = _check_acyclic((options.path, options.revision), above)
    check_readable(options.path)
    path, step = split_step(open_path(options.path))
    if (path / MODEL_FOLDER).is_dir():
        source = open_source(options.path, path, path, step)
        adapter = run_adapter(path, source.model_config, lambda record: _recorded_base(path, record, weights, above))
        return replace(source, adapter=adapter)
    home, on_hub = open_folder(options.path, options.revision, weights=False), is_hub_id(os.fspath(path))
    names = list_names(home)
    if weights and on_hub and ADAPTER in names:
        if "config.json" not in names:
            read_adapter_base(home)
        home = open_folder(options.path, hub_commit(home) or options.revision)  # it may hold a model, too
        names = list_names(home)
    if holds_adapter_only(names):
        return _adapter_alone(options, home, weights, above)
    if ADAPTER in names or not on_hub:  # else the folder is checked when it has its weights
        check_no_adapter(home, names)
    return open_source(options.path, home, None, step)


def _download_weights(source: ModelSource) -> None:
    """Download the weights of the model below all adapters, at the commit of its small files, where it is a hub id."""
    while source.adapter:
        source = source.adapter.base
    if source.run is None and is_hub_id(source.asked):
        home = open_folder(source.asked, hub_commit(source.weights))
        check_no_adapter(home, list_names(home))


def _open_adapter(path: str, revision: str | None) -> Path:
    """The folder of an adapter; of a hub id, adapter_config.json is checked before the weights are downloaded."""
    if is_hub_id(path):
        home = open_folder(path, revision, weights=False)
        if ADAPTER in list_names(home):
            read_adapter_base(home)
        revision = hub_commit(home) or revision
    return open_folder(path, revision, adapter_only=True)


def _check_acyclic(name: tuple[str, str | None], above: _Names) -> _Names:
    """`above` and `name` after them. Raises CyclicBaseError where one of `above` has this name."""
    chain = (*above, name)
    if not above:
        return chain
    identities = [model_identity(os.fspath(split_step(open_path(path))[0]), revision) for path, revision in chain]
    first = identities.index(identities[-1])
    if first == len(above):
        return chain
    cycle, last = [path for path, _ in chain[first:]], above[-1][0]
    cause, fix = f"base_model_name_or_path in {last}/{ADAPTER}", "Correct that field"
    if (split_step(open_path(last))[0] / MODEL_FOLDER).is_dir():
        cause, fix = f"the run {last}, which was started from another model at this path", "Put that model back"
    raise CyclicBaseError(
        f"{name[0]} names itself as its base ({' -> '.join(cycle)}), by {cause}: expected the model that the adapter was "
        f"trained on. {fix}, or pass the model: `--model.path BASE --model.adapter {cycle[0]}`."
    )


def _recorded_base(run: Path, record: Record, weights: bool, above: _Names) -> ModelSource:
    """The model below the adapter of a run, where its record has it. Raises InputError."""
    options = started_from(run, record)
    try:
        base = _find(options, weights, above)
    except CyclicBaseError:
        raise
    except InputError as error:
        raise InputError(
            f"{run} holds an adapter on top of {options.path}: {error} {_BASE_ELSEWHERE.format(run)}"
        ) from error
    return base.adapter.base if record["adapter"].get("start") == "continue" and base.adapter else base


def _adapter_alone(options: WeightsOptions, home: Path, weights: bool, above: _Names) -> ModelSource:
    """The model of a path that holds an adapter only, in the folder `home`: its adapter_config.json names the base."""
    base_path, revision = read_adapter_base(home)
    if base_path is None:
        raise InputError(
            f"{options.path} holds an adapter, and base_model_name_or_path in its adapter_config.json is empty. Pass the base: "
            f"`--model.path BASE --model.adapter {options.path}`."
        )
    home = open_folder(options.path, hub_commit(home) or options.revision, adapter_only=True)
    try:
        base = _find(WeightsOptions(base_path, revision), weights, above)
    except CyclicBaseError:
        raise
    except InputError as error:
        raise InputError(
            f"{options.path} holds an adapter of {base_path}: {error} {_BASE_ELSEWHERE.format(options.path)}"
        ) from error
    return _on_top(base, home, options.path)


def _with_adapter(base: ModelSource, options: WeightsOptions, adapter: str) -> ModelSource:
    """`base` with the adapter that `options.adapter` names: a PEFT folder, a hub id, or a run that trained one."""
    check_readable(adapter)
    run, step = split_step(open_path(adapter))
    if (run / MODEL_FOLDER).is_dir():
        source = open_source(adapter, run, run, step)
        source = replace(source, adapter=run_adapter(run, source.model_config, lambda _: base))
        if source.adapter is None:
            raise InputError(
                f"model.adapter: expected an adapter, got {adapter}, a run that trained all weights. Pass it as model.path."
            )
        check_not_contained(base, run, read_record(run) or {}, adapter)
        _check_same_model(base, source)
        return source
    folder = _open_adapter(adapter, options.adapter_revision)
    names = list_names(folder)
    if not holds_adapter_only(names) and not {ADAPTER, ADAPTER_WEIGHTS}.issubset(names):
        raise InputError(
            f"model.adapter: expected a folder with {ADAPTER} and {ADAPTER_WEIGHTS}, got {adapter} with "
            f"{join_items(names, 6) or 'no files'}. A model goes to model.path."
        )
    return _on_top(base, folder, adapter, options)


def _check_same_model(base: ModelSource, run: ModelSource) -> None:
    """Raise InputError unless the run of an adapter trained on a model of this architecture."""
    ours, theirs = (vars(source.model_config) for source in (base, run))
    differing = [name for name in ours if ours[name] != theirs.get(name)]
    if differing:
        values = join_items(f"{name}: expected {theirs.get(name)}, got {ours[name]}" for name in differing)
        raise InputError(
            f"The adapter of {run.asked} does not fit {base.asked}: {values}. Set model.path to the model that the run started "
            "from."
        )


def _on_top(base: ModelSource, folder: Path, asked: str, given: WeightsOptions | None = None) -> ModelSource:
    """A model and a PEFT adapter as one source; the tokenizer is the adapter's where its folder has one.

    `given` are the settings that name both, where the base is not the one that the adapter names. Raises InputError.
    """
    record = folder_record(folder, asked)
    check_not_contained(base, folder, record, asked)
    adapter = read_adapter_config(folder, base.model_config)
    if given:
        warn_of_other_base(base, given, adapter, record)
    if adapter.dropout:
        log_once(
            logging.INFO,
            f"{asked}: lora_dropout {adapter.dropout:g} is ignored; adapters are computed and trained without dropout",
        )
    return replace(
        base,
        asked=asked,
        folder=overlay(base.folder, folder),
        weights=folder,
        run=None,
        step=None,
        adapter=_exported_adapter(AdapterSource(adapter.spec, base, folder=folder), record),
    )


def _exported_adapter(adapter: AdapterSource, record: Record) -> AdapterSource:
    """The adapter with the base format of the run that trained it, where its folder has the record of an export."""
    for link in own_links(record)[0]:
        if facts := link.get("adapter"):
            return replace(adapter, base_format=facts["base_format"], block_size=facts["block_size"])
    return adapter


def check_vocabulary(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, asked: str, template: ChatTemplate | None = None
) -> None:
    """Raise InputError when a token can occur that the model has no embedding for.

    A special token occurs only where the template writes it or where it begins or ends a sequence: text never becomes one. So
    a padding token beyond the embedding is harmless.
    """
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= config.vocab_size}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    named = {tokenizer.bos_token, tokenizer.eos_token}
    used = [
        token for token in beyond if token not in special or token in named or (template and template.may_write(token))
    ]
    if used:
        raise InputError(
            f"The tokenizer of {asked} has {len(tokenizer)} tokens and the model embeds {config.vocab_size}: {len(used)} tokens "
            f"beyond the embedding can occur ({join_items(map(truncate_repr, sorted(used, key=beyond.__getitem__)), 4)}). Take "
            "the tokenizer from the checkpoint's own folder."
        )
