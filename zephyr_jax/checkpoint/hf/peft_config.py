"""adapter_config.json of a PEFT adapter: its fields read, checked and written.

Only LoRA as `model.lora` computes it is read. A field that asks for anything else is an error that names it, and so is a field of
a later version of peft with a value.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from zephyr_jax.checkpoint.hf.peft_files import AdapterFile
from zephyr_jax.checkpoint.hf.weight_files import ADAPTER
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import HfFields, Number, Size, parse_fields
from zephyr_jax.model.families.targets import module_name, projections_of
from zephyr_jax.model.families.wrappers import TEXT_MODULE, whole_name
from zephyr_jax.model.lora import LoraSpec
from zephyr_jax.storage.files import Path
from zephyr_jax.storage.strict_json import read_json

_OTHER_VALUES = (
    "Choose an adapter without it, or merge it into its base with peft (`merge_and_unload`) and use the merged folder."
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {"peft_type": ("LORA",), "bias": ("none",), "task_type": ("CAUSAL_LM",)}
"""Values that leave the computation as it is, besides those of `_is_empty`."""
_INITIAL_VALUES = (True, False, "gaussian", "orthogonal", "eva")
"""Initializations that leave the base weights as they are."""
_MATCH_SECONDS = 10
_MATCHER = (
    "import json, re, sys; pattern, names = json.load(sys.stdin); "
    "json.dump([name for name in names if re.fullmatch(pattern, name)], sys.stdout)"
)
_EMBEDDINGS = ("model.embed_tokens", "lm_head")
_RESIDUAL_VALUES = re.compile(r"pissa(_niter_\d+)?|olora|corda|loftq|lora_ga", re.IGNORECASE)
"""Initializations after which the base weights are others, so that the adapter fits only those."""
_NO_EFFECT = frozenset(
    {
        "auto_mapping",
        "corda_config",  # this and the next three: used with an `init_lora_weights` of that name only
        "eva_config",
        "loftq_config",
        "lora_ga_config",
        "ensure_weight_tying",
        "inference_mode",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "runtime_config",
    }
)
"""Fields that decide nothing about the values of an adapter that is computed or trained without dropout."""


class PeftFields(HfFields):
    """Fields of adapter_config.json that are in effect."""

    peft_type: str
    r: Size
    lora_alpha: Number
    target_modules: list[str] | str
    exclude_modules: list[str] | str | None = None
    use_rslora: bool | None = None
    init_lora_weights: bool | str | None = True
    base_model_name_or_path: str | None = None
    revision: str | None = None
    lora_dropout: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """An adapter folder: what it holds, and the base model that it names."""

    spec: LoraSpec
    base: str | None
    """Path or hub id."""
    revision: str | None
    """Branch, tag or commit of a hub id."""
    has_images: bool = False
    """Whether the base is a model of images and text, in which the adapted modules have other names."""
    dropout: float = 0.0
    """Dropout of its training, which is not applied."""


def read_adapter_config(folder: Path, config: ModelConfig) -> PeftAdapter:
    """Read adapter_config.json and check it and the headers of the weights against the base model.

    Args:
        folder: The adapter's folder.
        config: Of the base model.

    Raises:
        InputError: The adapter is damaged, of another base model, or anything else than plain LoRA on an unchanged base.
    """
    fields = _read_fields(folder)
    file = AdapterFile(folder, config)
    _check_targets(folder, fields, file, config)
    spec = LoraSpec(
        rank=fields.r, alpha=float(fields.lora_alpha), targets=file.targets, use_rslora=bool(fields.use_rslora)
    )
    file.check(spec)
    return PeftAdapter(
        spec=spec,
        base=fields.base_model_name_or_path or None,
        revision=fields.revision or None,
        has_images=file.text_prefix is not None,
        dropout=fields.lora_dropout or 0.0,
    )


def read_adapter_base(folder: Path) -> tuple[str | None, str | None]:
    """Path or hub id, and revision, of the base model that an adapter's folder names.

    Raises:
        InputError: adapter_config.json is missing, malformed, or asks for anything else than plain LoRA on an unchanged base.
    """
    fields = _read_fields(folder)
    return fields.base_model_name_or_path or None, fields.revision or None


def _read_fields(folder: Path) -> PeftFields:
    path = folder / ADAPTER
    content = read_json(path)
    for name in sorted(content, key="peft_type".__ne__):  # peft_type first: the other fields depend on it
        _check_supported(path, name, content[name])
    fields = parse_fields(PeftFields, content, str(path))
    _check_initial_values(path, fields.init_lora_weights)
    return fields


def _check_supported(path: Path, name: str, value: Any) -> None:
    neutral = _NEUTRAL.get(name, ())
    in_effect = name in PeftFields.model_fields and name not in _NEUTRAL
    if not (in_effect or name in _NO_EFFECT or value in neutral or _is_empty(value)):
        expected = " or ".join(map(repr, neutral)) or "null, false or an empty value"
        reason = f"Only plain LoRA is implemented; this adapter would compute other values. {_OTHER_VALUES}"
        if name == "task_type":
            expected += " or null"
            reason = "Only causal language models are implemented. Choose an adapter of one."
        raise InputError(
            f"Unsupported `{name[:80]}` in {path}: expected {expected}, got {truncate_repr(value)}. {reason}"
        )


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _check_initial_values(path: Path, value: bool | str | None) -> None:
    if value is None or value in _INITIAL_VALUES:
        return
    reason = f"this initialization is unknown. {_OTHER_VALUES}"
    if _RESIDUAL_VALUES.fullmatch(str(value)):
        reason = (
            "it subtracts the initial adapter from the base weights, so the adapter is one of that other base. Convert it to an "
            "adapter of the plain base (peft: `save_pretrained` with `path_initial_model_for_weight_conversion`), or merge it "
            "into its base (`merge_and_unload`) and use the merged folder."
        )
    expected = "true, false, gaussian, orthogonal or eva"
    raise InputError(
        f"Unsupported `init_lora_weights` in {path}: expected {expected}, got {truncate_repr(value)}: {reason}"
    )


def _check_targets(folder: Path, fields: PeftFields, file: AdapterFile, config: ModelConfig) -> None:
    """Raise InputError unless `target_modules` selects, in all layers, the projections that have tensors."""
    has_images, prefix = file.text_prefix is not None, file.text_prefix or ""
    embeddings = [whole_name(name, has_images, prefix) for name in _EMBEDDINGS]
    modules = {
        whole_name(tensor.module.format(layer), has_images, prefix): target
        for target, tensor in projections_of(config).items()
        for layer in range(config.num_layers)
    }
    stored = {module for module, target in modules.items() if target in file.targets}
    if isinstance(fields.target_modules, str) and fields.target_modules.lower() == "all-linear":
        selected = set(modules)
    else:
        selected = _named(folder, "target_modules", fields.target_modules, [*modules, *embeddings])
    selected -= _named(folder, "exclude_modules", fields.exclude_modules or [], list(selected))
    differing = [module for module in (*modules, *embeddings) if module in selected ^ stored]
    if differing:
        reason = "has no tensors" if differing[0] in selected else "has tensors"
        raise InputError(
            f"target_modules and weights in {folder} differ in {len(differing)} modules: {differing[0]} {reason}, and "
            f"target_modules is {truncate_repr(fields.target_modules)} (exclude_modules: "
            f"{truncate_repr(fields.exclude_modules)}). Take {ADAPTER} and weights from the same adapter."
        )


def _named(folder: Path, field: str, names: list[str] | str, modules: list[str]) -> set[str]:
    """The modules, by full name, that a list of names or of ends of names selects, or a regular expression, as in peft."""
    if not isinstance(names, str):
        return {module for module in modules if any(f".{module}".endswith(f".{name}") for name in names)}
    # The expression is a stranger's, and Python's matcher may take forever and cannot be interrupted inside a process.
    command = [sys.executable, "-I", "-S", "-c", _MATCHER]
    try:
        result = subprocess.run(
            command,
            input=json.dumps([names, modules]),
            capture_output=True,
            text=True,
            timeout=_MATCH_SECONDS,
            check=True,
        )
    except subprocess.SubprocessError as error:
        reason = (getattr(error, "stderr", None) or f"no result after {_MATCH_SECONDS} s").strip().rpartition("\n")[2]
        raise InputError(
            f"Invalid {field} in {folder / ADAPTER}: expected a list of module names or a regular expression, got "
            f"{truncate_repr(names)} ({reason[:100]}). Set it to the list of names, such as q_proj and v_proj."
        ) from error
    return set(json.loads(result.stdout))


def adapter_config(config: ModelConfig, adapter: PeftAdapter) -> dict[str, Any]:
    """The content of adapter_config.json that peft and vLLM read as this adapter.

    Args:
        config: Of the base model.
        adapter: The adapter.
    """
    spec, projections = adapter.spec, projections_of(config)
    modules: list[str] | str = [module_name(projections[name]).rpartition(".")[2] for name in spec.targets]
    if adapter.has_images:  # the model of images has modules of the same names
        names = "|".join(re.escape(module_name(projections[name])) for name in spec.targets)
        modules = rf"{re.escape(TEXT_MODULE)}layers\.\d+\.({names})"
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "revision": adapter.revision,
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if spec.alpha == int(spec.alpha) else spec.alpha,  # peft's type is int
        "use_rslora": spec.use_rslora,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "inference_mode": True,
    }
