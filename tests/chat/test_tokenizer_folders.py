"""Tokenizers as people have them: read right, or refused for what is wrong with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.inheritance import open_tokenizer
from zephyr_jax.checkpoint.resolve import check_vocabulary, find_model
from zephyr_jax.config.sections import DataOptions, ModelOptions
from zephyr_jax.demo.corpus import documents
from zephyr_jax.errors import InputError

TEXT = "Hello, how are you?\n  def f(x):\n\treturn 'naïve 🙂'"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
OTHER = CHATML.replace("<|im_start|>", "### ")


def folder_of(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def set_fields(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    merged = {name: value for name, value in {**content, **fields}.items() if value is not ...}
    file.write_text(json.dumps(merged))


def byte_level() -> Tokenizer:
    """BPE over bytes, as Llama 3, SmolLM and GPT-2 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(documents(7, 200), trainer)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize(
    "name", ["LlamaTokenizerFast", "LlamaTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", ...]
)
def test_byte_level_ids_are_those_of_tokenizer_json(name: Any, kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """Whatever class tokenizer_config.json names: transformers before 5.22 lost every space here."""
    folder = folder_of(tiny_model, tmp_path)
    expected = byte_level()
    expected.save(str(folder / "tokenizer.json"))
    set_fields(folder / "tokenizer_config.json", tokenizer_class=name, unk_token=...)
    set_fields(folder / "config.json", model_type=kind)
    found = load_tokenizer(str(folder))
    assert found(TEXT, add_special_tokens=False).input_ids == expected.encode(TEXT, add_special_tokens=False).ids


def loses_spaces(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()


def deletes_spaces(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Replace(" ", "")


def decodes_nothing(tokenizer: Tokenizer) -> None:
    tokenizer.decoder = decoders.Fuse()


def reads_spaces_of_another_kind(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")


@pytest.mark.parametrize("damage", [loses_spaces, deletes_spaces, decodes_nothing, reads_spaces_of_another_kind])
def test_a_tokenizer_that_does_not_give_text_back_is_refused(
    damage: Callable[[Tokenizer], None], tiny_model: Path, tmp_path: Path
) -> None:
    folder = folder_of(tiny_model, tmp_path)
    tokenizer = byte_level()
    damage(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    set_fields(folder / "tokenizer_config.json", unk_token=...)
    with pytest.raises(
        InputError, match="does not give back the text.*expected 'Hello, how are you.*got.*tokenizer_class"
    ):
        load_tokenizer(str(folder))


def lower_case(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])


def prefix_space(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def no_change(tokenizer: Tokenizer) -> None:
    pass


@pytest.mark.parametrize("change", [lower_case, prefix_space, no_change])
def test_known_normalizers_are_no_loss(change: Callable[[Tokenizer], None], tiny_model: Path, tmp_path: Path) -> None:
    folder = folder_of(tiny_model, tmp_path)
    tokenizer = byte_level()
    change(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    set_fields(folder / "tokenizer_config.json", unk_token=...)
    assert len(load_tokenizer(str(folder))) == tokenizer.get_vocab_size()


def test_a_vocabulary_of_few_characters_is_no_loss(tiny_model: Path, tmp_path: Path) -> None:
    """Without bytes to fall back on, emoji become the unknown token; spaces and words stay."""
    folder = folder_of(tiny_model, tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["byte_fallback"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(str(folder)).unk_token == "<unk>"


def test_tokenizer_model_alone_is_enough(tiny_model: Path, tmp_path: Path) -> None:
    """A SentencePiece model, as Mistral and Llama 2 ship it: the ids are SentencePiece's own."""
    folder = folder_of(tiny_model, tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents(7, 300)), model_prefix=str(folder / "tokenizer"), vocab_size=600, model_type="bpe",
        byte_fallback=True, add_dummy_prefix=True, remove_extra_whitespaces=False, normalization_rule_name="identity",
        minloglevel=2, num_threads=1,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    set_fields(
        folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", legacy=True, add_bos_token=True,
    )  # fmt: skip
    expected = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    found = load_tokenizer(str(folder))
    for text in ("Hello, how are you?", "one\ntwo 🙂"):
        assert found(text, add_special_tokens=False).input_ids == expected.encode(text)
    source = find_model(ModelOptions(path=str(folder)))
    assert open_tokenizer(source, DataOptions()).prompt([{"role": "user", "content": "Hi"}])[0] == found.bos_token_id


def test_a_folder_with_mistral_s_own_format_only_is_named(tiny_model: Path, tmp_path: Path) -> None:
    folder = folder_of(tiny_model, tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "tekken.json").write_text('{"config": {}, "vocab": []}')
    with pytest.raises(InputError, match="tekken.json, Mistral's own tokenizer format.*tokenizer.json"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("text", ["{", '{"model_type": "mistral", "num_hidden_layers": "four"}'])
def test_a_broken_config_is_not_blamed_on_the_tokenizer(text: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = folder_of(tiny_model, tmp_path)
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=f"^transformers cannot read {folder}/config.json"):
        load_tokenizer(str(folder))


# ---- templates ----


def in_a_list(folder: Path) -> None:
    templates = [{"name": "default", "template": CHATML}, {"name": "other", "template": OTHER}]
    set_fields(folder / "tokenizer_config.json", chat_template=templates)


def in_a_folder(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "other.jinja").write_text(OTHER)


def in_a_json_file(folder: Path) -> None:
    templates = [{"name": "default", "template": CHATML}, {"name": "other", "template": OTHER}]
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": templates}))


@pytest.mark.parametrize("put", [in_a_list, in_a_folder, in_a_json_file])
def test_the_default_template_is_used_and_another_can_be_named(
    put: Callable[[Path], None], tiny_model: Path, tmp_path: Path
) -> None:
    folder = folder_of(tiny_model, tmp_path)
    put(folder)
    tokenizer = load_tokenizer(str(folder))
    sources = {choice: load_template(choice, tokenizer).source for choice in ("tokenizer", "tokenizer:other")}
    assert sources == {"tokenizer": CHATML, "tokenizer:other": OTHER}
    with pytest.raises(InputError, match="got 'third'. It has `tokenizer:default`, `tokenizer:other`"):
        load_template("tokenizer:third", tokenizer)


def test_one_template_in_a_json_file_is_used(tiny_model: Path, tmp_path: Path) -> None:
    folder = folder_of(tiny_model, tmp_path)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    assert load_template("tokenizer", load_tokenizer(str(folder))).source == CHATML
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(InputError, match="chat_template.json holds no text"):
        load_tokenizer(str(folder))


# ---- tokens beyond the embedding ----


def test_a_padding_token_beyond_the_embedding_is_fine(tiny_model: Path, tmp_path: Path) -> None:
    """It never occurs: not even where a user spells it."""
    folder = folder_of(tiny_model, tmp_path)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    source = find_model(ModelOptions(path=str(folder)))
    chat = open_tokenizer(source, DataOptions())
    assert len(load_tokenizer(str(folder))) == source.model_config.vocab_size + 1
    assert chat.prompt([{"role": "user", "content": "a [PAD] b"}]).max() < source.model_config.vocab_size


@pytest.mark.parametrize("use", ["template", "variable", "end", "text"])
def test_a_token_beyond_the_embedding_that_can_occur_is_refused(use: str, tiny_model: Path) -> None:
    """Written by the template, ending an answer, or read from text: each would index the embedding beyond its end."""
    source = find_model(ModelOptions(path=str(tiny_model)))
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.add_special_tokens({"pad_token": "<|im_start|>"})
    tokenizer.chat_template = OTHER
    if use == "template":
        tokenizer.chat_template = CHATML
    elif use == "variable":
        tokenizer.chat_template = CHATML.replace("'<|im_start|>'", "pad_token")
    elif use == "end":
        tokenizer.eos_token = "<|im_start|>"
    else:
        tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    template = load_template("zephyr" if use == "end" else "tokenizer", tokenizer)
    with pytest.raises(InputError, match="tokens beyond the embedding can occur"):
        check_vocabulary(source.model_config, tokenizer, "it", template)


# ---- reported folders ----

PROMPT = [{"role": "user", "content": TEXT}]


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "01-04-mistral-saved-by-transformers5", "02-03-smollm2-base-chatml", "06-bytelevel-as-llama", "14-named-templates",
        "24-tokenizer.model-only", "28-pad-token-not-resized",
    ],
)  # fmt: skip
def test_reported_folders_give_text_back(name: str, shared: Path) -> None:
    folder = shared / "cases" / "checkpoints" / name
    if not folder.is_dir():
        pytest.skip("these cases are not here")
    source = find_model(ModelOptions(path=str(folder)))
    tokenizer = load_tokenizer(str(source.folder))
    chat: ChatTokenizer = open_tokenizer(source, DataOptions())
    ids = chat.prompt(PROMPT)
    assert ids.max() < source.model_config.vocab_size
    assert TEXT in tokenizer.decode(ids)
    if (folder / "tokenizer.json").exists():
        expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
        assert tokenizer(TEXT, add_special_tokens=False).input_ids == expected
    if name.startswith("14"):
        assert load_template("tokenizer", tokenizer).source == tokenizer.chat_template["default"]
