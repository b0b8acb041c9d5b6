"""What a run and an export hold of tokenizer and template gives the very ids of training, to every transformers."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.golden.check_chat_ids import ids_of
from tests.tokenizers import CHATML, KINDS, write_tokenizer
from zephyr_jax.chat.exported_template import exported_template
from zephyr_jax.chat.message import Message, SkippedRow
from zephyr_jax.chat.saved_tokenizer import save_tokenizer
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.template_source import without_markers
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.errors import InputError

CHECK = Path(__file__).parents[1] / "golden" / "check_chat_ids.py"
TURN = "{{ message['role'] + ': ' + message['content'] + eos_token + '\n' }}"
LOOP = (
    "{% for message in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TEMPLATES = {
    "zephyr": None,
    "zephyr-no-system": None,
    "chatml": CHATML,
    "writes-bos": "{{ bos_token }}" + LOOP,
    "bos-with-system-only": "{% if messages[0]['role'] == 'system' %}{{ bos_token }}{% endif %}\n" + LOOP,
    "starts-with-space": "  \n  {% for message in messages %}\n    " + TURN + "\n{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '    assistant: ' }}{% endif %}\n",
    "bare-content": "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% else %}{{ '\n' }}{% endif %}{% endfor %}",
}  # fmt: skip
TEXTS = (
    "Hello!", " a leading space", "two\n\nlines ", "tab\tand  spaces", "ünïcödé 🙂 漢字", "2024-01-03, 1,000.5", "{{ braces }}",
    "a", "\nnewline first", "[INST] not a token [/INST]",
)  # fmt: skip


def conversations() -> list[list[Message]]:
    """Twenty: one and two turns, with and without a system message."""
    chats: list[list[Message]] = []
    for index, text in enumerate(TEXTS):
        other = TEXTS[(index + 3) % len(TEXTS)]
        turn = [{"role": "user", "content": text}, {"role": "assistant", "content": f"{other}."}]
        again = [{"role": "user", "content": other}, {"role": "assistant", "content": f"{text}!"}]
        system = [{"role": "system", "content": other}] if index % 2 else []
        chats += [[*system, *turn], [*system, *turn, *again]]
    return chats


def combination(folder: Path, kind: str, template: str, source: Path | None = None) -> dict[str, Any] | None:
    """An exported folder with the ids that training used; None where a template has no meaning for the tokenizer."""
    tokenizer = load_tokenizer(str(source or write_tokenizer(kind, folder / "base")))
    text = TEMPLATES[template]
    if text is not None:
        (folder / "template.jinja").write_text(text)
    try:
        choice = template if text is None else str(folder / "template.jinja")
        chat = ChatTokenizer(tokenizer, load_template(choice, tokenizer))
    except InputError:
        assert template == "chatml", "only ChatML needs tokens that a tokenizer may lack"
        return None
    chats = [probe for messages in conversations() for probe in ((messages, False), (messages[:-1], True))]
    trained = [chat.encode(chat.template.render(messages, asks)).tokens.tolist() for messages, asks in chats]
    exported = write(folder / "export", chat, without_markers(exported_template(chat)))
    return {"folder": str(exported), "chats": chats, "trained": trained, "name": f"{kind} {template}", "bos": chat.bos}


def write(folder: Path, chat: ChatTokenizer, template: str) -> Path:
    folder.mkdir()
    for name, content in chat.saved.files(10**6, template).items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return folder


@pytest.fixture(scope="module")
def combinations(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every tokenizer with every template that it can write."""
    root = tmp_path_factory.mktemp("combinations")
    found = []
    for kind in KINDS:
        for template in TEMPLATES:
            folder = root / f"{kind}-{template}"
            folder.mkdir()
            found.append(combination(folder, kind, template))
    made = [case for case in found if case is not None]
    assert len(made) > 50
    return made


def check(cases: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    """Ids, not text: from the template, from its text, and BOS once."""
    for case, result in zip(cases, results, strict=True):
        for way in ("template", "text"):
            assert result[way] == case["trained"], (case["name"], way)
        if case["bos"] is not None:
            starts = [ids[:2] for ids in result["template"]]
            assert all(first == case["bos"] != second for first, second in starts), case["name"]
        assert result["plain"][-1] != result["ids"][1], f"{case['name']}: a prompt ends with eos"
        assert result["inputs"] == ["attention_mask", "input_ids"], case["name"]


def test_transformers_5_gives_the_trained_ids(combinations: list[dict[str, Any]]) -> None:
    check(combinations, [ids_of(case) for case in combinations])


def test_transformers_4_gives_the_trained_ids(combinations: list[dict[str, Any]], tmp_path: Path) -> None:
    """Run with ZEPHYR_TRANSFORMERS4_PYTHON=<a Python with transformers 4 and jinja2>; `.ci/run` makes one."""
    check(combinations, transformers_4(combinations, tmp_path))


def transformers_4(cases: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    python = os.environ.get("ZEPHYR_TRANSFORMERS4_PYTHON")
    if python is None:
        pytest.skip("ZEPHYR_TRANSFORMERS4_PYTHON names no Python with transformers 4")
    (folder / "cases.json").write_text(json.dumps(cases))
    subprocess.run([python, CHECK, folder / "cases.json", folder / "results.json"], check=True)
    return json.loads((folder / "results.json").read_text())


def test_an_export_is_exported_as_it_is(combinations: list[dict[str, Any]], tmp_path: Path) -> None:
    """Loaded and written again: the same template, tokenizer and settings, so that any number of stages changes nothing."""
    for number, case in enumerate(combinations):
        tokenizer = load_tokenizer(case["folder"])
        chat = ChatTokenizer(tokenizer, load_template("tokenizer", tokenizer))
        again = write(tmp_path / str(number), chat, without_markers(exported_template(chat)))
        for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
            assert (again / name).read_text() == (Path(case["folder"]) / name).read_text(), (case["name"], name)


def test_generation_markers_stay_in_a_run_s_template(tmp_path: Path) -> None:
    """A later stage reads from them what the assistant wrote; only an export goes without."""
    tokenizer = load_tokenizer(str(write_tokenizer("sentencepiece", tmp_path)))
    chat = ChatTokenizer(tokenizer, load_template("zephyr", tokenizer))
    assert "{% generation %}" in exported_template(chat)


def test_a_template_that_cannot_give_the_ids_is_refused(tmp_path: Path) -> None:
    """BOS swallows the line that the template begins with, in every form of it."""
    folder = write_tokenizer("sentencepiece", tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][1]["rstrip"] = True
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(folder))
    (tmp_path / "template.jinja").write_text("{{ '\n' }}" + LOOP)
    chat = ChatTokenizer(tokenizer, load_template(str(tmp_path / "template.jinja"), tokenizer))
    with pytest.raises(InputError, match=r"expected BOS '<s>' once and then the same tokens, got others"):
        exported_template(chat)


@pytest.mark.parametrize("kind", ["add-eos", "add-eos-generic", "llama-3", "no-bos", "sentencepiece"])
def test_settings_say_what_the_tokenizer_does(tmp_path: Path, kind: str) -> None:
    saved = save_tokenizer(load_tokenizer(str(write_tokenizer(kind, tmp_path))))
    settings = saved.files(10**6, None)["tokenizer_config.json"]
    assert settings["add_bos_token"] == (kind != "no-bos")
    assert settings["add_eos_token"] is False
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "chat_template" not in settings


def test_tokens_beyond_the_embedding_are_left_out(tmp_path: Path) -> None:
    """A pad token that was added without resizing the embedding: no input of the model could hold it."""
    folder = write_tokenizer("sentencepiece", tmp_path)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    saved = save_tokenizer(tokenizer)
    assert saved.special_id("pad_token", 1025) == 1024
    assert saved.special_id("pad_token", 1024) is None
    files = saved.files(1024, None)
    assert "pad_token" not in files["tokenizer_config.json"]
    assert "[PAD]" not in files["tokenizer.json"]
    assert saved.files(1025, None)["tokenizer_config.json"]["pad_token"] == "[PAD]"


CASES = (
    "01-04-mistral-saved-by-transformers5", "02-03-smollm2-base-chatml", "05-llama2-legacy-false", "24-tokenizer.model-only",
    "28-pad-token-not-resized",
)  # fmt: skip


def test_cases_give_the_trained_ids(shared: Path, tmp_path: Path) -> None:
    """Folders that failed once, to both versions of transformers."""
    made = []
    for name in CASES:
        for template in ("zephyr", "chatml"):
            folder = tmp_path / f"{name}-{template}"
            folder.mkdir()
            made.append(combination(folder, name, template, shared / "cases" / "checkpoints" / name))
    cases = [case for case in made if case is not None]
    assert len(cases) > len(CASES)
    check(cases, [ids_of(case) for case in cases])
    if "ZEPHYR_TRANSFORMERS4_PYTHON" in os.environ:
        check(cases, transformers_4(cases, tmp_path))


def test_rows_that_the_template_refuses_are_no_probes(tmp_path: Path) -> None:
    """A template without system messages, which raises for one."""
    tokenizer = load_tokenizer(str(write_tokenizer("sentencepiece", tmp_path)))
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (tmp_path / "template.jinja").write_text(refuse + LOOP)
    chat = ChatTokenizer(tokenizer, load_template(str(tmp_path / "template.jinja"), tokenizer))
    with pytest.raises(SkippedRow):
        chat.template.render([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], True)
    assert exported_template(chat).endswith("{{ bos_token }}" + refuse + LOOP)
