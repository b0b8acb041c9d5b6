"""A tiny model that thinks: its weights write one fixed answer, `<think>`, a thought, `</think>` and a word."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.chat.thinking import thinking_tokenizer
from tests.models import resized

_R1_END = "<｜end▁of▁sentence｜>"
_R1_MARKS = ("<｜User｜>", "<｜Assistant｜>", _R1_END)
THOUGHT, WORD = "The", "Blue"


def write_thinking_model(tiny_model: Path, out: Path, template: str, opened: bool) -> Path:
    """The tiny model with a chat template, whose next token depends on the last one only.

    Args:
        tiny_model: A Hugging Face folder of a Mistral model.
        out: The folder to write.
        template: Source of its chat template.
        opened: Whether the generation prompt ends with `<think>`, so that the answer begins with the thought: as R1's does,
            whose special tokens are then added.
    """
    tokenizer = thinking_tokenizer()
    if opened:
        marks = [*tokenizer.extra_special_tokens, *_R1_MARKS]
        tokenizer.add_special_tokens({"eos_token": _R1_END, "extra_special_tokens": marks})
    resized(tiny_model, out, len(tokenizer))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out)
    ids = {text: tokenizer(text, add_special_tokens=False).input_ids for text in (THOUGHT, WORD, "\n")}
    chain = [ids["\n"][-1], *([] if opened else tokenizer.convert_tokens_to_ids(["<think>"])), *ids[THOUGHT]]
    chain += [*tokenizer.convert_tokens_to_ids(["</think>"]), *ids[WORD], tokenizer.eos_token_id]
    _write_chain(out, chain)
    return out


def _write_chain(folder: Path, chain: Sequence[int]) -> None:
    """Let the model write the tokens of a chain one after the other, by weights that ignore all but the last token."""
    if len(set(chain)) < len(chain):
        raise ValueError(f"expected different tokens, got {list(chain)}")
    tensors, rng = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            tensors[name] = np.zeros_like(tensor)
    embedding = rng.normal(0, 1, tensors["model.embed_tokens.weight"].shape).astype(np.float32)
    head = np.zeros_like(embedding)
    for token, following in pairwise(chain):
        head[following] = embedding[token]
    tensors |= {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        "model.norm.weight": np.ones(embedding.shape[1], np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
