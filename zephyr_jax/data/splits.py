"""The splits of a run: training and, where the settings name one, evaluation, both checked against the model."""

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.examples import Examples, load_examples
from zephyr_jax.data.segments import ExampleKind
from zephyr_jax.errors import InputError


def load_splits(
    kind: ExampleKind, data: DataOptions, tokenizer: ChatTokenizer, max_positions: int | None, model: str
) -> dict[str, Examples]:
    """`training`, and `evaluation` where the settings name one, with no example longer than the model's positions.

    Args:
        kind: What an example is.
        data: Paths, splits and the rules for rows.
        tokenizer: Tokenizer with the chat template.
        max_positions: Positions of the model; None: unlimited.
        model: The model as the user named it, for errors.

    Raises:
        InputError: Rows cannot be read, one exceeds the positions, or more are skipped or cut than `max_skipped_fraction` allows.
    """
    sources = {"training": (data.path, data.split), "evaluation": data.evaluation_source}
    splits: dict[str, Examples] = {}
    for name, source in sources.items():
        if source is not None:
            path, split = source
            splits[name] = load_examples(kind, data, tokenizer, path, split)
            check_positions(splits[name], f"{path}:{split}", max_positions, model)
            splits[name].stats.check(f"{path}:{split}", data.max_skipped_fraction)
    return splits


def check_positions(examples: Examples, name: str, max_positions: int | None, model: str) -> None:
    """Raise InputError where an example of the source `name` is longer than the positions that the model has."""
    lengths = examples.segment_lengths()
    if max_positions and lengths.max() > max_positions:
        raise InputError(
            f"{name}: expected at most the {max_positions:,} positions of {model} (max_position_embeddings, or what its rotary "
            "scaling allows: docs/families.md, Positions), got "
            f"{lengths.max():,} tokens in the longest example; {int((lengths > max_positions).any(axis=1).sum()):,} of "
            f"{len(examples):,} are longer. Set data.max_length to {max_positions} or less; data.on_bad_row decides whether "
            "longer ones are cut or dropped."
        )
