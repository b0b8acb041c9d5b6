"""One golden folder per model_type, for tests whose subject is the architecture and not the spelling of its config.json."""

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "families"


def model_type(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


FIRST = {model_type(folder): folder for folder in sorted(GOLDEN.iterdir(), reverse=True)}
"""model_type -> the first of its folders."""
EACH = pytest.mark.parametrize("folder", FIRST.values(), ids=FIRST)
