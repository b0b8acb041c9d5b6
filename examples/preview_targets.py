"""Show what a model learns from a conversation and from a preference pair: target tokens stand in [ ].

Run:    uv run python examples/preview_targets.py [MODEL]
MODEL:  a Hugging Face folder or hub id, or a run; default: the small base model in the package. Only its tokenizer is read.
"""

import sys
from pathlib import Path

import zephyr_jax as zj

BASE = Path(zj.__file__).parent / "demo" / "assets" / "base"
CONVERSATION = {
    "messages": [
        {"role": "user", "content": "Tell a story about a cat and a kite."},
        {"role": "assistant", "content": "Once a small cat wanted a kite."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "It was a happy ending for everyone."},
    ]
}
PAIR = {
    "prompt": "Tell a story about a cat and a kite.",
    "chosen": "Once a small cat wanted a kite.",
    "rejected": "It was a happy ending for everyone.",
}


def main(model: str = str(BASE)) -> None:
    tokenizer = zj.load_tokenizer(model)
    for row in (CONVERSATION, PAIR):
        for segment in zj.tokenize(tokenizer, row):
            print(f"--- {segment.name}: {len(segment.tokens)} tokens, {segment.targets.sum()} targets")
            print(segment.marked())


if __name__ == "__main__":
    main(*sys.argv[1:])
