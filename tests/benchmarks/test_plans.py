"""The figures of compiled full-size steps on the pages are those of `benchmarks/plan_*.md`."""

import re
from pathlib import Path

from benchmarks.plans import CASES, summary

ROOT = Path(__file__).parents[2]


def figures() -> dict[tuple[str, str, str], list[tuple[str, str, str]]]:
    """(peak, chip, roofline) of the lines of the summary, by step, topology and rows."""
    found: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    for line in summary().splitlines()[2:]:
        title, topology, rows, peak, chip, _, roofline, _ = (cell.strip() for cell in line.strip("| ").split("|"))
        found.setdefault((title.split("`")[1], topology, rows), []).append((peak, chip, roofline))
    return found


def test_the_page_has_the_summary() -> None:
    """A line for each case, in the order of the cases of a topology."""
    text = summary()
    assert len(text.splitlines()) == 2 + len(CASES)
    assert text in (ROOT / "docs" / "benchmarks.md").read_text()


def test_the_readme_has_figures_of_dpo() -> None:
    """Every line of the table of slices names a file and has its peak and roofline."""
    lines = re.findall(
        r"^\| \[(v\S+)\]\(benchmarks/plan_\S+\.md\).*?\| (\d+) \| (\d+) \| (\S+) / (\S+) \| (\S+) s \|$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    assert len(lines) == 7
    for topology, _, rows, peak, chip, roofline in lines:
        assert (peak, chip, roofline) in figures()["dpo", topology, rows], topology
