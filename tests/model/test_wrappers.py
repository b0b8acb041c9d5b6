"""Models of images and text: the text model in them loads as if it stood alone, and is exported alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

from tests.checkpoint.adapters import build, loaded, read, write
from tests.model.test_families import config_of
from tests.model.test_family_folders import export
from tests.models import load, logits, make_rules, whole_rows
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.opened import open_model
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.checkpoint.weights import check_weights
from zephyr_jax.cli import main
from zephyr_jax.config.models import ExportConfig
from zephyr_jax.config.sections import ModelOptions, WeightsOptions
from zephyr_jax.errors import InputError
from zephyr_jax.export.contents import load_contents
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families import registry
from zephyr_jax.model.families.registry import config_from_hf, config_to_hf
from zephyr_jax.model.families.wrappers import text_config

GEMMA, MINISTRAL, MISTRAL = "gemma3", "ministral3", "mistral"
PUBLISHED = ("language_model.model.", "language_model.lm_head.", "")
NEW = ("model.language_model.", "lm_head.", "model.")
"""Prefix of the text model, name of its unembedding, prefix of the image encoder: of published files, and of transformers 5."""
BESIDE = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
GEMMA_4B = {
    "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024,
    "model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
}  # fmt: skip
"""All that the published file has in its text_config."""


def wrapped(text: Path, out: Path, form: tuple[str, str, str] = PUBLISHED) -> Path:
    """A model of images around the text model of a folder, with two tensors of its image encoder."""
    shutil.copytree(text, out)
    inner = json.loads((text / "config.json").read_text())
    kind = "gemma3" if inner["model_type"] == "gemma3_text" else "mistral3"
    outer = {name: inner.pop(name) for name in BESIDE if inner.get(name) is not None}
    config = {"model_type": kind, **outer, "text_config": inner, "vision_config": {"hidden_size": 8}}
    (out / "config.json").write_text(json.dumps(config))
    model, head, images = form
    tensors = {
        f"{images}vision_tower.patch_conv.weight": np.ones((3, 2), np.float32),
        f"{images}multi_modal_projector.mm_soft_emb_norm.weight": np.ones(4, np.float32),
    }
    for name, value in load_file(text / "model.safetensors").items():
        new = name.replace("model.", model, 1) if name.startswith("model.") else name.replace("lm_head.", head)
        tensors[new] = value
    save_file(tensors, out / "model.safetensors")
    return out


def model_config(folder: Path) -> ModelConfig:
    return find_model(ModelOptions(path=str(folder))).model_config


@pytest.mark.parametrize("name", [GEMMA, MINISTRAL])
def test_its_text_model_is_that_of_a_text_folder(golden: Path, name: str, tmp_path: Path) -> None:
    """Logits bit for bit, weights in both forms of names; the export is the text model and reloads."""
    text = golden / "families" / name
    folders = [wrapped(text, tmp_path / str(number), form) for number, form in enumerate((PUBLISHED, NEW))]
    rows = whole_rows(np.load(text / "golden.npz")["tokens"])
    ours, alone = load(folders[0]), load(text)
    np.testing.assert_array_equal(logits(ours, rows), logits(alone, rows))
    expected = weights_fingerprint(alone.parameters)
    assert [weights_fingerprint(load(folder).parameters) for folder in folders] == [expected] * 2
    out = export(folders[1], tmp_path / "out")
    written = json.loads((out / "config.json").read_text())
    original = json.loads((text / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == (original["model_type"], original["architectures"])
    assert not {"text_config", "vision_config"} & written.keys()
    assert model_config(out) == model_config(text) == model_config(folders[0])
    before, after = (load_file(folder / "model.safetensors") for folder in (text, out))
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("gemma3", GEMMA_4B),
        ("gemma3", None),
        ("gemma3", {key: value for key, value in GEMMA_4B.items() if key != "model_type"}),
        ("mistral3", None),
        ("mistral3", {}),
        ("mistral3", {"model_type": "ministral3"}),
        ("mistral3", {"model_type": "mistral", "head_dim": 128, "num_attention_heads": 16, "sliding_window": None}),
    ],
)
def test_absent_fields_are_those_of_transformers(kind: str, text: dict[str, Any] | None, tmp_path: Path) -> None:
    """As read, and as exported for the text model alone."""
    config = {"model_type": kind, "text_config": text, "eos_token_id": [1, 106]}
    config = {name: value for name, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoConfig.from_pretrained(tmp_path).text_config
    ours = config_from_hf(config)
    assert ours == config_from_hf(theirs.to_dict())
    written = config_to_hf(config, ours)
    assert written["eos_token_id"] == [1, 106]
    (tmp_path / "config.json").write_text(json.dumps(written))
    alone = AutoConfig.from_pretrained(tmp_path)
    assert type(alone) is type(theirs) and config_from_hf(alone.to_dict()) == ours == config_from_hf(written)


@pytest.mark.parametrize(("outer", "inner", "tied"), [(True, False, True), (False, True, False), (None, True, True)])
def test_the_whole_model_decides_on_tied_embeddings(outer: bool | None, inner: bool, tied: bool) -> None:
    """transformers 5 asks the whole model; files of older versions have the field in text_config."""
    text = {"model_type": "ministral3", "tie_word_embeddings": inner}
    config = config_from_hf({"model_type": "mistral3", "text_config": text, "tie_word_embeddings": outer})
    assert config.tie_embeddings == tied


def test_one_line_names_the_part_that_is_loaded(caplog: pytest.LogCaptureFixture) -> None:
    registry._log_once.cache_clear()
    with caplog.at_level("INFO"):
        config_from_hf({"model_type": "gemma3", "text_config": GEMMA_4B})
        config_from_hf({"model_type": "gemma3", "text_config": GEMMA_4B})
    expected = "config.json: gemma3 has images, too; its text model (gemma3_text) alone is loaded"
    assert [line for line in caplog.messages if "images" in line] == [expected]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mistral3", "text_config": {"model_type": "mixtral"}}, r"text_config\.model_type 'mixtral'.*mixture"),
        (
            {"model_type": "mistral3", "text_config": {"model_type": "ministral3", "n_routed_experts": 128}},
            "n_routed_experts 128.*mixture-of-experts",
        ),
        ({"model_type": "llava", "text_config": {"model_type": "x", "num_local_experts": 8}}, "num_local_experts 8.*mixture"),
        (config_of({"num_experts": 8}, "qwen3"), "num_experts 8.*mixture"),
        ({"model_type": "llava", "text_config": {"model_type": "llama"}}, r"'llava' in config.*mistral3 with such a text_config"),
        ({"model_type": "mistral3", "text_config": {"model_type": "qwen9"}}, r"text_config\.model_type 'qwen9'"),
        ({"model_type": "mistral3", "text_config": {"model_type": ["mistral"]}}, r"text_config\.model_type \['mistral'\]"),
        ({"model_type": "gemma3", "text_config": [1]}, r"text_config.*expected an object, got \[1\]"),
        ({"model_type": "gemma3", "text_config": GEMMA_4B, "quantization_config": {"bits": 4}}, "`quantization_config`"),
        ({"model_type": "gemma3", "text_config": GEMMA_4B | {"use_bidirectional_attention": True}}, "bidirectional"),
    ],
)  # fmt: skip
def test_what_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_from_hf(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("twice", r"tensor of the text model twice: .*embed_tokens\.weight"),
        ("missing", r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)"),
        ("unknown", r"1 unknown \(audio_tower\.weight\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(golden: Path, tmp_path: Path, change: str, message: str) -> None:
    folder = wrapped(golden / "families" / MINISTRAL, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    if change == "twice":
        tensors["model.language_model.embed_tokens.weight"] = tensors["language_model.model.embed_tokens.weight"]
    if change == "missing":
        del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    if change == "unknown":
        tensors["audio_tower.weight"] = np.ones(2, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=message):
        check_weights(find_model(ModelOptions(path=str(folder))))


def test_the_field_that_ties_an_unembedding_of_the_file_is_named(golden: Path, tmp_path: Path) -> None:
    """transformers 5 writes its default `true` beside a text_config with `false`; the fix in the message loads the folder."""
    folder = wrapped(golden / "families" / MINISTRAL, tmp_path / "model", NEW)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["tie_word_embeddings"] = False
    file.write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(
        InputError, match=r"sets tie_word_embeddings beside text_config to true.*Set tie_\w+ beside text_config"
    ):
        check_weights(find_model(ModelOptions(path=str(folder))))
    file.write_text(json.dumps(config | {"tie_word_embeddings": False}))
    check_weights(find_model(ModelOptions(path=str(folder))))
    config.pop("tie_word_embeddings", None)
    config["text_config"]["tie_word_embeddings"] = True
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match="sets tie_word_embeddings in text_config to true"):
        check_weights(find_model(ModelOptions(path=str(folder))))


@pytest.mark.parametrize("form", [PUBLISHED, NEW], ids=["published", "new"])
@pytest.mark.parametrize("targets", ["list", "pattern"])
def test_an_adapter_of_the_whole_model_is_read(
    golden: Path, tmp_path: Path, form: tuple[str, str, str], targets: str
) -> None:
    """PEFT names modules below `language_model`, and adapts those of images that have the same names."""
    built = build(model_config(golden / "families" / MINISTRAL), ("attention.query", "feed_forward.down"))
    folder = write(built, tmp_path / "adapter")
    file, prefix = folder / "adapter_model.safetensors", "base_model.model."
    tensors = {name.replace(f"{prefix}model.", prefix + form[0]): value for name, value in load_file(file).items()}
    for part in "AB":
        tensors[f"{prefix}{form[2]}vision_tower.layers.0.q_proj.lora_{part}.weight"] = np.ones((4, 4), np.float32)
    save_file(tensors, file)
    if targets == "pattern":
        config = json.loads((folder / "adapter_config.json").read_text())
        config["target_modules"] = r".*language_model.*\.(q_proj|down_proj)"
        (folder / "adapter_config.json").write_text(json.dumps(config))
    adapter = read(folder, built.config)
    assert adapter == replace(built.adapter, has_images=True)
    again = loaded(folder, built)
    for group, name in (("attention", "query"), ("feed_forward", "down")):
        for part, value in built.parameters["decoder"][group][name].items():
            np.testing.assert_array_equal(again["decoder"][group][name][part], value)


def test_an_adapter_is_exported_for_its_base(golden: Path, tmp_path: Path) -> None:
    """On the whole model with its module names and none of images, on the text model with those of the text model."""
    text = golden / "families" / GEMMA
    whole = wrapped(text, tmp_path / "whole")
    built = build(model_config(text), ("attention.query", "feed_forward.down"))
    adapter = write(built, tmp_path / "adapter")
    for base, module in ((whole, "model.language_model."), (text, "model.")):
        out = tmp_path / f"out-{base.name}"
        opened = open_model(ModelOptions(path=str(base), adapter=str(adapter)), make_rules())
        config = ExportConfig(model=WeightsOptions(path=str(base)), output=str(out), format="adapter")
        load_contents(opened, config).write(epath.Path(out), {})
        names = load_file(out / "adapter_model.safetensors")
        assert all(name.startswith(f"base_model.model.{module}layers.") for name in names)
        assert read(out, built.config).spec == built.adapter.spec
        modules = json.loads((out / "adapter_config.json").read_text())["target_modules"]
        assert isinstance(modules, str) == (base == whole)
    assert modules == ["q_proj", "down_proj"]


def test_a_folder_is_exported_with_its_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    """By the command: template, generation_config.json, and the ids of the whole model."""
    whole = wrapped(tiny_model, tmp_path / "whole", NEW)
    (whole / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.5}))
    main(["export", "--model.path", str(whole), "--output", str(tmp_path / "out"), "--dtype", "float32"])
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == (MISTRAL, ["MistralForCausalLM"])
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.5
    for name in ("tokenizer.json", "chat_template.jinja"):
        if (tiny_model / name).exists():
            assert (tmp_path / "out" / name).exists(), name
    assert model_config(tmp_path / "out") == model_config(tiny_model)
    assert text_config(written) is written
