"""Score conversations and preference pairs: log-prob sums over the target tokens, and which answer of a pair is likelier.

Run:    uv run python examples/score_conversations.py [MODEL]
MODEL:  a Hugging Face folder or hub id, or a run; default: the small base model in the package.
"""

import sys
from pathlib import Path

import zephyr_jax as zj

BASE = Path(zj.__file__).parent / "demo" / "assets" / "base"
CONVERSATIONS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in [
        ("Tell a story about a cat.", "Once a small cat wanted a kite. It was a happy ending for everyone."),
        ("Tell a story about a fox.", "Colorless green ideas sleep furiously."),
    ]
]
PAIRS = [
    {
        "prompt": "Tell a story about a cat.",
        "chosen": "Once a small cat wanted a kite. It was a happy ending for everyone.",
        "rejected": "Ending everyone happy a for was it. Kite wanted cat small once.",
    }
]


def main(path: str = str(BASE)) -> tuple[zj.RowScores, zj.RowScores]:
    model = zj.load_model(zj.ScoringOptions(path=path, compute_dtype="float32"))
    chats = zj.score(model, CONVERSATIONS)
    for row, total, count in zip(CONVERSATIONS, chats.sums[:, 0], chats.counts[:, 0], strict=True):
        print(f"{total:9.3f} nats over {count} tokens: {row['messages'][-1]['content']}")
    print(f"loss: {chats.loss:.4f} nats per target token")
    pairs = zj.score(model, PAIRS)
    margins = pairs.sums[:, 0] - pairs.sums[:, 1]
    print(f"margin of chosen over rejected: {margins[0]:+.3f} nats")
    return chats, pairs


if __name__ == "__main__":
    main(*sys.argv[1:])
