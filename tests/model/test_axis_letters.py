"""One letter, one axis: array suffixes use the legend of `zephyr_jax.model`, and no module has a legend of its own."""

import io
import re
import tokenize
from pathlib import Path

import pytest

import zephyr_jax.model

PACKAGE = Path(zephyr_jax.model.__file__).parents[1]
LEGEND = dict(re.findall(r"^    ([A-Z])  (.+)$", zephyr_jax.model.__doc__ or "", flags=re.MULTILINE))
MODULES = sorted(
    path
    for folder in ("model", "objective", "generate", "reference", "train")
    for path in (PACKAGE / folder).rglob("*.py")
)
SUFFIX = re.compile(r"[a-z0-9]_([A-Z][A-Zh0-9]{0,7})$")


def suffixes(path: Path) -> set[str]:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return {match[1] for token in tokens if token.type == tokenize.NAME and (match := SUFFIX.search(token.string))}


def test_the_legend_has_one_line_per_letter() -> None:
    lines = re.findall(r"^    ([A-Z])  ", zephyr_jax.model.__doc__ or "", flags=re.MULTILINE)
    assert len(lines) == len(LEGEND) > 15
    assert len(set(LEGEND.values())) == len(LEGEND)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_suffixes_are_in_the_legend(path: Path) -> None:
    unknown = {suffix for suffix in suffixes(path) if re.sub(r"[0-9h]", "", suffix).strip("".join(LEGEND))}
    assert not unknown
    repeated = {suffix for suffix in suffixes(path) if len(set(suffix)) < len(suffix) and suffix not in ("BLL", "CC")}
    assert not repeated


def test_there_is_one_legend() -> None:
    """No other module lists letters with their axes, in the form of the legend or as prose."""
    legend = re.compile(r"^    [A-Z]  \w|\bLetters:", re.MULTILINE)
    assert legend.search(Path(str(zephyr_jax.model.__file__)).read_text())
    others = [*MODULES, PACKAGE / "batch.py"]
    assert not [
        path.name for path in others if path != Path(str(zephyr_jax.model.__file__)) and legend.search(path.read_text())
    ]
