"""Which of TRL's chat templates can be trained on, and why not: `python -m benchmarks.templates`, where trl is installed.

TRL is not imported and not a dependency: its templates are files of its package (or of a folder named in the command).
`python -m benchmarks.templates --print FOLDER` prints the rows of other templates, one per *.jinja in FOLDER.
Each is tried on the demo's tokenizer with the template's own markers added as special tokens. Writes the
generated part of docs/templates.md.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedTokenizerBase

import zephyr_jax
from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.chat.template_args import template_variables
from zephyr_jax.chat.template_loader import Answers
from zephyr_jax.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.errors import InputError

BASE = Path(zephyr_jax.__file__).parent / "demo" / "assets" / "base"
TABLE = Path(__file__).parents[1] / "docs" / "templates.md"
_MARKS = re.compile(
    r"<[|｜][^<>|｜{}'\"]+[|｜]>|<\|?[a-z_]+\|>|<[a-z]+\|>"  # <|im_end|>, <turn|>
    r"|</?[a-z]+_of_[a-z]+>|</?s>|\[/?[A-Z_]+\]"  # <end_of_turn>, </s>, [INST]
)
HEADING = "## Chat templates of TRL "
"""Where the generated part of docs/templates.md begins."""
_ABOUT = """\
{heading}{version}

Made by `python -m benchmarks.templates`; `tests/chat/test_trl_templates.py` repeats it where trl {version} is installed.
Each template is tried on one tokenizer with its own markers as special tokens. A template is accepted for training if it
shows where each answer starts and ends, if a special token ends the answer, and if the generation prompt begins the
training text, in token ids, with and without a system message, at one and at two answers. `last` marks those that are
accepted with `data.multi_turn: last` only; pairs need no setting. A template that is refused for training can still be used
by `generate`, `chat` and `serve`. Arguments are the variables that `data.template_args` may set.
"""
_CHAT = [
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "second answer"},
]


def trl_templates() -> Path | None:
    """The folder of the installed TRL's chat templates; None where TRL is not installed."""
    spec = find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates" if spec and spec.origin else None
    return folder if folder and folder.is_dir() else None


def verdict(template: Path) -> str:
    """`accepted` or `last` with the stop tokens, or the reason of the refusal."""
    tokenizer = _tokenizer(template.read_text())
    refusals = []
    for outcome, answers in _OUTCOMES.items():
        try:
            chat = load_chat_tokenizer(str(template), tokenizer, answers=answers)
        except InputError as error:
            refusals.append(_reason(str(error), template))
            continue
        stops = " ".join(f"`{token}`" for token in chat.template.end_tokens)
        return f"{outcome}; stops at {stops}{_target(chat)}".replace("|", "\\|")
    return refusals[0]


_OUTCOMES: dict[str, Answers] = {"accepted": "all", "last": "last"}


def _target(chat: ChatTokenizer) -> str:
    """What the target of the last answer holds beside the answer, for templates that need `last`; raises where it is wrong."""
    if not chat.template.last_answer_only:
        return ""
    try:
        rendered = chat.template.render_last(_CHAT)
    except SkippedRow:
        return "; answers need reasoning"
    segment = chat.encode_last(rendered)
    text = chat.saved.backend.decode(segment.tokens[segment.targets].tolist(), skip_special_tokens=False)
    before, answer, end = text.partition("second answer")
    if not answer or not end.endswith(chat.template.end_tokens):
        raise RuntimeError(f"expected a target with the answer and an end token, got {text!r}")
    return f"; the target begins with `{before.encode('unicode_escape').decode()}`" if before.strip() else ""


def table(folder: Path) -> str:
    """Markdown rows of all templates: first those for training, then the stock ones."""
    paths = sorted(folder.glob("*.jinja"))
    parts = []
    for title, training in (("Training templates", True), ("Stock templates", False)):
        names = [path for path in paths if path.stem.endswith("_training") == training]
        verdicts = {path: verdict(path) for path in names}
        counts = [sum(text.startswith(outcome) for text in verdicts.values()) for outcome in _OUTCOMES]
        rows = [_row(path, text) for path, text in verdicts.items()]
        heading = f"### {title}: {counts[0]} of {len(names)} accepted, {counts[1]} more with `last`"
        parts.append("\n".join([heading, "", "| template | verdict | arguments |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def page(folder: Path, trl: str) -> str:
    """The generated part of docs/templates.md."""
    return f"{_ABOUT.format(heading=HEADING, version=trl)}\n{table(folder)}"


def _row(template: Path, text: str) -> str:
    return f"| {template.stem} | {text} | {_arguments(template)} |"


def _arguments(template: Path) -> str:
    return " ".join(f"`{name}`" for name in template_variables(template.read_text()))


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(str(BASE))
    marks = sorted(set(_MARKS.findall(source)) - {"<s>", "</s>"})
    tokenizer.add_special_tokens({"extra_special_tokens": marks})
    return tokenizer


def _reason(error: str, template: Path) -> str:
    reason = error.replace(f"The chat template `{template}` ", "").partition(". ")[0]
    return " ".join(reason.split())[:240].replace("|", "\\|").replace("cannot be used for training: ", "")


def main() -> None:
    """Write the table for the installed TRL, or for the package folder and version that are given."""
    if sys.argv[1:2] == ["--print"]:
        print("\n".join(_row(path, verdict(path)) for path in sorted(Path(sys.argv[2]).glob("*.jinja"))))
        return
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else trl_templates()
    if folder is None:
        raise SystemExit("trl is not installed. Install it, or pass the folder of its chat templates and its version.")
    if not any(folder.glob("*.jinja")):
        raise SystemExit(f"{folder}: expected a folder with chat templates (*.jinja), got none.")
    try:
        trl = sys.argv[2] if len(sys.argv) > 2 else version("trl")
    except PackageNotFoundError:
        raise SystemExit("Pass the version of trl after the folder of its chat templates.") from None
    guide, _, _ = TABLE.read_text().partition(HEADING)
    TABLE.write_text(guide + page(folder, trl))


if __name__ == "__main__":
    main()
