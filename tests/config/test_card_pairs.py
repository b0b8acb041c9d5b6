"""Cards of two stages: `dpo` starts from the run of its `sft` card, with the settings that must not differ."""

from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS = Path(__file__).parents[2] / "configs"
PAIRS = sorted(
    (sft.relative_to(CONFIGS), dpo.relative_to(CONFIGS))
    for sft in CONFIGS.rglob("*sft.yaml")
    if (dpo := sft.with_name(sft.name.replace("sft", "dpo"))).exists()
)


def read(card: Path) -> Any:
    return yaml.safe_load((CONFIGS / card).read_text())


def test_the_pairs_are_found() -> None:
    """Law: each folder of a pipeline has at least one pair."""
    folders = {str(sft.parent) for sft, _ in PAIRS}
    assert folders == {
        "colab",
        "llama-3.1-8b",
        "qwen3-8b",
        "tiny",
        "zephyr-7b-beta",
        "zephyr-7b-beta-paper",
        "zephyr-7b-beta-qlora",
    }


@pytest.mark.parametrize(("sft", "dpo"), PAIRS, ids=lambda card: str(card))
def test_dpo_goes_on_where_sft_ends(sft: Path, dpo: Path) -> None:
    """Law: the second stage reads the first one's run, with its adapter, storage, compute dtype and template."""
    first, second = read(sft), read(dpo)
    assert second["model"]["path"] == first["output"]
    assert second["model"]["compute_dtype"] == first["model"]["compute_dtype"]
    assert second["data"]["chat_template"] == first["data"]["chat_template"]
    adapter = {name: value for name, value in second.get("adapter", {}).items() if name != "start"}
    assert adapter == first.get("adapter", {})
    outputs = [first["output"], second["output"], second["reference"]]
    assert len(set(outputs)) == 3


def test_no_two_cards_share_a_run() -> None:
    """Law: cards write to different folders, so that no run refuses another card's."""
    outputs = [read(path.relative_to(CONFIGS))["output"] for path in CONFIGS.rglob("*.yaml")]
    assert len(outputs) == len(set(outputs))


@pytest.mark.parametrize("card", sorted((CONFIGS / "colab").glob("*.yaml")), ids=lambda card: card.stem)
def test_a_session_needs_little_disk(card: Path) -> None:
    """Law: cards for notebooks read a part of the data, pinned, and keep one checkpoint."""
    settings = read(card)
    assert settings["data"]["limit"] <= 10_000 and settings["data"]["revision"]
    assert (settings["schedule"]["keep_last"], settings["schedule"]["keep_best"]) == (1, 0)
