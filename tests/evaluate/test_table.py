"""The paper's tables with measured rows."""

import csv
import json
from pathlib import Path

import pytest

from zephyr_jax.cli import main
from zephyr_jax.evaluate.paper_table import published


def test_published_rows_name_their_sources() -> None:
    """The paper's own model and its four ablations are there, with the paper's numbers."""
    rows = {row.model: row for row in published()}
    assert all(row.source for row in rows.values())
    zephyr = rows["Zephyr-7b-beta"]
    assert (zephyr.mt_bench, zephyr.alpaca_eval, zephyr.error) == (7.34, 90.6, 1.03)
    ablations = [row.mt_bench for row in rows.values() if row.group == "ablation"]
    assert ablations == [4.76, 6.64, 6.19, 7.0]


def test_measured_rows_join_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores of one model from two folders are one row; it stands in both tables, in the CSV and in the picture."""
    bench, alpaca = tmp_path / "bench", tmp_path / "alpaca"
    for folder, name, content in (
        (
            bench,
            "ours.json",
            {"model": "ours", "overall": 6.5, "error": 0.25, "parameters": 7241732096, "by_category": {}},
        ),
        (alpaca, "ours.row.json", {"win_rate": 80.0, "standard_error": 1.5, "discrete_win_rate": 80.0, "version": 1}),
        (alpaca, "ours.json", [{"output": "x"}]),
    ):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    main(["evaluate", "table", "--results", str(bench), str(alpaca), "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert said.count("| **ours** | 7.24B | - | 6.50 ± 0.25 | 80.00 ± 1.50 |") == 2
    assert "| Zephyr-7b-beta | 7B | dDPO | 7.34 | 90.60 ± 1.03 | arXiv 2310.16944, Table 1 |" in said
    rows = list(csv.DictReader((tmp_path / "out/table.csv").read_text().splitlines()))
    assert [row["alpaca_eval"] for row in rows if row["group"] == "measured"] == ["80.0"]
    assert (tmp_path / "out/table.svg").read_text().startswith("<svg")


@pytest.mark.parametrize("what", ["missing", "empty", "broken"])
def test_folders_without_scores_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    folder = tmp_path / "results"
    if what != "missing":
        folder.mkdir()
    if what == "broken":
        (folder / "x.json").write_text("{")
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "table", "--results", str(folder)])
    assert stopped.value.code == 2
    expected = {"missing": "Expected a folder", "empty": "got neither", "broken": "is not JSON"}[what]
    assert expected in capsys.readouterr().err
