"""`zephyr-jax preview`: the exact tokens and targets of rows, checked as training checks them."""

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.inheritance import training_tokenizer
from zephyr_jax.checkpoint.resolve import check_vocabulary, find_model, tokenizer_only
from zephyr_jax.config.inspect import PreviewConfig
from zephyr_jax.data.example_rows import short_id
from zephyr_jax.data.examples import Examples, load_examples
from zephyr_jax.data.splits import check_positions
from zephyr_jax.errors import terminal_text
from zephyr_jax.methods.registry import method_of_rows
from zephyr_jax.storage.files import check_readable

_SAMPLE = 1000
_TARGET, _OTHER, _SPECIAL = "bold green", "dim", "magenta"


def preview(config: PreviewConfig, console: Console | None = None) -> Examples:
    """Print rows with their targets in color, or in [ ] on a terminal without colors. Raises InputError."""
    console = console or Console()
    check_readable(config.model.path)
    tokenizer_folder = tokenizer_only(config.model)
    source = None if tokenizer_folder else find_model(config.model, weights=False)
    tokenizer = load_tokenizer(tokenizer_folder or str(source and source.folder))
    chat_tokenizer = training_tokenizer(source.asked if source else config.model.path, tokenizer, config.data)
    if source:
        check_vocabulary(source.model_config, tokenizer, source.asked, chat_tokenizer.template)
    kind = method_of_rows(config.data).examples
    data = config.data.fitted(kind.segments_per_example)
    examples = load_examples(kind, data, chat_tokenizer, data.path, data.split)
    if source:
        check_positions(examples, f"{data.path}:{data.split}", source.model_config.max_positions, source.asked)
    else:
        note = f"{tokenizer_folder} has no config.json: vocabulary and positions of the model are not checked"
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    ids = examples.ids()
    for index in range(config.start, min(config.start + config.num_examples, len(examples))):
        for name, segment in zip(kind.segments, examples[index], strict=True):
            cut = ", truncated" if ids[index] in examples.truncated else ""
            counts = f"{len(segment)} tokens, {int(segment.targets.sum())} targets{cut}"
            console.rule(Text(f"{index} · {terminal_text(short_id(ids[index]))} · {name}: {counts}"), align="left")
            console.print(_styled(segment, tokenizer, console.color_system is not None), soft_wrap=True)
    console.rule(align="left")
    warning = examples.stats.warning(config.data.max_skipped_fraction)
    summary = [examples.summary(config.data.path), *([f"warning: {warning}"] if warning else [])]
    console.print(terminal_text("\n".join(summary)), highlight=False, markup=False, soft_wrap=True)
    console.print(f"  format: {', '.join(examples.formats)}", highlight=False, markup=False, soft_wrap=True)
    sample = range(min(len(examples), _SAMPLE))
    targets = sum(int(segment.targets.sum()) for index in sample for segment in examples[index])
    share = targets / examples.lengths[: len(sample)].sum()
    console.print(f"  targets are {share:.0%} of the tokens of the first {len(sample):,}", highlight=False)
    return examples


def _styled(segment: Segment, tokenizer: PreTrainedTokenizerBase, use_color: bool) -> Text:
    text = Text()
    for target, piece in _pieces(segment):
        piece_text = terminal_text(str(tokenizer.decode(piece)))
        style = _TARGET if target else _OTHER
        text.append(piece_text if use_color or not target else f"[{piece_text}]", style=style)
    text.highlight_words([str(token) for token in tokenizer.all_special_tokens], _SPECIAL)
    return text


def _pieces(segment: Segment) -> Iterator[tuple[bool, NDArray[np.int32]]]:
    for target, group in groupby(range(len(segment)), key=lambda index: bool(segment.targets[index])):
        yield target, segment.tokens[list(group)]


def main(config: PreviewConfig, command: str) -> None:
    """`zephyr-jax preview`."""
    preview(config)
