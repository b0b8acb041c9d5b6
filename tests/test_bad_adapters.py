"""Mistakes of users with adapters and quantized bases: each ends with exit code 2 and one paragraph, and writes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.desk import Desk, Words, check_refused, open_desk

type Mistake = tuple[Callable[[Desk], Words], tuple[str, ...]]

ON = ("--adapter.rank", 4)
LAYERS, WIDTH, FEED_FORWARD, KEYS = 4, 128, 352, 64
"""Sizes of the tiny model."""


def adapter(desk: Desk, rank: int = 4, width: int = WIDTH, **config: Any) -> Path:
    """A PEFT folder with an adapter of every query projection of a model of this width."""
    folder = desk.home / "adapter"
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = rng.normal(0, 0.1, (rank, width)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.normal(0, 0.1, (width, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def with_adapter(desk: Desk, *overrides: object, **config: Any) -> Words:
    """`sft` on top of a PEFT adapter."""
    return desk.sft("--model.adapter", adapter(desk, **config), *overrides)


def beside(desk: Desk, folder: Path) -> Words:
    """`generate` with the tiny model and what `model.adapter` names."""
    return desk.generate("--prompts", "Hi", "--model.adapter", folder)


def alone(desk: Desk, **config: Any) -> Words:
    """`generate` with a path that holds an adapter only."""
    return ["generate", "--prompts", "Hi", "--model.path", str(adapter(desk, **config))]


def _twice(folder: Path) -> Words:
    return ["--model.path", str(folder), "--model.adapter", str(folder)]


SETTINGS: dict[str, Mistake] = {
    "negative rank": (
        lambda desk: desk.sft("--adapter.rank", -1),
        ("`adapter.rank`", "greater than or equal to 0", "-1"),
    ),
    "rank 0 with a quantized base": (
        lambda desk: desk.sft("--adapter.rank", 0, "--adapter.base_format", "nf4"),
        ("adapter.base_format is nf4", "adapter.rank 0", "--adapter.rank 16"),
    ),
    "no rank with a quantized base": (
        lambda desk: desk.sft("--adapter.base_format", "int8"),
        ("adapter.base_format is int8", "trains all weights in float32", "--adapter.rank 16"),
    ),
    "rank 0 with other settings": (
        lambda desk: desk.sft("--adapter.rank", 0, "--adapter.alpha", 32, "--adapter.targets", "q_proj"),
        ("adapter.alpha is 32", "adapter.targets is q_proj", "adapter.rank 0", "leave them unset"),
    ),
    "no rank with a start": (
        lambda desk: desk.sft("--adapter.start", "merge"),
        ("adapter.start is merge", "--adapter.rank 16"),
    ),
    "rank beyond the smaller side": (
        lambda desk: desk.sft("--adapter.rank", 65),
        ("adapter.rank", "at most 64", "65", "the smaller side of k_proj"),
    ),
    "alpha 0": (lambda desk: desk.sft(*ON, "--adapter.alpha", 0), ("`adapter.alpha`", "greater than 0")),
    "unknown target": (
        lambda desk: desk.sft(*ON, "--adapter.targets", "query"),
        ("'query'", "q_proj", "Remove it or correct it"),
    ),
    "embeddings as targets": (
        lambda desk: desk.sft(*ON, "--adapter.targets", "q_proj", "embed_tokens"),
        ("'embed_tokens'", "Adapters of embed_tokens are not supported", "Remove it"),
    ),
    "no targets": (lambda desk: desk.sft(*ON, "--adapter.targets"), ("targets", "q_proj", "empty list")),
    "blocks of a float format without training": (
        lambda desk: desk.generate("--prompts", "Hi", "--model.block_size", 32),
        ("model.block_size is 32", "float32", "int8, int4 and nf4", "leave model.block_size unset"),
    ),
    "blocks of a float format": (
        lambda desk: desk.sft(*ON, "--adapter.block_size", 32),
        ("adapter.block_size is 32", "bfloat16", "int8, int4 and nf4", "leave adapter.block_size unset"),
    ),
    "blocks that do not divide": (
        lambda desk: desk.sft(*ON, "--adapter.base_format", "nf4", "--adapter.block_size", 48),
        ("block_size", "divisor", "got 48", "--adapter.block_size"),
    ),
    "blocks that do not divide a shard": (
        lambda desk: desk.sft(*ON, "--adapter.base_format", "nf4", "--adapter.block_size", 32),
        (
            "block_size: expected a divisor of the 16 inputs of decoder.",
            "on each device, got 32",
            "--adapter.block_size 16",
        ),
    ),
    "gradients coarser than the computation": (
        lambda desk: desk.sft(*ON, "--optimizer.grad_dtype", "bfloat16"),
        ("optimizer.grad_dtype is bfloat16", "model.compute_dtype float32"),
    ),
    "saved logits that no backward pass reads": (
        lambda desk: desk.sft(*ON, "--model.save_logits"),
        ("model.save_logits is true", "adapter.rank", "Remove model.save_logits"),
    ),
    "format of another command": (
        lambda desk: desk.sft("--model.base_format", "nf4"),
        ("model.base_format",),
    ),
    "start without an adapter": (
        lambda desk: desk.sft(*ON, "--adapter.start", "merge"),
        ("adapter.start", "merge", "no adapter"),
    ),
    "revision of no adapter": (
        lambda desk: desk.sft("--model.adapter_revision", "main"),
        ("model.adapter_revision", "without `model.adapter`"),
    ),
    "format of weights that are not loaded": (
        lambda desk: ["preview", "--model.path", str(desk.tiny), "--model.base_format", "nf4"],
        ("base_format",),
    ),
    "unknown format": (
        lambda desk: ["sft", "--config", str(desk.file("own.yaml", "adapter:\n  base_format: fp8\n"))],
        ("`adapter.base_format`", "'nf4'", "'fp8'"),
    ),
    "format in a card": (
        lambda desk: ["sft", "--config", str(desk.file("own.yaml", "model:\n  base_format: nf4\n"))],
        ("`model.base_format` is not a setting", "Known here", "model.path"),
    ),
}

FOLDERS: dict[str, Mistake] = {
    "adapter nowhere": (
        lambda desk: beside(desk, desk.home / "nowhere"),
        ("nowhere' is not a local folder", "Check the spelling"),
    ),
    "a model as adapter": (
        lambda desk: beside(desk, desk.model()),
        ("model.adapter", "adapter_config.json", "model.safetensors", "model.path"),
    ),
    "a run that trained all weights as adapter": (
        lambda desk: beside(desk, Path(shutil.copytree(desk.tiny, desk.home / "run" / "model")).parent),
        ("model.adapter", "expected an adapter", "a run that trained all weights"),
    ),
    "adapter of a wider model": (
        lambda desk: beside(desk, adapter(desk, width=256)),
        ("q_proj.lora_A", "(4, 128)", "(4, 256)", "base model"),
    ),
    "adapter on itself": (
        lambda desk: ["generate", "--prompts", "Hi", *_twice(adapter(desk, base_model_name_or_path=str(desk.tiny)))],
        ("would be added twice", "--model.path BASE --model.adapter"),
    ),
    "adapter that names itself": (
        lambda desk: alone(desk, base_model_name_or_path=str(desk.home / "adapter")),
        ("names itself as its base", "adapter_config.json", "--model.path BASE --model.adapter"),
    ),
    "adapter without a base": (
        lambda desk: alone(desk),
        ("base_model_name_or_path", "--model.path BASE --model.adapter"),
    ),
    "adapter of a base that is nowhere": (
        lambda desk: alone(desk, base_model_name_or_path="no/base"),
        ("an adapter of no/base", "--model.path BASE --model.adapter"),
    ),
    "DoRA": (lambda desk: beside(desk, adapter(desk, use_dora=True)), ("`use_dora`", "True", "merge_and_unload")),
    "trained biases": (lambda desk: beside(desk, adapter(desk, bias="all")), ("`bias`", "'all'", "'none'")),
    "adapter of a classifier": (
        lambda desk: beside(desk, adapter(desk, task_type="SEQ_CLS")),
        ("`task_type`", "'CAUSAL_LM' or null", "'SEQ_CLS'", "Choose an adapter of"),
    ),
    "modules beside the adapter": (
        lambda desk: beside(desk, adapter(desk, modules_to_save=["lm_head"])),
        ("`modules_to_save`", "lm_head", "Choose an adapter without it"),
    ),
    "another rank than the adapter's": (
        lambda desk: with_adapter(desk, "--adapter.rank", 8, "--adapter.alpha", 8, "--adapter.targets", "q_proj"),
        ("adapter.rank: expected 4, got 8", "--adapter.start merge"),
    ),
    "other targets than the adapter's": (
        lambda desk: with_adapter(desk, "--adapter.rank", 4, "--adapter.alpha", 8),
        ("adapter.targets: expected q_proj, got q_proj, k_proj, v_proj, o_proj, gate_proj", "--adapter.start merge"),
    ),
    "another alpha than the adapter's": (
        lambda desk: with_adapter(desk, "--adapter.alpha", 32),
        ("adapter.alpha: expected 8.0, got 32", "--adapter.start merge"),
    ),
    "initial values of an adapter that continues": (
        lambda desk: with_adapter(desk, "--adapter.init", "pissa"),
        ("adapter.init", "pissa", "--adapter.start merge"),
    ),
    "merge without a new rank": (
        lambda desk: with_adapter(desk, "--adapter.start", "merge"),
        ("adapter.start is `merge` without adapter.rank", "--adapter.rank 16"),
    ),
    "rank 0 and continue": (
        lambda desk: with_adapter(desk, "--adapter.rank", 0, "--adapter.base_format", "nf4"),
        ("adapter.base_format is nf4", "adapter.rank 0"),
    ),
}


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A fresh desk, offline, with a cache of its own."""
    return open_desk(tmp_path, tiny_model, monkeypatch)


@pytest.mark.parametrize("name", SETTINGS | FOLDERS)
def test_a_mistake_with_adapters_is_refused(name: str, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: bad input exits 2; one paragraph names the values and the remedy; no file is new or changed."""
    do, says = (SETTINGS | FOLDERS)[name]
    check_refused(do(desk), says, desk, capsys)
