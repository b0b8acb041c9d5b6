"""Questions for the local tasks of this folder, from the demo's own words; `python tests/golden/lm_eval/make_rows.py`."""

import json
from pathlib import Path

from zephyr_jax.demo.corpus import preferences

HERE = Path(__file__).parent


def main() -> None:
    """Write questions.jsonl: a prompt, two answers of which one is right, and a beginning of the right one with its next word."""
    rows = []
    for place, pair in enumerate(preferences(seed=11, count=24, split="test")):
        good, bad = (pair[side][-1]["content"] for side in ("chosen", "rejected"))
        answers = [good, bad] if place % 2 else [bad, good]
        words, cut = good.split(" "), 6 + place
        row = {"question": pair["prompt"], "answers": answers, "label": answers.index(good)}
        rows.append({**row, "start": " ".join(words[:cut]), "end": words[cut]})
    (HERE / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
