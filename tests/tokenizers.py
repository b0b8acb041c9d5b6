"""Small tokenizers of the kinds that chat models have, as folders with tokenizer.json and tokenizer_config.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from zephyr_jax.chat.message import OverLengthRow
from zephyr_jax.chat.tokenizer import ChatTokenizer, Segment
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.segments import ExampleKind

ASSETS = Path(__file__).parents[1] / "zephyr_jax" / "demo" / "assets" / "base"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = ["The quick brown fox jumps over the lazy dog.", "What is new? Not much: 17 books.", "  spaces\n\nand lines"]


def _sentencepiece() -> dict[str, Any]:
    return json.loads((ASSETS / "tokenizer.json").read_text())


def _metaspace_first() -> dict[str, Any]:
    """As transformers 5 builds it for Llama 2 with `legacy: false`: a space before the first word of a text only."""
    content = _sentencepiece()
    content["normalizer"] = None
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return content


def _with_eos() -> dict[str, Any]:
    content = _sentencepiece()
    content["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})
    content["post_processor"]["special_tokens"]["</s>"] = {"id": "</s>", "ids": [2], "tokens": ["</s>"]}
    return content


def byte_level(*specials: str, bos: str | None = None, prefix_space: bool = False) -> dict[str, Any]:
    """tokenizer.json of byte-level BPE with these special tokens; `bos` is put in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    trim = processors.ByteLevel(trim_offsets=False)
    if bos is not None:
        start = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.post_processor = processors.Sequence([trim, start])
    else:
        tokenizer.post_processor = trim
    return json.loads(tokenizer.to_str())


_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
_END = "<|endoftext|>"
KINDS: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any]]] = {
    "sentencepiece": (_sentencepiece, {**_LLAMA, "tokenizer_class": "PreTrainedTokenizerFast"}),
    "llama-2": (_sentencepiece, {**_LLAMA, "tokenizer_class": "LlamaTokenizer", "legacy": False}),
    "metaspace-first": (_metaspace_first, {**_LLAMA, "tokenizer_class": "PreTrainedTokenizerFast"}),
    "add-eos": (_with_eos, {**_LLAMA, "tokenizer_class": "LlamaTokenizerFast", "add_eos_token": True}),
    "add-eos-generic": (_with_eos, {**_LLAMA, "tokenizer_class": "TokenizersBackend", "add_eos_token": True}),
    "llama-3": (
        lambda: byte_level("<|begin|>", "<|eot|>", bos="<|begin|>"),
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|eot|>"},
    ),
    "no-bos": (
        lambda: byte_level(_END, "<|im_start|>", "<|im_end|>"),
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": _END, "eos_token": _END, "unk_token": _END,
         "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
    ),
    "bos-is-eos": (
        lambda: byte_level(_END, "<|im_start|>", "<|im_end|>", bos=_END),
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": _END, "eos_token": _END, "pad_token": "<|im_end|>"},
    ),
    "prefix-space": (
        lambda: byte_level("<s>", "</s>", bos="<s>", prefix_space=True),
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "add_prefix_space": True},
    ),
}  # fmt: skip
"""Name -> how tokenizer.json is made, and tokenizer_config.json."""


def write_tokenizer(kind: str, folder: Path) -> Path:
    """A folder with a tokenizer of a kind."""
    content, settings = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content()))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"clean_up_tokenization_spaces": False, "model_max_length": 1024, **settings})
    )
    return folder


def tokenized(kind: ExampleKind, tokenizer: ChatTokenizer, data: DataOptions, row: Any, cut: bool) -> list[Segment]:
    """Segments of a row; an over-long one is truncated if it may be cut, else OverLengthRow is raised."""
    try:
        return kind.tokenize(tokenizer, data, row)
    except OverLengthRow as error:
        if not cut:
            raise
        return error.truncate()
