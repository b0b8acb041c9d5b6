"""The model card of an export: metadata that the hub reads, and the text."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.checkpoint.adapters import query_adapter
from zephyr_jax.checkpoint.hf.card import card_metadata
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.cli import main
from zephyr_jax.config.sections import WeightsOptions
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.yaml_file import to_dict
from zephyr_jax.export.model_card import model_card
from zephyr_jax.export.names import rename_model

FRONT = "---\nlicense: other\nlicense_name: lab\nlicense_link: LICENSE\nlanguage:\n- en\n- de\nwidget:\n- text: Hi\n---\n# Base\n"


def chain_of(base: dict[str, Any], dpo: dict[str, Any] | None = None) -> dict[str, Any]:
    """The record of an export of dDPO after dSFT."""
    sft = {
        "made_by": "sft",
        "output": "/home/ann/runs/my-sft",
        "config": to_dict(SftConfig()),
        "steps": 3,
        "parent": base,
    }
    config = to_dict(DpoConfig()) | (dpo or {})
    run = {"made_by": "dpo", "output": "runs/my-dpo", "config": config, "steps": 5, "step": 4, "parent": sft}
    return {"made_by": "export", "output": "hf", "versions": {"jax": "1"}, "commit": "abc", "parent": run}


def test_metadata_is_what_the_hub_reads() -> None:
    """`huggingface_hub` parses it; the hub ids of base and data, and nothing that is not known."""
    base = {"path": "lab/base-7b", "revision": "abc", "license": "apache-2.0", "language": "en"}
    record = chain_of(base, {"data": {"path": "lab/pairs"}})
    record["parent"]["parent"]["config"]["data"]["path"] = "data/chats.jsonl"
    data = ModelCard(model_card("hf", record, {})).data
    assert data.to_dict() == {
        "base_model": "lab/base-7b",
        "datasets": ["lab/pairs"],
        "language": "en",
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["zephyr-jax", "alignment", "sft", "dpo"],
    }


@pytest.mark.parametrize("base", [{"path": "models/base", "revision": None}, {"path": None}, {"path": "/models/base"}])
def test_a_local_base_is_not_in_the_metadata(base: dict[str, Any]) -> None:
    """Nor is a license or language that its folder does not name."""
    data = ModelCard(model_card("hf", chain_of(base), {})).data
    assert (data.base_model, data.license, data.language, data.datasets) == (None, None, None, None)


def test_text_has_lineage_metrics_use_and_limits() -> None:
    base = {"path": "lab/base-7b", "revision": "abc", "license": "mit"}
    expected = {"expected": {"loss": [0.5, 0.6]}, "expected_settings": {"seed": str(DpoConfig().seed)}}
    text = model_card("lab/my-zephyr", chain_of(base, expected), {"loss": 0.55, "rewards/margins": 0.9})
    for part in (
        "# my-zephyr\n",
        "- Base model: `lab/base-7b` (revision abc)\n",
        "- License: mit; ",
        "Lineage: `base` (lab/base-7b) -> `sft` (my-sft) -> `dpo` (my-dpo) -> `export` (hf).",
        "| checkpoint | step 4 |",
        "| loss | 0.55 | 0.5 to 0.6 |",
        "| rewards/margins | 0.9 |  |",
        'AutoTokenizer.from_pretrained("lab/my-zephyr")',
        "zephyr-jax serve --model.path lab/my-zephyr\n",
        "## Limits",
    ):
        assert part in text, part
    assert "/home/ann" not in text
    other = model_card("m", chain_of(base, expected | {"expected_settings": {"seed": "-1"}}), {"loss": 0.55})
    assert "| loss | 0.55 |\n" in other, "the ranges hold for another seed"


def test_a_base_without_training_has_no_training_sections() -> None:
    text = model_card("hf", {"made_by": "export", "versions": {}, "parent": {"path": "lab/base"}}, {})
    assert "- Training: none" in text
    assert "Lineage" not in text and "## Limits" not in text


@pytest.mark.parametrize("name", ["hf", "my folder", 'odd"name', "it's"])
def test_renaming_changes_the_code_alone(name: str) -> None:
    """From any folder to a repository; text that someone added stays."""
    record = {"made_by": "export", "versions": {}, "parent": {"path": "base"}}
    card = model_card(name, record, {}) + f"\n{name} was added.\n"
    renamed = rename_model(card, "lab/new")
    title = f"# {name}\n"
    assert renamed == model_card("lab/new", record, {}).replace("# new\n", title) + f"\n{name} was added.\n"
    assert rename_model("# Mine\n", "lab/new") == "# Mine\n"


def test_license_and_language_come_from_the_base(tiny_model: Path, tmp_path: Path) -> None:
    """Its card's front matter is in the record of the base, and `license` replaces it in the card of the export."""
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "README.md").write_text(FRONT)
    rights = {"license": "other", "license_name": "lab", "license_link": "LICENSE"}
    record = find_model(WeightsOptions(path=str(base))).record
    assert record == {
        "path": str(base),
        "revision": None,
        "architecture": "mistral",
        **rights,
        "language": ["en", "de"],
    }
    assert rights.items() <= ModelCard(model_card("hf", chain_of(record), {})).data.to_dict().items()
    main(["export", "--model.path", str(base), "--output", str(tmp_path / "hf"), "--license", "apache-2.0"])
    data = ModelCard.load(tmp_path / "hf" / "README.md").data
    assert (data.license, data.license_name, data.language) == ("apache-2.0", None, ["en", "de"])
    assert "widget" not in data.to_dict()
    parent = json.loads((tmp_path / "hf" / "provenance.json").read_text())["parent"]
    assert parent["license"] == "other"


def test_a_merged_export_has_the_license_of_the_base(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter's card is about the adapter alone; the card and the lineage of the merged weights name the adapter."""
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    adapter = query_adapter(base, tmp_path / "ad")
    for folder, name in ((base, "llama3.1"), (adapter, "apache-2.0")):
        (folder / "README.md").write_text(f"---\nlicense: {name}\n---\n")
    cards = {}
    for form in ("merged", "adapter"):
        model = ["--model.path", str(base), "--model.adapter", str(adapter)]
        main(["export", *model, "--output", str(tmp_path / form), "--format", form])
        cards[form] = ModelCard.load(tmp_path / form / "README.md")
    assert {form: card.data.license for form, card in cards.items()} == {"merged": "llama3.1", "adapter": "apache-2.0"}
    assert f"- Base model: `{base}`\n- Adapter: `ad`\n" in cards["merged"].text
    assert "- License: llama3.1;" in cards["merged"].text
    capsys.readouterr()
    main(["lineage", "--path", str(tmp_path / "merged")])
    printed = capsys.readouterr().out
    assert f"base: {base}\n" in printed and f"└─ adapter: {adapter}\n" in printed


def test_a_card_with_a_language_alone_leaves_the_license_of_the_record() -> None:
    record = chain_of({"path": "base", "license": "mit"})
    assert ModelCard(model_card("hf", record, {}, rights={"language": "en"})).data.license == "mit"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# No front matter\n",
        "---\n- a list\n---\n",
        "---\nlicense: [\n---\n",
        "---\nlicense: 7\nlanguage: {}\n---\n",
    ],
)
def test_a_card_without_usable_metadata_gives_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert card_metadata(tmp_path) == {}
    assert card_metadata(tmp_path / "missing") == {}
