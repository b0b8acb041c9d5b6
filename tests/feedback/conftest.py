"""A model that ends its answers, a judge that judges, and rows."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import write_rows

PROMPTS = [
    {"prompt": "Name a colour.", "source": "mine"},
    {"prompt": "Why is the sky blue?", "source": "mine"},
    {"prompt": "Tell me about a red ball.", "source": "yours"},
    {"prompt": "Name a colour.", "source": "again"},
]


@pytest.fixture(scope="session")
def talker(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights that make the end token likely, so that answers end."""
    folder = tmp_path_factory.mktemp("talker") / "talker"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    words = tensors["model.embed_tokens.weight"].copy()
    words += 1.0
    words[2] = 1.045
    save_file({**tensors, "model.embed_tokens.weight": words}, folder / "model.safetensors")
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", PROMPTS)


def lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def judgment(body: dict[str, Any]) -> str:
    """What a sound judge says: the longer an answer, the better."""
    shown = answers_shown(body)
    longest = max(map(len, shown.values()))
    entries = [
        {"answer": number, "rationale": f"{len(text)} letters", "rating": 1 + 4 * len(text) // longest}
        for number, text in shown.items()
    ]
    return json.dumps({"ratings": entries})


def answers_shown(body: dict[str, Any]) -> dict[int, str]:
    """Answers as the judge reads them, by the mark that only the prompt's writer knows."""
    mark = re.search(r"carry the code ([0-9a-f]{16})", body["messages"][0]["content"])
    assert mark
    form = rf"<answer (\d+) {mark[1]}>\n(.*?)\n</answer \1 {mark[1]}>"
    return {int(found[1]): found[2] for found in re.finditer(form, body["messages"][1]["content"], re.DOTALL)}
