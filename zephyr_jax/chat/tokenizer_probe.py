"""Round-trip check of a tokenizer: it must decode to the text that it encoded.

A tokenizer.json that is read through a class for another kind of tokenizer (byte-level BPE through `LlamaTokenizer`, for example)
loses every space without an error: https://github.com/huggingface/transformers/issues/45488.
"""

import logging
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr_jax.errors import InputError, truncate_repr

logger = logging.getLogger(__name__)

_TEXTS = (
    "Hello, how are you? I am fine.",
    "First line\nsecond line\n\n  indented by two",
    "def f(x):\n    return {x: [1, 2]}\n\tdone",
    "It costs 3,50 €: a naïve café, 漢字 and 🙂",
    " a  b   c ",
)


def check_round_trip(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raise InputError unless decoding gives texts back that the tokenizer encoded.

    Texts may lose the spaces before them (SentencePiece adds one), and may come back as the tokenizer's own normalizer
    writes them (NFKC, lower case). Characters that the vocabulary lacks may be missing or be its unknown token. No text may
    come back with fewer words.
    """
    for text in _TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        decoded = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
        same = unknown or any(decoded.lstrip(" ") == form.lstrip(" ") for form in _forms(tokenizer, text))
        if not same or _words(decoded) < _words(_encodable(tokenizer, text)):
            raise InputError(
                f"The tokenizer of {path!r} does not give back the text that it encodes: expected {truncate_repr(text)}, got "
                f"{truncate_repr(decoded)}. Its tokenizer_class ({type(tokenizer).__name__} in this version of transformers) may "
                "not fit its tokenizer.json: set tokenizer_class to PreTrainedTokenizerFast in tokenizer_config.json."
            )


def report_other_ids(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Print a line where transformers built another tokenizer than tokenizer.json describes; once for each folder."""
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        return
    written = Tokenizer.from_file(str(file))
    written.no_truncation()
    for text in _TEXTS:
        own = written.encode(text, add_special_tokens=False).ids
        used = tokenizer(text, add_special_tokens=False).input_ids
        if own != used:
            _warn_once(
                f"{path}: transformers builds a {type(tokenizer).__name__} that gives other ids than tokenizer.json: "
                f"{truncate_repr(text, 40)} has {len(used)} tokens instead of {len(own)}. These ids are used, and written to "
                "runs and exports."
            )
            return


@cache
def _warn_once(line: str) -> None:
    logger.warning("%s", line)


def _words(text: str) -> int:
    """Number of pieces between spaces; other whitespace may be unknown to a vocabulary."""
    return sum(map(bool, text.split(" ")))


def _forms(tokenizer: PreTrainedTokenizerBase, text: str) -> set[str]:
    """The text, as the normalizer writes it, and both without the characters that the vocabulary lacks."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    normalized = text if normalizer is None else normalizer.normalize_str(text).replace("▁", " ")
    return {text, normalized, _encodable(tokenizer, text), _encodable(tokenizer, normalized)}


def _encodable(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    lacking = {
        character
        for character in set(text)
        if not character.isspace() and not tokenizer(character, add_special_tokens=False).input_ids
    }
    return "".join(character for character in text if character not in lacking)
