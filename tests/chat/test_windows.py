"""Texts tokenized window by window, against the same texts tokenized whole."""

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tokenizers import CHATML, KINDS, write_tokenizer
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.windows import is_separable, windows

WORDS = ["The", " quick", "brown  ", "\n", "\n\n", " ", "ï🙂", "17", "fox's", "x" * 40, "\t", "."]


def load(folder: Path, **changes: object) -> ChatTokenizer:
    """A tokenizer; `changes` are made to every added token."""
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token.update(changes)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    return ChatTokenizer(tokenizer, load_template("tokenizer", tokenizer, training=False))


def texts(tokenizer: ChatTokenizer, count: int) -> list[str]:
    """Random texts with special tokens anywhere: side by side, at both ends, between spaces."""
    rng = random.Random(0)
    parts = [*WORDS, *tokenizer.template.reserved * 2]
    return ["".join(rng.choices(parts, k=rng.randrange(1, 30))) for _ in range(count)]


@pytest.mark.parametrize("changes", [{}, {"lstrip": True}, {"rstrip": True}, {"normalized": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_windows_have_the_tokens_of_the_whole_text(kind: str, changes: dict[str, bool], tmp_path: Path) -> None:
    tokenizer = load(write_tokenizer(kind, tmp_path), **changes)
    assert tokenizer._is_separable
    for text in texts(tokenizer, 200):
        found = tokenizer._encode_jointly(text, tokenizer.template.special_spans(text))
        for one, other in zip(found, tokenizer._encode_window(text), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=repr(text))


def test_windows_reach_from_one_special_token_to_the_next() -> None:
    assert windows([(3, 5), (5, 8)], 10) == [(0, 5), (3, 8), (5, 10)]
    assert windows([(0, 2)], 2) == [(0, 2), (0, 2)]


def test_the_prompt_that_two_answers_share_is_tokenized_once(tmp_path: Path) -> None:
    tokenizer = load(write_tokenizer("no-bos", tmp_path))
    for copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        misses = []
        for answer in ("A fox.", "A dog."):
            rendered = copy.template.render(
                [{"role": "user", "content": "What is quick?"}, {"role": "assistant", "content": answer}]
            )
            copy.encode(rendered)
            misses.append(copy._encode_cached.cache_info().misses)
        # <|im_start|>user ... <|im_end|>, the line end before the assistant, its answer, the line end after it
        assert misses == [5, 6]


@pytest.mark.parametrize(
    ("added", "changes"),
    [(["<|im_end|>>"], {}), (["x<|im_st"], {}), ([], {"single_word": True})],
    ids=["longer", "reaches in", "single word"],
)
def test_tokens_that_may_stand_across_an_edge_forbid_windows(
    added: list[str], changes: dict[str, bool], tmp_path: Path
) -> None:
    folder = write_tokenizer("no-bos", tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(added)
    tokenizer.save_pretrained(folder)
    tokenizer = load(folder, **changes)
    assert not tokenizer._is_separable
    for text in texts(tokenizer, 50):
        found = tokenizer._encode_jointly(text, tokenizer.template.special_spans(text))
        np.testing.assert_array_equal(found[0], tokenizer._encode_window(text)[0])


def test_a_reserved_token_that_was_not_added_forbids_windows(tmp_path: Path) -> None:
    tokenizer = load(write_tokenizer("no-bos", tmp_path))
    assert not is_separable(tokenizer._joint, ["fox"])
