"""A located model: its small files, where its weights are, and the adapter on top of the model below it."""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path as LocalPath
from typing import Any

from zephyr_jax.chat.tokenizer_files import TRAINING_TEMPLATE
from zephyr_jax.checkpoint.hf.card import CARD, card_metadata
from zephyr_jax.checkpoint.hf.folder import CHAT_TEMPLATES, TOKENIZER_FILES
from zephyr_jax.checkpoint.hf.weight_files import INDEX, SINGLE
from zephyr_jax.checkpoint.provenance import Record, read_record
from zephyr_jax.checkpoint.steps import FOLDER
from zephyr_jax.config.sections import BaseFormat
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.registry import config_from_hf
from zephyr_jax.model.families.wrappers import text_config
from zephyr_jax.model.lora import LoraSpec
from zephyr_jax.model.weight_format import WeightFormat
from zephyr_jax.storage.files import Path, list_names, local_copy
from zephyr_jax.storage.strict_json import read_json

MODEL_FOLDER = "model"
"""Inside a run: config.json, generation_config.json and the files of the tokenizer that it trains with."""
INITIAL_ADAPTER = "initial_adapter"
"""Inside a run whose adapter started from singular vectors (PiSSA): that adapter, in PEFT's format."""
_BESIDE_WEIGHTS = ("config.json", "generation_config.json", *TOKENIZER_FILES)
SMALL_FILES = (*_BESIDE_WEIGHTS, CHAT_TEMPLATES, TRAINING_TEMPLATE, "tekken.json", CARD)
_TEMPLATES = ("chat_template.jinja", "chat_template.json", CHAT_TEMPLATES, TRAINING_TEMPLATE)


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
        commit, architecture = hub_commit(self.weights), self.hf_config.get("model_type")
        facts = {"path": self.asked, "revision": commit, "architecture": architecture, **card_metadata(self.folder)}
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


def hub_commit(folder: Path) -> str | None:
    """The commit that a folder of the hub client's cache holds; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def open_source(asked: str, home: Path, run: Path | None, step: int | None) -> ModelSource:
    """The files of a model, without the adapter of a run. Raises InputError."""
    folder = local_copy(home / MODEL_FOLDER if run else home, SMALL_FILES)
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


def split_step(path: Path) -> tuple[Path, int | None]:
    """A run and a step of it, of RUN/checkpoints/STEP; any other path and None."""
    if path.parent.name == FOLDER and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def overlay(base: LocalPath, adapter: Path) -> LocalPath:
    """A folder with the small files of a model, and the tokenizer and chat template that an adapter's folder has beside it."""
    names = set(list_names(adapter))
    copied = [name for name in SMALL_FILES if name in names and name != "config.json"]
    if not copied:
        return base
    folder = LocalPath(tempfile.mkdtemp(prefix="zephyr-jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    replaced: set[str] = set()
    if names.intersection(("tokenizer.json", "tokenizer.model")):
        replaced = {*TOKENIZER_FILES, *_TEMPLATES, "tekken.json"}
    elif names.intersection(_TEMPLATES):
        replaced = set(_TEMPLATES)
    kept = [name for name in SMALL_FILES if name not in replaced]
    for origin, files in ((base, kept), (local_copy(adapter, SMALL_FILES), copied)):
        for name in files:
            path = origin / name
            if path.is_dir():
                shutil.copytree(path, folder / name, dirs_exist_ok=True)
            elif path.exists():
                shutil.copy(path, folder / name)
    return folder
