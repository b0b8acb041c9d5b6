"""The weights of an export: all of a model, with its adapter merged, or the adapter alone in PEFT's format."""

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from zephyr_jax.checkpoint.hf.export import export_adapter_folder, export_folder
from zephyr_jax.checkpoint.hf.peft_config import PeftAdapter
from zephyr_jax.checkpoint.hf.peft_files import fused_modules
from zephyr_jax.checkpoint.inheritance import inherit_model
from zephyr_jax.checkpoint.model_source import AdapterSource, ModelSource
from zephyr_jax.checkpoint.opened import OpenedModel
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.checkpoint.weights import Layout, load_adapter_alone, load_merged, load_weights
from zephyr_jax.config.models import ExportConfig
from zephyr_jax.config.sections import BaseFormat, WeightsOptions, is_unset
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.model.weight_format import WeightFormat
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.storage.files import Path, absolute_path, open_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """Loaded weights, and how to write them."""

    parameters: Parameters
    facts: dict[str, Any]
    """Fields of the export's record; empty for a model without an adapter."""
    dtype: str
    write: Callable[[Path, dict[str, Any]], None]
    """Writes the folder, with further files by name; called by all processes."""


def load_contents(opened: OpenedModel, config: ExportConfig) -> Contents:
    """Read the weights that `config` asks for. Raises InputError, for settings that do not fit the model before any are read."""
    return _adapter(opened, config) if config.format == "adapter" else _merged(opened, config)


def _merged(opened: OpenedModel, config: ExportConfig) -> Contents:
    source, dtype = opened.source, str(config.dtype)
    adapter = source.adapter
    if adapter:
        facts = {"format": config.format, "merge_into": config.merge_into}
        parameters = _merge(opened, adapter, config)
    else:
        if config.merge_into == "stored":
            raise InputError(
                f"merge_into is `stored`, and {source.asked} has no adapter to merge. Leave merge_into unset, or pass the "
                "adapter: `--model.adapter FOLDER_OR_ID`."
            )
        facts, parameters = {}, opened.load_weights()

    def write(out: Path, files: dict[str, Any]) -> None:
        hf_config = files["config.json"]
        max_file_bytes = int(config.max_shard_gib * 2**30)
        export_folder(
            out, parameters, source.model_config, hf_config, files, dtype=dtype, max_file_bytes=max_file_bytes
        )

    return Contents(parameters, facts, dtype, write)


def _merge(opened: OpenedModel, adapter: AdapterSource, config: ExportConfig) -> Parameters:
    """Weights with the adapter merged: bfloat16 where they are written so, which is half the memory of float32."""
    source = opened.source
    base_format: BaseFormat = "bfloat16" if config.dtype == "bfloat16" else "float32"
    layout = Layout.of(source.model_config, WeightFormat(base_format=base_format), opened.rules)
    stored = adapter.weight_format
    name, asked = stored.name if stored else "an unknown format", adapter.base.asked
    if config.merge_into == "original":
        changes = stored is not None and stored.base_format != "float32"
        difference = f"; training computed with these weights as {name}, so outputs differ by that rounding"
        _log(f"merging the adapter into the original weights of {asked}{difference if changes else ''}")
        return load_weights(source, layout)
    if stored is None or stored.base_format == "float32":
        reason = f"training stored the weights below the adapter of {source.asked} as {name}"
        effect = "so that what it computed with is not known" if stored is None else "which rounds nothing"
        raise InputError(f"merge_into is `stored`, and {reason}, {effect}. Leave merge_into unset.")
    _log(
        f"merging the adapter into the weights of {asked} as training stored them, rounded to {name}; outputs are those of the "
        "trained model"
    )
    options = inherit_model("export", opened.options, source)
    return load_merged(source, layout, jnp.dtype(str(options.compute_dtype)))


def _adapter(opened: OpenedModel, config: ExportConfig) -> Contents:
    source, dtype = opened.source, "float32" if is_unset(config.dtype) else str(config.dtype)
    if source.adapter is None:
        raise InputError(
            f"format is `adapter`, and {source.asked} has none: all of its weights were trained. Pass a run with an adapter "
            "(`--adapter.rank`), or leave format unset."
        )
    fused = fused_modules(source.model_config, source.adapter.spec.targets)
    if fused:
        raise InputError(
            f"format is `adapter`, and a {source.model_config.model_type} has {join_items(fused)} in peft, where the adapter of "
            f"{source.asked} has separate projections. Leave format unset to export the merged weights."
        )
    base, revision = _base_of(source, source.adapter, config)
    spec, parameters = load_adapter_alone(source, opened.rules)
    named = find_model(WeightsOptions(base)) if config.base and open_path(base).is_dir() else source.adapter.base
    peft = PeftAdapter(spec=spec, base=base, revision=revision, has_images=named.has_images)
    facts = {"format": config.format, "base_model": base, "base_revision": revision}

    def write(out: Path, files: dict[str, Any]) -> None:
        small = {name: content for name, content in files.items() if name != "config.json"}
        export_adapter_folder(out, parameters, source.model_config, peft, small, dtype=dtype)

    return Contents(parameters, facts, dtype, write)


def _base_of(source: ModelSource, adapter: AdapterSource, config: ExportConfig) -> tuple[str, str | None]:
    """Folder or hub id, and revision, of the model that adapter_config.json names. Raises InputError without such a model."""
    if config.base:
        _check_base(config.base, source)
        return str(absolute_path(config.base)) if open_path(config.base).is_dir() else config.base, None
    base = adapter.base
    if base.run or base.adapter:
        kind = "the merged weights" if base.adapter else "the weights"
        exact = "" if _is_exact(adapter) else " --dtype float32"
        raise InputError(
            f"The adapter of {source.asked} fits {kind} of {base.asked}; expected a Hugging Face folder or hub id as its base, "
            f"got a model that peft cannot load. Export it first: `zephyr-jax export {_arguments(base)} --output BASE{exact}`, "
            "then add `--base BASE`."
        )
    local = open_path(base.asked).is_dir()
    if local and config.push_to:
        logger.warning(
            "adapter_config.json names the base model %s, a folder of this machine. For other machines pass `--base HUB_ID`.",
            base.asked,
        )
    return (str(absolute_path(base.asked)), None) if local else (base.asked, base.record.get("revision"))


def _check_base(base: str, source: ModelSource) -> None:
    """Raise InputError for a folder with a model of other sizes; a hub id is not asked for."""
    if not open_path(base).is_dir():
        return
    config = find_model(WeightsOptions(base)).model_config
    differing = [
        f"{name}: expected {value}, got {getattr(config, name)}"
        for name, value in vars(source.model_config).items()
        if getattr(config, name) != value
    ]
    if differing:
        raise InputError(
            f"base: the adapter of {source.asked} does not fit {base}: {join_items(differing)}. Pass the model that it was "
            "trained on."
        )


def _is_exact(adapter: AdapterSource) -> bool:
    """Whether bfloat16 holds the base weights as training took them: it rounds merged ones to bfloat16 below other formats."""
    if adapter.base.adapter:
        return adapter.base_format not in (None, "float32")
    return adapter.base_format == "bfloat16"


def _arguments(source: ModelSource) -> str:
    """The options of a command line that name a model."""
    if source.adapter and source.adapter.folder:
        return f"{_arguments(source.adapter.base)} --model.adapter {shlex.quote(source.asked)}"
    return f"--model.path {shlex.quote(source.asked)}"


def _log(text: str) -> None:
    if jax.process_index() == 0:
        logger.info("%s", text)
