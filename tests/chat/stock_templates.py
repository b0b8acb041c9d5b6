"""Stock chat templates of model families, and small byte-level tokenizers with the special tokens of each family."""

import json
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from tests.tokenizers import byte_level
from zephyr_jax.chat.template_loader import Answers
from zephyr_jax.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.segments import split_turns, tokenize_conversation

FOLDER = Path(__file__).parent / "stock"
R1_FILE = Path(__file__).parents[2] / "configs" / "deepseek-r1-distill" / "chat_template.jinja"


@dataclass(frozen=True)
class _Tokens:
    """The added tokens of a family."""

    eos: str
    special: tuple[str, ...]
    added: tuple[str, ...] = ()
    """Added, and not marked as special."""
    bos: str | None = None
    """BOS that the tokenizer puts in front of a text."""


THINK = ("<think>", "</think>")
_QWEN = _Tokens("<|im_end|>", ("<|im_start|>", "<|endoftext|>"), THINK)
_R1 = _Tokens("<｜end▁of▁sentence｜>", (), ("<｜User｜>", "<｜Assistant｜>", *THINK), "<｜begin▁of▁sentence｜>")
_TOKENS = {
    "qwen2_5": _Tokens("<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "qwen3": _QWEN,
    "qwen3_training": _QWEN,
    "smollm3": _QWEN,
    "granite3_3": _Tokens("<|end_of_text|>", ("<|start_of_role|>", "<|end_of_role|>")),
    "deepseek_r1_distill": _R1,
    "r1_file": _R1,
}

ANSWERS = ("Blue", "Red.")
THOUGHTS = ("The sky.", "A rose.")
_QUESTIONS = ("Name a color.", "Another?")


def chat_of(*answers: dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation with these answers."""
    turns = zip(_QUESTIONS, answers, strict=False)
    return [
        message
        for question, answer in turns
        for message in ({"role": "user", "content": question}, {"role": "assistant", **answer})
    ]


PLAIN = chat_of(*({"content": text} for text in ANSWERS))
FIELD = chat_of(*({"content": a, "reasoning_content": t} for a, t in zip(ANSWERS, THOUGHTS, strict=True)))
BLOCK = chat_of(*({"content": f"<think>\n{t}\n</think>\n\n{a}"} for a, t in zip(ANSWERS, THOUGHTS, strict=True)))
"""Reasoning in a field, and in the content as OpenThoughts and OpenR1 have it."""


@cache
def _tokenizer(tokens: _Tokens) -> PreTrainedTokenizerBase:
    bos = () if tokens.bos is None else (tokens.bos,)
    content = byte_level(*bos, tokens.eos, *tokens.special, *tokens.added, bos=tokens.bos)
    for token in content["added_tokens"]:
        token["special"] = token["content"] not in tokens.added
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokens.eos, "bos_token": tokens.bos}
    with TemporaryDirectory() as name:
        (Path(name) / "tokenizer.json").write_text(json.dumps(content))
        (Path(name) / "tokenizer_config.json").write_text(json.dumps(settings))
        return load_tokenizer(name)


def stock_path(name: str) -> Path:
    """The file of a template."""
    return R1_FILE if name == "r1_file" else FOLDER / f"{name}.jinja"


def stock_chat(name: str, answers: Answers = "all", training: bool = True, **args: Any) -> ChatTokenizer:
    """The tokenizer of a family with its stock template; `r1_file` is the file of `configs/deepseek-r1-distill`."""
    tokenizer = _tokenizer(_TOKENS[name])
    return load_chat_tokenizer(str(stock_path(name)), tokenizer, training=training, args=args, answers=answers)


def target_runs(chat: ChatTokenizer, messages: list[dict[str, Any]], multi_turn: Any) -> list[list[int]]:
    """The ids of each run of target tokens of a row, under `data.multi_turn`."""
    data = DataOptions(multi_turn=multi_turn, max_length=4096)
    row = {"messages": messages}
    rows = [part for _, part in split_turns(chat, data, row)] if multi_turn == "last" else [row]
    segments = [segment for part in rows for segment in tokenize_conversation(chat, data, part)]
    pairs = [pair for one in segments for pair in zip(one.targets.tolist(), one.tokens.tolist(), strict=True)]
    return [[token for _, token in run] for is_target, run in groupby(pairs, itemgetter(0)) if is_target]


def targets(chat: ChatTokenizer, messages: list[dict[str, Any]], multi_turn: Any) -> list[str]:
    """The text of each of these runs."""
    runs = target_runs(chat, messages, multi_turn)
    return [chat.saved.backend.decode(run, skip_special_tokens=False) for run in runs]
