"""The language of the package, READMEs, cards and launchers: no banned words, and no class name twice."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zephyr_jax"
PAGES = [
    ROOT / "README.md",
    ROOT / "launch" / "README.md",
    *ROOT.glob("benchmarks/[!A-Z]*.md"),
    ROOT / "benchmarks" / "README.md",
]
SCRIPTS = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.yaml")]
"""Cards and launchers; their comments are checked."""
PHRASES = re.compile(
    r"\b(anew|aside|so many|so much|whoever|nobody|somebody|told|tells?|said|says?|(?:is|are) (?-i:none|no)|in words|for people|"
    r"of (?:ours|its own|their own)|what it (?:is|was)|sick|sickness|spelt|there and back|by hand|verbs?)\b",
    re.IGNORECASE,
)
WORDS = re.compile(
    r"anew|aside|whoever|nobody|somebody|told|tells?|said|says?|sick|sickness|spelt|verbs?|recipes?|listing|shown|explained|"
    r"patience|hush|speaker|voice|desk|jury|opinion|wish|manner"
)
"""Not a part of any name."""
LOCALS = re.compile(r"each|found|most|places?|how|what|there|whole|here")
"""Not the name of a function, argument or variable: none of these names its content."""


def text_violations(source: str) -> Iterator[str]:
    """`line: phrase` for each banned phrase in strings and comments."""
    texts = (tokenize.STRING, tokenize.COMMENT, tokenize.FSTRING_MIDDLE)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in texts:
            for match in PHRASES.finditer(" ".join(token.string.split())):
                yield f"{token.start[0]}: `{match.group()}`"


def name_violations(source: str) -> Iterator[str]:
    """`line: name` for each defined name that holds a banned word or is a banned local."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            name, line = node.name, node.lineno
        elif isinstance(node, ast.arg):
            name, line = node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name, line = node.id, node.lineno
        else:
            continue
        parts = {part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
        if any(map(WORDS.fullmatch, parts)) or LOCALS.fullmatch(name):
            yield f"{line}: `{name}`"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_banned_words(path: Path) -> None:
    source = path.read_text()
    assert not [*text_violations(source), *name_violations(source)]


def page_violations(text: str, *, comments_only: bool) -> list[str]:
    """Banned phrases of a page, also across line breaks; `comments_only`: of its comments with `#`."""
    if comments_only:
        text = "\n".join(re.findall(r"(?:^|\s)#+ ?(.*)", text))
    return [match.group() for match in PHRASES.finditer(" ".join(text.split()))]


@pytest.mark.parametrize("path", sorted(PAGES + SCRIPTS), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_words_in_pages_and_scripts(path: Path) -> None:
    assert not page_violations(path.read_text(), comments_only=path in SCRIPTS)


def test_the_rules_find_what_they_ban() -> None:
    """Both checks report a banned phrase and a banned name, and pass plain sentences."""
    assert list(text_violations('"""Computed anew."""\nx = f"row {x} set aside"  # is no file\n')) == [
        "1: `anew`",
        "2: `aside`",
        "2: `is no`",
    ]
    assert list(name_violations("def _told(rows): pass\nfor each in rows: pass\n")) == ["1: `_told`", "2: `each`"]
    assert page_violations("A row is\nnone, set aside.", comments_only=False) == ["is none", "aside"]
    assert page_violations("said=1  # set\n# aside\n", comments_only=True) == ["aside"]
    assert not [
        *text_violations('"""Say nothing: `essay`."""'.replace("Say", "Print")),
        *name_violations("essays = 1\n"),
    ]


def test_class_names_are_unique() -> None:
    """A class name stands for one thing in the package."""
    modules: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                modules.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert not {name: paths for name, paths in modules.items() if len(paths) > 1}
