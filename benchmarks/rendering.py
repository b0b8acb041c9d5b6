"""Seconds to render and tokenize long conversations, with and without markers: `python -m benchmarks.rendering`."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.templates import BASE
from zephyr_jax.chat.message import Message
from zephyr_jax.chat.template_source import built_in_source, without_markers
from zephyr_jax.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer

TURN = "A turn of a conversation has about three hundred characters, as people and models write them. " * 3
SIZES = ((126, 282), (250, 282), (500, 282), (1000, 36), (2000, 36), (4000, 36))
"""Turns of a conversation, and characters of each."""


def main() -> None:
    """Print a Markdown table."""
    tokenizer = load_tokenizer(str(BASE))
    with TemporaryDirectory() as scratch:
        bare = Path(scratch) / "bare.jinja"
        bare.write_text(without_markers(built_in_source("zephyr")))
        chats = {
            "with markers": load_chat_tokenizer("zephyr", tokenizer),
            "without": load_chat_tokenizer(str(bare), tokenizer),
        }
    print("| turns | KB | training text, with markers | without | prompt |\n|---|---|---|---|---|")
    for turns, length in SIZES:
        roles = ("user", "assistant") * (turns // 2)
        conversation: list[Message] = [{"role": role, "content": TURN[:length]} for role in roles]
        times = [_seconds(partial(_train, chat, conversation)) for chat in chats.values()]
        prompt = _seconds(partial(chats["without"].prompt, conversation[:-1]))
        size = sum(len(message["content"]) for message in conversation) / 1000
        print(f"| {turns} | {size:.0f} | {times[0]:.3f} s | {times[1]:.3f} s | {prompt:.3f} s |")


def _train(chat: ChatTokenizer, conversation: list[Message]) -> None:
    chat.encode(chat.template.render(conversation))


def _seconds(run: Callable[[], object]) -> float:
    """The best of three."""
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)


if __name__ == "__main__":
    main()
