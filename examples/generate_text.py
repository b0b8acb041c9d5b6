"""Generate answers: greedy, and sampled with a seed.

Run:    uv run python examples/generate_text.py [MODEL]
MODEL:  a Hugging Face folder or hub id, or a run; default: the small base model in the package, which is not trained to chat.
"""

import sys
from pathlib import Path

import zephyr_jax as zj

BASE = Path(zj.__file__).parent / "demo" / "assets" / "base"
PROMPTS = ["Tell a story about a cat and a kite.", "Tell a story about a fox and a drum."]


def main(path: str = str(BASE)) -> dict[str, list[zj.GeneratedAnswer]]:
    model = zj.load_model(zj.ScoringOptions(path=path, compute_dtype="float32"))
    settings = {
        "greedy": zj.TopKSamplingOptions(max_new_tokens=32),
        "sampled": zj.TopKSamplingOptions(max_new_tokens=32, temperature=0.7, top_p=0.95, seed=1),
    }
    answers = {name: zj.generate_text(model, PROMPTS, sampling) for name, sampling in settings.items()}
    for name in answers:
        for answer in answers[name]:
            print(f"{name} > {answer.prompt}\n{answer.text}{'' if answer.ended else ' ...'}\n")
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:])
