"""Every command that reads rows accepts the same formats: one row of each, up to its tokens or its prompt."""

from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from rich.console import Console

from tests.conftest import write_rows
from tests.data.test_rows import CONVERSATION_ROWS, PREFERENCE_ROWS, Row
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.inheritance import training_tokenizer
from zephyr_jax.config.inspect import PreviewConfig
from zephyr_jax.config.models import GenerateConfig
from zephyr_jax.config.sections import DataOptions, ModelOptions
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.data.examples import load_examples
from zephyr_jax.data.row_formats import CONVERSATION_FORMATS, PREFERENCE_FORMATS, find_format
from zephyr_jax.data.splits import load_splits
from zephyr_jax.feedback.seed_prompts import read_seed_prompts
from zephyr_jax.generate import generate
from zephyr_jax.methods.registry import method_of, method_of_rows
from zephyr_jax.prepare.dialogue import first_question, parse_dialogue
from zephyr_jax.report import samples
from zephyr_jax.report.preview import preview

QUESTION, CHOSEN, REJECTED = "A colour?", "Blue.", "Red."
CHATS = {
    **CONVERSATION_ROWS,
    "Dolly": {"instruction": QUESTION, "context": "", "response": CHOSEN},
    "question and response": {"question": QUESTION, "response": CHOSEN},
    "MetaMath": {"query": QUESTION, "response": CHOSEN},
    "UltraChat": {"data": [QUESTION, CHOSEN]},
}
PAIRS = {**PREFERENCE_ROWS, "query": {"query": QUESTION, "chosen": CHOSEN, "rejected": REJECTED}}
KINDS = {"chats": (CHATS, CONVERSATION_FORMATS), "pairs": (PAIRS, PREFERENCE_FORMATS)}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def row_files(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """A file for every format; and a cache for all."""
    folder = tmp_path_factory.mktemp(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        datasets.disable_progress_bars()
        first: dict[str, Row] = {}
        for row in KINDS[kind][0].values():
            first.setdefault(str(find_format(row, KINDS[kind][1]).name), row)
        yield [write_rows(folder / f"{index}.jsonl", [row]) for index, row in enumerate(first.values())]
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    return training_tokenizer("tiny", load_tokenizer(str(tiny_model)), DataOptions())


def decode(model: Path, tokens: np.ndarray) -> str:
    return str(load_tokenizer(str(model)).decode(tokens))


def trained(rows: Path, model: Path, tokenizer: ChatTokenizer) -> list[str]:
    """`sft`, `dpo` and `reference`: by the command's own method."""
    config = (DpoConfig if rows.parent.name.startswith("pairs") else SftConfig)(
        data=DataOptions(path=str(rows), max_length=256)
    )
    splits = load_splits(method_of(config).examples, config.data, tokenizer, None, "tiny")
    return [decode(model, segment.tokens) for segment in splits["training"][0]]


def evaluated(rows: Path, model: Path, tokenizer: ChatTokenizer) -> list[str]:
    """`evaluate`: by the method that the columns name."""
    data = DataOptions(path=str(rows), max_length=256)
    examples = load_examples(method_of_rows(data).examples, data, tokenizer, data.path, data.split)
    return [decode(model, segment.tokens) for segment in examples[0]]


def previewed(rows: Path, model: Path, tokenizer: ChatTokenizer) -> list[str]:
    console = Console(file=StringIO(), record=True, width=200, force_terminal=False)
    examples = preview(PreviewConfig(ModelOptions(str(model)), DataOptions(path=str(rows), max_length=256)), console)
    text = console.export_text()
    return [text] * len(examples.segments)


def prompted(rows: Path, model: Path, tokenizer: ChatTokenizer) -> list[str]:
    """`generate`."""
    return [chat[-1]["content"] for chat in generate._conversations(GenerateConfig(data=str(rows)))]


def seeded(rows: Path, model: Path, tokenizer: ChatTokenizer) -> list[str]:
    """`feedback conversations` and `feedback answers`."""
    return [seed.prompt for seed in read_seed_prompts(str(rows), "train", None).prompts]


def sampled(rows: Path, model: Path, tokenizer: ChatTokenizer) -> list[str]:
    """The samples that `sft`, `dpo` and `report` add to a run."""
    config = SftConfig(data=DataOptions(path=str(rows), max_length=256))
    return list(samples._short_prompts(config, ModelOptions(str(model)), str(rows), "train"))


READERS: tuple[Callable[[Path, Path, ChatTokenizer], list[str]], ...] = (
    trained, evaluated, previewed, prompted, seeded, sampled,
)  # fmt: skip


@pytest.mark.parametrize("read", READERS)
def test_a_command_reads_every_format(
    read: Callable[[Path, Path, ChatTokenizer], list[str]],
    kind: str,
    row_files: list[Path],
    tiny_model: Path,
    tokenizer: ChatTokenizer,
) -> None:
    """Law: whatever the format, a command finds the question, and where it reads answers, both of them in their order."""
    answers = {"chats": [CHOSEN], "pairs": [CHOSEN, REJECTED]}[kind]
    for rows in row_files:
        texts = read(rows, tiny_model, tokenizer)
        if read in (trained, evaluated, previewed):
            assert len(texts) == len(answers)
            assert all(answer in text for answer, text in zip(answers, texts, strict=True)), rows.read_text()
            assert all(QUESTION in text for text in texts)
        else:
            assert texts == [QUESTION], rows.read_text()


def test_prepare_reads_every_format_of_conversations() -> None:
    """`prepare ultrachat`."""
    for row in CHATS.values():
        messages, unanswered = parse_dialogue(row)
        assert (first_question(messages), messages[-1]["content"], unanswered) == (QUESTION, CHOSEN, False)


def test_the_rows_of_this_test_are_of_every_format() -> None:
    """A format that is added needs a row here."""
    for rows, formats in KINDS.values():
        assert {found.name for row in rows.values() if (found := find_format(row, formats))} == {
            known.name for known in formats
        }
