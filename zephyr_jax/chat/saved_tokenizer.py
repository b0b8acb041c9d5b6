"""A tokenizer as its files hold it: written from the object that training uses, not copied from where that was loaded.

transformers may build another tokenizer than tokenizer.json describes (a Llama tokenizer is rebuilt from its vocabulary), so
copied files can give other ids than those trained on. These files give the trained ids to every reader of tokenizer.json.
"""

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerBase

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""The one class that transformers 4 and 5 both know and that reads tokenizer.json as it is."""
_EXTRA = "extra_special_tokens"


@dataclass(frozen=True)
class SavedTokenizer:
    """What the files of a tokenizer are made from. Picklable."""

    backend: Tokenizer
    """Encodes, without truncation and padding."""
    settings: dict[str, Any]
    """The fields of tokenizer_config.json that are in no other file."""

    def files(self, vocabulary: int, template: str | None) -> dict[str, Any]:
        """File name -> JSON object or text: tokenizer.json, tokenizer_config.json and, with a template, chat_template.jinja.

        Args:
            vocabulary: Rows of the embedding. Added tokens beyond them are left out: no input of the model can hold them.
            template: Jinja source of the chat template, or None.
        """
        content = json.loads(_without_suffix(self.backend).to_str())
        beyond = {token["content"] for token in content["added_tokens"] if token["id"] >= vocabulary}
        content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < vocabulary]
        written = {
            **_without_tokens(self.settings, beyond),
            **_prefix_space(content["pre_tokenizer"]),
            "add_bos_token": self._puts_bos_before_text,
            "add_eos_token": False,
        }
        files: dict[str, Any] = {"tokenizer.json": json.dumps(content, ensure_ascii=False) + "\n"}
        if template is None:
            return {**files, "tokenizer_config.json": written}
        files["chat_template.jinja"] = template
        return {**files, "tokenizer_config.json": {**written, "chat_template": template}}

    def special_id(self, name: str, vocabulary: int) -> int | None:
        """Id of a named token ("bos_token", "eos_token", "pad_token"); None without one or beyond the vocabulary."""
        token = self.settings.get(name)
        index = None if token is None else self.backend.token_to_id(token)
        return None if index is None or index >= vocabulary else int(index)

    @property
    def _puts_bos_before_text(self) -> bool:
        bos = self.settings.get("bos_token")
        return bos is not None and _added_around(self.backend)[0] == [self.backend.token_to_id(bos)]


def save_tokenizer(tokenizer: PreTrainedTokenizerBase) -> SavedTokenizer:
    """The tokenizer that transformers built, ready to be written in the spelling of transformers 4 and 5."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return SavedTokenizer(backend, _settings(tokenizer))


def _settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    standard = set(tokenizer.SPECIAL_TOKENS_ATTRIBUTES)
    settings: dict[str, Any] = {
        "tokenizer_class": TOKENIZER_CLASS,
        **{name: token for name, token in named.items() if name in standard},
        "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
    }
    other = {name: token for name, token in named.items() if name not in standard}
    if other:
        settings[_EXTRA] = other
    elif listed := [str(token) for token in tokenizer.extra_special_tokens or ()]:
        settings["additional_special_tokens"] = listed  # transformers 4 reads a list under this name only
    return settings


def _added_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the post-processor puts before and after a text."""
    plain, with_special = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return with_special[:start], with_special[start + len(plain) :]
    return [], []


def _without_suffix(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, which puts nothing after a text: a prompt that ends with eos asks for no answer."""
    before, after = _added_around(tokenizer)
    if not after:
        return tokenizer
    tokens = [tokenizer.id_to_token(index) for index in before]
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = processors.TemplateProcessing(
        single=[*tokens, "$A:0"],
        pair=[*tokens, "$A:0", *(f"{token}:1" for token in tokens), "$B:1"],
        special_tokens=list(zip(tokens, before, strict=True)),
    )
    return copy


def _without_tokens(settings: dict[str, Any], beyond: set[str]) -> dict[str, Any]:
    kept = {name: value for name, value in settings.items() if not isinstance(value, str) or value not in beyond}
    listed, named = kept.get("additional_special_tokens"), kept.get(_EXTRA)
    if listed:
        kept["additional_special_tokens"] = [token for token in listed if token not in beyond]
    if named:
        kept[_EXTRA] = {name: token for name, token in named.items() if token not in beyond}
    return kept


def _prefix_space(pre_tokenizer: dict[str, Any] | None) -> dict[str, bool]:
    """transformers 4 sets a pre-tokenizer's `add_prefix_space` to that of tokenizer_config.json: both must be the same."""
    space = (pre_tokenizer or {}).get("add_prefix_space")
    return {} if space is None else {"add_prefix_space": bool(space)}
