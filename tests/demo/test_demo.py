"""The demo at its smallest size: every stage, the table, the report, the export."""

import json
from pathlib import Path

import pytest
from datasets import load_dataset

from zephyr_jax.cli import main
from zephyr_jax.demo.demo import STAGES


def test_from_a_base_to_the_table_and_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    main(f"demo --output {out} --num_conversations 64 --num_prompts 16 --num_held_out 8".split())
    output = capsys.readouterr().out
    table = output[: output.index("* rule-based")]
    assert all(stage in table for stage in STAGES)
    assert "The paper's order" in output
    for answers in (out / "answers" / "train.jsonl", out / "ratings" / "train.jsonl"):
        rows = [json.loads(line) for line in answers.read_text().splitlines()]
        assert len(rows) == 16
        assert {len(row["completions"]) for row in rows} == {4}
    assert all(len({each["response"] for each in row["completions"]}) > 1 for row in rows)  # four draws, not one
    assert {row["judge"] for row in rows} == {"rater-by-rule"}
    assert all(len(each["annotations"]) == 4 and each["critique"] for row in rows for each in row["completions"])
    pairs = load_dataset(str(out / "pairs"), split="train_prefs")
    assert len(pairs) > 4
    assert all(row["score_chosen"] > row["score_rejected"] for row in pairs)
    page = (out / "report.html").read_text()
    prompts = page.count("<article>")
    assert prompts > 5
    assert all(f"<h2>{stage}" in page or stage == "base" for stage in STAGES)
    for run in ("dsft", "ddpo", "dsft-twice", "dsft-ddpo"):  # each has the answers of all on its own page
        page = (out / run / "report.html").read_text()
        assert {page.count(f"<h4>{stage}</h4>") for stage in STAGES} == {page.count("<article>")} == {prompts}
    assert (out / "export" / "model.safetensors").exists()
    with pytest.raises(SystemExit):
        main(f"demo --output {out}".split())
    assert "holds a finished demo" in capsys.readouterr().err
