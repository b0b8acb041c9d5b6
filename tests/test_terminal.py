"""What models and data write to a terminal: text, and nothing that a terminal obeys."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from zephyr_jax import cli
from zephyr_jax.config.inspect import PreviewConfig
from zephyr_jax.config.sections import DataOptions, ModelOptions
from zephyr_jax.errors import terminal_text
from zephyr_jax.generate import generate as generating
from zephyr_jax.generate.generate import GeneratedAnswer
from zephyr_jax.report.preview import preview
from zephyr_jax.serve import chat as chats

HOSTILE = {
    "colour": ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
    "title": ("\x1b]0;pwned\x07", "\\x1b]0;pwned\\x07"),
    "link": ("\x1b]8;;http://evil.test\x1b\\x\x1b]8;;\x1b\\", "\\x1b]8;;http://evil.test\\x1b\\x\\x1b]8;;\\x1b\\"),
    "clipboard": ("\x1b]52;c;cm0=\x07", "\\x1b]52;c;cm0=\\x07"),
    "overwritten": ("safe\rrm -rf", "safe\\rrm -rf"),
    "backspace": ("ab\b\bcd", "ab\\x08\\x08cd"),
    "eight bit": ("\x9b31m", "\\x9b31m"),
    "reversed": ("\u202eevil\u202c", "\\u202eevil\\u202c"),
    "isolates": ("\u2066a\u2069", "\\u2066a\\u2069"),
    "lines": ("a\u2028b\u0085c", "a\\u2028b\\x85c"),
    "invisible": ("a\ufeffb\u200bc", "a\\ufeffb\\u200bc"),
    "surrogate": ("a\ud800", "a\\ud800"),
    "null": ("a\0b", "a\\x00b"),
    "form feed": ("a\x0cb\x0bc", "a\\x0cb\\x0bc"),
    "tag": ("\U000e0041", "\\U000e0041"),
}
HARMLESS = (
    "a\n\tb",
    "é ß 日本　語",
    "👩\u200d👧",
    "نمی\u200cخواهم",
    "e\u0301",
    "\u00a0",
    "[bold]x[/bold]",
    "\ue000",
    "\ufffd",
    "C:\\new",
)


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert terminal_text(text) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_text_stays_as_it_is(text: str) -> None:
    assert terminal_text(text) == text


def obeyed(text: str) -> list[str]:
    """Characters of an output that a terminal would obey."""
    return [letter for letter in text if terminal_text(letter) != letter]


def test_generate_escapes_prompts_and_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [GeneratedAnswer(text, text, (), True) for text, _ in HOSTILE.values()]
    monkeypatch.setattr(generating, "generate", lambda config, **_: answers)
    cli.main(["generate", "--model", "x", "--prompts", "Hi"])
    out = capsys.readouterr().out
    assert not obeyed(out)
    assert all(f"> {shown}\n{shown}\n" in out for _, shown in HOSTILE.values())


def test_chat_escapes_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Talk:
        def answer(self, text: str) -> object:
            yield from (hostile for hostile, _ in HOSTILE.values())

    chats._print_answer(Talk(), "hi")  # the loop that prints an answer in pieces
    out = capsys.readouterr().out
    assert not obeyed(out)
    assert "".join(shown for _, shown in HOSTILE.values()) in out


def test_preview_escapes_rows(tiny_model: Path, tmp_path: Path) -> None:
    """Messages and ids."""
    texts = [text for text, _ in HOSTILE.values() if "\ud800" not in text]
    rows = [
        {
            "prompt_id": text,
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"{text}!"}],
        }
        for text in texts
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "out").open("w") as file:
        config = PreviewConfig(ModelOptions(path=str(tiny_model)), DataOptions(path=str(path)), num_examples=len(rows))
        preview(config, Console(file=file, force_terminal=False, width=200))
    assert not obeyed((tmp_path / "out").read_text())
