"""Exports of runs with adapters: PEFT folders, merged weights, their records, cards and refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.adapter_runs import Runs, check_logits, export, logits_of
from tests.hub import Hub
from zephyr_jax.checkpoint.opened import open_model
from zephyr_jax.cli import main
from zephyr_jax.config.adapter import InferenceOptions
from zephyr_jax.config.models import ExportConfig, GenerateConfig
from zephyr_jax.config.sections import ForwardOptions, MeshOptions, WeightsOptions
from zephyr_jax.export.contents import load_contents
from zephyr_jax.generate.generate import generate
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules

PROMPTS = ("Once upon a time", "Lily and Tom", "The dog was sad")


@pytest.fixture(scope="module")
def adapter(adapter_runs: Runs) -> Path:
    """The adapter of DPO, which continues that of SFT."""
    return export(f"--model.path {adapter_runs.folder}/dpo --format adapter", adapter_runs.folder / "peft")


@pytest.fixture(scope="module")
def merged(adapter_runs: Runs) -> Path:
    """The weights of the same run, in bfloat16."""
    return export(f"--model.path {adapter_runs.folder}/dpo", adapter_runs.folder / "hf")


def record(folder: Path) -> dict:
    return json.loads((folder / "provenance.json").read_text())


def refusal(words: str, output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of an export that is refused; nothing is written."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        export(words, output)
    assert stopped.value.code == 2
    assert not output.exists()
    return " ".join(capsys.readouterr().err.split())


# ---- the adapter alone ----


def test_an_adapter_folder_holds_what_peft_needs(adapter_runs: Runs, adapter: Path) -> None:
    """Weights in float32, the base by an absolute path, and the tokenizer with the template of the run; no config.json."""
    assert sorted(path.name for path in adapter.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "generation_config.json",
        "provenance.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    fields = json.loads((adapter / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(adapter_runs.base.absolute())
    assert (fields["r"], fields["lora_alpha"], fields["revision"]) == (4, 8, None)
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 5
    assert {value.dtype for value in tensors.values()} == {np.dtype("float32")}
    template = (adapter_runs.folder / "dpo" / "model" / "chat_template.jinja").read_text()
    assert (adapter / "chat_template.jinja").read_text() == template
    facts = record(adapter)
    assert (facts["format"], facts["dtype"], facts["base_model"]) == (
        "adapter",
        "float32",
        str(adapter_runs.base.absolute()),
    )


def test_export_load_and_export_keep_every_bit(adapter_runs: Runs, adapter: Path, tmp_path: Path) -> None:
    """Law: also on another mesh, as another process would; bfloat16 only on request."""
    again = export(f"--model.path {adapter_runs.base} --model.adapter {adapter} --format adapter", tmp_path / "again")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, again))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name].view(np.uint32), second[name].view(np.uint32)) for name in first)
    assert np.array_equal(logits_of(again), logits_of(adapter_runs.folder / "dpo"))
    half = export(f"--model.path {adapter} --format adapter --dtype bfloat16", tmp_path / "half")
    assert {str(value.dtype) for value in load_file(half / "adapter_model.safetensors").values()} == {"bfloat16"}


def test_an_adapter_from_singular_vectors_fits_the_plain_base(shared: Path, tmp_path: Path) -> None:
    """PiSSA subtracts the initial adapter from the base: the export has twice the rank and the base of the files.

    Also that of a run that trained the adapter further, and merged; and with another name for the base.
    """
    runs = Runs(tmp_path, shared / "models" / "stories260k", "float32")
    first = runs.sft(words="--adapter.init pissa")
    for run in (first, runs.sft("further", model=first)):
        expected = logits_of(run)
        assert np.array_equal(logits_of(runs.base, adapter=str(run)), expected)
        folder = export(f"--model.path {run} --format adapter", tmp_path / f"{run.name}-peft")
        fields = json.loads((folder / "adapter_config.json").read_text())
        assert (fields["r"], fields["lora_alpha"], fields["init_lora_weights"]) == (8, 16, True)
        check_logits(logits_of(folder), expected)
        merged = export(f"--model.path {run} --dtype float32", tmp_path / f"{run.name}-hf")
        check_logits(logits_of(merged), expected)


def test_the_same_adapter_again_does_nothing_and_another_format_is_refused(
    adapter_runs: Runs, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in adapter.iterdir()}
    words = f"--model.path {adapter_runs.folder}/dpo"
    export(f"{words} --format adapter", adapter)
    assert {path.name: path.stat().st_mtime_ns for path in adapter.iterdir()} == before
    for other in (words, f"{words} --format adapter --base lab/base", f"{words} --format adapter --dtype bfloat16"):
        with pytest.raises(SystemExit):
            export(other, adapter)
        assert "already exists" in capsys.readouterr().err


def test_an_adapter_of_merged_weights_needs_their_export(
    adapter_runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal names two commands; after them the adapter loads alone and is the policy."""
    run = adapter_runs.folder / "merged-dpo"
    words = f"--model.path {run} --format adapter"
    message = refusal(words, tmp_path / "peft", capsys)
    fix = f"zephyr-jax export --model.path {adapter_runs.folder}/sft --output BASE --dtype float32"
    assert f"fits the merged weights of {adapter_runs.folder}/sft" in message
    assert f"Export it first: `{fix}`, then add `--base BASE`" in message
    main(fix.replace("BASE", str(tmp_path / "base")).split()[1:])
    folder = export(f"{words} --base {tmp_path}/base", tmp_path / "peft")
    check_logits(logits_of(folder), logits_of(run))
    assert "expected 512, got 1024" in refusal(
        f"{words} --base {Path(__file__).parents[2]}/zephyr_jax/demo/assets/base", tmp_path / "other", capsys
    )


def test_base_names_another_model(adapter_runs: Runs, tmp_path: Path) -> None:
    """Law: `--base` is what adapter_config.json and the card name; a hub id is taken as it is."""
    folder = export(f"--model.path {adapter_runs.folder}/dpo --format adapter --base lab/stories", tmp_path / "peft")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "lab/stories"
    assert yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])["base_model"] == "lab/stories"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "--model.path {base} --format adapter",
            "has none: all of its weights were trained. Pass a run with an adapter",
        ),
        ("--model.path {base} --merge_into stored", "has no adapter to merge. Leave merge_into unset"),
        ("--model.path {dpo} --merge_into stored", "as float32, which rounds nothing. Leave merge_into unset"),
        ("--model.path {dpo} --format adapter --merge_into stored", "with format `adapter`, which merges nothing"),
        ("--model.path {dpo} --format adapter --max_shard_gib 1", "with format `adapter`, which is one file"),
        ("--model.path {dpo} --base lab/base", "with format `merged`, which names no other model"),
        ("--push_to lab/a --format adapter", "format is `adapter` without `model.path`"),
        ("--push_to lab/a --merge_into stored", "merge_into is `stored` without `model.path`"),
    ],
)
def test_settings_without_an_effect_are_refused(
    adapter_runs: Runs, words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words.format(base=adapter_runs.base, dpo=adapter_runs.folder / "dpo")
    assert expected in refusal(words, tmp_path / "out", capsys)


def test_an_unknown_format_of_the_base_cannot_be_restored(
    adapter_runs: Runs, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter of other programs does not record how its training stored the base."""
    shutil.copytree(adapter, tmp_path / "foreign", ignore=shutil.ignore_patterns("provenance.json"))
    message = refusal(f"--model.path {tmp_path}/foreign --merge_into stored", tmp_path / "out", capsys)
    assert "as an unknown format, so that what it computed with is not known" in message


# ---- merged weights ----


def test_merged_weights_are_the_sum(adapter_runs: Runs, adapter: Path) -> None:
    """Law: W + alpha / rank B A in the base's layout, of every projection in every layer; all other weights are the base's."""
    exact = export(f"--model.path {adapter_runs.folder}/dpo --dtype float32", adapter_runs.folder / "hf-float32")
    base, parts, merged = (
        load_file(path)
        for path in (
            adapter_runs.base / "model.safetensors", adapter / "adapter_model.safetensors", exact / "model.safetensors"
        )
    )  # fmt: skip
    for name, weight in base.items():
        part = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        change = 0.0
        if part.format("A") in parts:
            change = 2 * parts[part.format("B")].astype(np.float64) @ parts[part.format("A")]
            assert np.abs(change).max() > 1e-3
        np.testing.assert_allclose(merged[name], weight + change, atol=1e-6, err_msg=name)


def test_merged_text_is_that_of_the_adapter(adapter_runs: Runs, merged: Path) -> None:
    """Law: greedy text of the run, whose adapter stays apart, and of its merged weights in float32."""
    exact = export(f"--model.path {adapter_runs.folder}/dpo --dtype float32", adapter_runs.folder / "hf-float32")
    texts = []
    for folder in (adapter_runs.folder / "dpo", exact, adapter_runs.base):
        model = InferenceOptions(path=str(folder), compute_dtype="float32")
        settings = GenerateConfig(model=model, prompts=PROMPTS, chat_template="none", max_new_tokens=60, batch_size=8)
        texts.append([answer.text for answer in generate(settings)])
    assert texts[0] == texts[1] != texts[2]
    tensors = load_file(merged / "model.safetensors")
    assert {str(value.dtype) for value in tensors.values()} == {"bfloat16"}
    for name, value in load_file(exact / "model.safetensors").items():
        assert np.array_equal(value.astype(tensors[name].dtype), tensors[name]), name
    assert (record(merged)["format"], record(merged)["merge_into"]) == ("merged", "original")


@pytest.mark.parametrize(("base_format", "block_size"), [("bfloat16", 64), ("int8", 4), ("nf4", 4)])
def test_an_exported_adapter_has_the_base_format_of_its_run(
    adapter_runs: Runs, adapter: Path, base_format: str, block_size: int, tmp_path: Path
) -> None:
    """Law: commands that only run forward compute as the record has it, and `stored` merges what they compute."""
    folder = Path(shutil.copytree(adapter, tmp_path / "peft"))
    facts = record(folder)
    facts["parent"]["adapter"] |= {"base_format": base_format, "block_size": block_size}
    (folder / "provenance.json").write_text(json.dumps(facts))
    expected = logits_of(folder)
    assert np.array_equal(logits_of(adapter_runs.base, adapter=str(folder)), expected)
    assert np.array_equal(logits_of(folder, base_format="float32"), logits_of(adapter_runs.folder / "dpo"))
    assert np.abs(logits_of(folder, base_format="float32") - expected).max() > 1e-3
    stored = export(f"--model.path {folder} --merge_into stored --dtype float32", tmp_path / "stored")
    check_logits(logits_of(stored), expected)


def test_bfloat16_exports_load_the_weights_in_bfloat16(adapter_runs: Runs) -> None:
    """So that a 7B model is merged on one chip of 16 GB: no float32 copy of the model is on the devices."""
    config = ExportConfig(model=WeightsOptions(f"{adapter_runs.folder}/dpo"), output="unused")
    opened = open_model(ForwardOptions(config.model.path), ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1])))
    for dtype, expected in (("bfloat16", {"bfloat16": 4, "float32": 2}), ("float32", {"float32": 4})):
        most_axes: dict[str, int] = {}
        for leaf in jax.tree.leaves(load_contents(opened, replace(config, dtype=dtype)).parameters):
            most_axes[str(leaf.dtype)] = max(most_axes.get(str(leaf.dtype), 0), leaf.ndim)
        assert most_axes == expected  # two axes: norms of all layers


# ---- record, card and lineage ----


def test_the_card_of_an_adapter(adapter: Path) -> None:
    """Metadata that the hub reads, and code for transformers with peft."""
    front, text = (adapter / "README.md").read_text().split("---\n", 2)[1:]
    head = yaml.safe_load(front)
    assert head["library_name"] == "peft"
    assert head["tags"] == ["zephyr-jax", "alignment", "lora", "sft", "dpo"]
    assert "A LoRA adapter in the format of peft, of the model" in text
    assert 'model = AutoPeftModelForCausalLM.from_pretrained("peft")' in text
    assert "| adapter | LoRA rank 4, alpha 8 on a base in float32, start new |" in text
    assert "| adapter | LoRA rank 4, alpha 8 on a base in float32, start continue |" in text
    assert "| adapted weights | attention.query, attention.key," in text


def test_the_card_of_merged_weights_has_the_facts_of_the_adapter(
    merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (merged / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n", 2)[1])["library_name"] == "transformers"
    assert "| adapter | LoRA rank 4, alpha 8 on a base in float32, start continue |" in text
    assert "AutoPeftModelForCausalLM" not in text
    main(["lineage", "--path", str(merged)])
    lines = capsys.readouterr().out
    assert "adapter: LoRA rank 4, alpha 8 on a base in float32, start new" in lines
    assert "adapter: LoRA rank 4, alpha 8 on a base in float32, start continue" in lines
    assert "merged into: original weights" in lines


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_adapters_and_merged_weights_are_uploaded(
    adapter_runs: Runs, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: the repository holds one of both: a loader would take the weights of an earlier upload, too."""
    run = f"--model.path {adapter_runs.folder}/dpo --push_to lab/my-zephyr"
    export(f"{run} --format adapter", tmp_path / "peft")
    files = hub.state.repositories["lab/my-zephyr"].files
    assert {"adapter_model.safetensors", "adapter_config.json"} <= files.keys()
    assert "a folder of this machine" in capsys.readouterr().err
    assert b'AutoPeftModelForCausalLM.from_pretrained("lab/my-zephyr")' in files["README.md"]
    export(run, tmp_path / "hf")
    files = hub.state.repositories["lab/my-zephyr"].files
    assert {name for name in files if "model" in name} == {"model.safetensors"}
    assert "adapter_config.json" not in files
