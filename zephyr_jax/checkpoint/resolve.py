"""Locating and opening a model: a Hugging Face folder or hub id, or the output folder of a run."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path as LocalPath
from typing import Any, get_args

from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.template import ChatTemplate
from zephyr_jax.chat.tokenizer_files import TRAINING_TEMPLATE
from zephyr_jax.checkpoint.hf.card import CARD, card_metadata
from zephyr_jax.checkpoint.hf.folder import CHAT_TEMPLATES, TOKENIZER_FILES, open_folder
from zephyr_jax.checkpoint.hf.peft_config import read_adapter_base, read_adapter_config
from zephyr_jax.checkpoint.hf.weight_files import ADAPTER, INDEX, SINGLE, check_no_adapter, holds_adapter_only
from zephyr_jax.checkpoint.provenance import Record, chain, read_record
from zephyr_jax.checkpoint.steps import FOLDER
from zephyr_jax.config.sections import BaseFormat, WeightsOptions
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.registry import config_from_hf
from zephyr_jax.model.families.wrappers import text_config
from zephyr_jax.model.lora import LoraSpec
from zephyr_jax.model.weight_format import WeightFormat
from zephyr_jax.storage.files import Path, check_readable, list_names, local_copy, open_path
from zephyr_jax.storage.strict_json import read_json

MODEL_FOLDER = "model"
"""Inside a run: config.json, generation_config.json and the files of the tokenizer that it trains with."""
INITIAL_ADAPTER = "initial_adapter"
"""Inside a run whose adapter started from singular vectors (PiSSA): that adapter, in PEFT's format."""
_BESIDE_WEIGHTS = ("config.json", "generation_config.json", *TOKENIZER_FILES)
_COPIED = (*_BESIDE_WEIGHTS, CHAT_TEMPLATES, TRAINING_TEMPLATE, "tekken.json", CARD)
_TEMPLATES = ("chat_template.jinja", "chat_template.json", CHAT_TEMPLATES, TRAINING_TEMPLATE)
_BASE_ELSEWHERE = "If the base is elsewhere: `--model.path BASE --model.adapter {}`."


@dataclass(frozen=True)
class ModelSource:
    """A located model: everything but its weights."""

    asked: str
    folder: LocalPath
    """Has config.json and tokenizer files; local copies of them when the model is on Cloud Storage."""
    weights: Path
    """The folder of the safetensors, or the run whose checkpoints hold the weights."""
    run: Path | None
    """`weights` where they are a run of this package."""
    step: int | None
    hf_config: dict[str, Any]
    """config.json of the text model."""
    model_config: ModelConfig
    adapter: "AdapterSource | None" = None
    """The adapter that the model consists of together with the model below it."""
    has_images: bool = False
    """Whether the folder holds a model of images and text, of which this is the text model."""

    @property
    def record(self) -> Record:
        """Provenance of these weights; for weights from elsewhere: path, revision, architecture, license and language."""
        record = read_record(self.weights)
        if record is not None:
            return record if self.step is None else {**record, "step": self.step}
        home = self.weights if self.adapter else self.folder
        snapshot = home.name if home.parent.name == "snapshots" else None  # the hub's cache: a commit
        architecture = self.hf_config.get("model_type")
        facts = {"path": self.asked, "revision": snapshot, "architecture": architecture, **card_metadata(self.folder)}
        return facts | ({"parent": self.adapter.base.record} if self.adapter else {})


@dataclass(frozen=True)
class AdapterSource:
    """A located adapter, and the model below it."""

    spec: LoraSpec
    base: ModelSource
    """If it has an adapter itself, that one is merged into its weights."""
    folder: Path | None = None
    """Folder in PEFT's format; None: the adapter is in the checkpoints of the source's run."""
    base_format: BaseFormat | None = None
    """How the run that trained the adapter stored the weights below; None: unknown."""
    block_size: int = 64
    initial: Path | None = None
    """Folder of the initial adapter that the run subtracted from the base (PiSSA)."""

    @property
    def weight_format(self) -> WeightFormat | None:
        """How training stored the weights; None: unknown."""
        if self.base_format is None:
            return None
        return WeightFormat(base_format=self.base_format, block_size=self.block_size, lora=self.spec)


def tokenizer_only(options: WeightsOptions) -> str | None:
    """The path of a folder with a tokenizer and no model, which `preview` takes, too; None for all else."""
    path = open_path(options.path)
    if options.adapter or (path / MODEL_FOLDER).is_dir() or not path.is_dir():
        return None
    if {"config.json", ADAPTER}.intersection(list_names(path)):
        return None
    return str(local_copy(path, _COPIED))


def find_model(options: WeightsOptions, *, weights: bool = True) -> ModelSource:
    """Locate a model and read its config. Raises InputError when it is nowhere or not ours to compute.

    With `weights` false, those of a hub id are not downloaded.
    """
    if options.adapter:
        below = replace(options, adapter=None, adapter_revision=None)
        return _with_adapter(find_model(below, weights=weights), options.adapter, options.adapter_revision, weights)
    if options.adapter_revision:
        raise InputError("model.adapter_revision is set without `model.adapter`. Pass the hub id of the adapter.")
    check_readable(options.path)
    path, step = _split_step(open_path(options.path))
    if (path / MODEL_FOLDER).is_dir():
        source = _open_source(options.path, path, path, step)
        return replace(source, adapter=_run_adapter(path, lambda record: _recorded_base(path, record, weights)))
    home = open_folder(options.path, options.revision, weights=weights)
    names = list_names(home)
    if holds_adapter_only(names):
        return _adapter_alone(options, weights)
    check_no_adapter(home, names)
    return _open_source(options.path, home, None, step)


def _open_source(asked: str, home: Path, run: Path | None, step: int | None) -> ModelSource:
    """The files of a model, without the adapter of a run. Raises InputError."""
    folder = local_copy(home / MODEL_FOLDER if run else home, _COPIED)
    config = read_json(folder / "config.json")
    try:
        model_config = config_from_hf(config)
    except InputError as error:
        raise InputError(f"{home}: {error}") from error
    named = config.get("transformers_weights")
    if named not in (None, SINGLE, INDEX):
        raise InputError(
            f"{home}/config.json sets transformers_weights to {truncate_repr(named)}, and only {SINGLE} and {INDEX} are read. "
            "Give the file one of these names, and remove the field."
        )
    text = text_config(config)
    return ModelSource(
        asked=asked,
        folder=folder,
        weights=home,
        run=run,
        step=step,
        hf_config=text,
        model_config=model_config,
        has_images=text is not config,
    )


def _split_step(path: Path) -> tuple[Path, int | None]:
    """A run and a step of it, of RUN/checkpoints/STEP; any other path and None."""
    if path.parent.name == FOLDER and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def adapter_record(spec: LoraSpec, base_format: BaseFormat, block_size: int, start: str) -> dict[str, Any]:
    """What the record of a run holds about its adapter.

    Args:
        spec: The adapter.
        base_format: How the run stores the weights below it.
        block_size: Of the base format.
        start: `new`, `continue` (the adapter of the model that the run started from) or `merge` (a new one on top of that).
    """
    values = {"rank": spec.rank, "alpha": spec.alpha, "use_rslora": spec.use_rslora, "targets": list(spec.targets)}
    return {**values, "base_format": base_format, "block_size": block_size, "start": start}


def _run_adapter(run: Path, find_base: Callable[[Record], ModelSource]) -> AdapterSource | None:
    """The adapter that a run trained, on top of `find_base(its record)`; None for a run that trained all weights."""
    record = read_record(run) or {}
    facts = record.get("adapter")
    if facts is None:
        return None
    spec = LoraSpec(
        rank=facts["rank"], alpha=facts["alpha"], use_rslora=facts["use_rslora"], targets=tuple(facts["targets"])
    )
    return AdapterSource(
        spec,
        find_base(record),
        base_format=facts["base_format"],
        block_size=facts["block_size"],
        initial=_initial_adapter(run, record),
    )


def _initial_adapter(run: Path, record: Record) -> Path | None:
    """Folder of the initial adapter that a run, or the one whose adapter it continues, subtracted from its base (PiSSA)."""
    folder = run / INITIAL_ADAPTER
    if folder.is_dir():
        return folder
    if record["adapter"]["start"] != "continue":
        return None
    model = record["config"]["model"]
    earlier, _ = _split_step(open_path(model["adapter"] or model["path"]))
    earlier_record = read_record(earlier) or {}
    return _initial_adapter(earlier, earlier_record) if earlier_record.get("adapter") else None


def _recorded_base(run: Path, record: Record, weights: bool) -> ModelSource:
    """The model below the adapter of a run, where its record has it. Raises InputError."""
    model = record["config"]["model"]
    names = ("path", "revision", "adapter", "adapter_revision")
    try:
        base = find_model(WeightsOptions(**{name: model[name] for name in names}), weights=weights)
    except InputError as error:
        raise InputError(
            f"{run} holds an adapter on top of {model['path']}: {error} {_BASE_ELSEWHERE.format(run)}"
        ) from error
    return base.adapter.base if record["adapter"]["start"] == "continue" and base.adapter else base


def _adapter_alone(options: WeightsOptions, weights: bool) -> ModelSource:
    """The model of a path that holds an adapter only: its adapter_config.json names the base."""
    home = open_folder(options.path, options.revision)
    base_path, revision = read_adapter_base(home)
    if base_path is None:
        raise InputError(
            f"{options.path} holds an adapter, and base_model_name_or_path in its adapter_config.json is empty. Pass the base: "
            f"`--model.path BASE --model.adapter {options.path}`."
        )
    try:
        base = find_model(WeightsOptions(base_path, revision), weights=weights)
    except InputError as error:
        raise InputError(
            f"{options.path} holds an adapter of {base_path}: {error} {_BASE_ELSEWHERE.format(options.path)}"
        ) from error
    return _on_top(base, home, options.path)


def _with_adapter(base: ModelSource, adapter: str, revision: str | None, weights: bool) -> ModelSource:
    """`base` with the adapter that `model.adapter` names: a PEFT folder, a hub id, or a run that trained one."""
    check_readable(adapter)
    run, step = _split_step(open_path(adapter))
    if (run / MODEL_FOLDER).is_dir():
        source = replace(_open_source(adapter, run, run, step), adapter=_run_adapter(run, lambda _: base))
        if source.adapter is None:
            raise InputError(
                f"model.adapter: expected an adapter, got {adapter}, a run that trained all weights. Pass it as model.path."
            )
        _check_same_model(base, source)
        return source
    folder = open_folder(adapter, revision)
    if not holds_adapter_only(list_names(folder)):
        raise InputError(
            f"model.adapter: expected a folder with adapter_config.json and adapter_model.safetensors, got {adapter} with "
            f"{join_items(list_names(folder), 6) or 'no files'}. A model goes to model.path."
        )
    return _on_top(base, folder, adapter)


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


def _on_top(base: ModelSource, folder: Path, asked: str) -> ModelSource:
    """A model and a PEFT adapter as one source; the tokenizer is the adapter's where its folder has one."""
    spec = read_adapter_config(folder, base.model_config).spec
    return replace(
        base,
        asked=asked,
        folder=_overlay(base.folder, folder),
        weights=folder,
        run=None,
        step=None,
        adapter=_exported_adapter(AdapterSource(spec, base, folder=folder), read_record(folder) or {}),
    )


def _exported_adapter(adapter: AdapterSource, record: Record) -> AdapterSource:
    """The adapter with the base format of the run that trained it, where its folder has the record of an export."""
    trained = [link["adapter"] for link in chain(record) if isinstance(link.get("adapter"), dict)]
    facts: dict[str, Any] = trained[-1] if trained else {}
    base_format, block_size = facts.get("base_format"), facts.get("block_size")
    if base_format not in get_args(BaseFormat) or type(block_size) is not int or block_size < 1:
        return adapter
    return replace(adapter, base_format=base_format, block_size=block_size)


def _overlay(base: LocalPath, adapter: Path) -> LocalPath:
    """A folder with the small files of a model, and the tokenizer and chat template that an adapter's folder has beside it."""
    names = set(list_names(adapter))
    copied = [name for name in _COPIED if name in names and name != "config.json"]
    if not copied:
        return base
    folder = LocalPath(tempfile.mkdtemp(prefix="zephyr-jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    replaced: set[str] = set()
    if names.intersection(("tokenizer.json", "tokenizer.model")):
        replaced = {*TOKENIZER_FILES, *_TEMPLATES, "tekken.json"}
    elif names.intersection(_TEMPLATES):
        replaced = set(_TEMPLATES)
    kept = [name for name in _COPIED if name not in replaced]
    for origin, files in ((base, kept), (local_copy(adapter, _COPIED), copied)):
        for name in files:
            path = origin / name
            if path.is_dir():
                shutil.copytree(path, folder / name, dirs_exist_ok=True)
            elif path.exists():
                shutil.copy(path, folder / name)
    return folder


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
