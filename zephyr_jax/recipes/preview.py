"""`zephyr-jax preview`: see the very tokens and targets that training will see."""

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from zephyr_jax.checkpoint.source import tokenizer_path
from zephyr_jax.data.chat import load_template
from zephyr_jax.data.examples import Examples, load_conversations, load_preferences, room_for
from zephyr_jax.data.sources import open_rows
from zephyr_jax.data.tokens import ChatTokenizer, Segment, load_tokenizer
from zephyr_jax.verbs.looks import PreviewConfig

_SAMPLE = 1000
_TARGET, _OTHER, _SPECIAL = "bold green", "dim", "magenta"


def preview(config: PreviewConfig, console: Console | None = None) -> Examples:
    """Print rows with their targets in colour (and between [ ] where there is no colour). Raises InputError."""
    config.check()
    console = console or Console()
    tokenizer = load_tokenizer(tokenizer_path(config.model), config.model.revision)
    chat_tokenizer = ChatTokenizer(tokenizer, load_template(config.data.template, tokenizer))
    pairs = "chosen" in open_rows(config.data.path, config.data.split, config.data.revision, 1).column_names
    read = load_preferences if pairs else load_conversations
    examples = read(room_for(config.data, pairs), chat_tokenizer, config.data.path, config.data.split)
    ids = examples.ids()
    for index in range(config.start, min(config.start + config.rows, len(examples))):
        names = ("chosen", "rejected") if pairs else ("conversation",)
        for name, segment in zip(names, examples[index], strict=True):
            cut = ", cut to fit" if ids[index] in examples.cut else ""
            counts = f"{len(segment)} tokens, {int(segment.targets.sum())} targets{cut}"
            console.rule(f"{index} · {ids[index][:16]} · {name}: {counts}", align="left")
            console.print(_coloured(segment, tokenizer, console.color_system is not None), soft_wrap=True)
    console.rule(align="left")
    console.print(examples.summary(config.data.path), highlight=False, markup=False, soft_wrap=True)
    sample = range(min(len(examples), _SAMPLE))
    targets = sum(int(segment.targets.sum()) for index in sample for segment in examples[index])
    share = targets / examples.lengths[: len(sample)].sum()
    console.print(f"  targets are {share:.0%} of the tokens of the first {len(sample):,}", highlight=False)
    return examples


def _coloured(segment: Segment, tokenizer: PreTrainedTokenizerBase, colour: bool) -> Text:
    text = Text()
    for target, piece in _pieces(segment):
        words = str(tokenizer.decode(piece))
        style = _TARGET if target else _OTHER
        text.append(words if colour or not target else f"[{words}]", style=style)
    text.highlight_words([str(token) for token in tokenizer.all_special_tokens], _SPECIAL)
    return text


def _pieces(segment: Segment) -> Iterator[tuple[bool, np.ndarray]]:
    for target, group in groupby(range(len(segment)), key=lambda at: bool(segment.targets[at])):
        yield target, segment.tokens[list(group)]
