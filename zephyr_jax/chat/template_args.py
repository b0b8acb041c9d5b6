"""Template arguments (`data.template_args`): values of variables that a chat template reads, such as `enable_thinking`.

They are written into the template's source as defaults, as its date is. So they travel with the template: into the cache of
tokens, to later stages, to `generate` and `serve`, and into an export, which renders equal text without any argument.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from jinja2 import meta, nodes

from zephyr_jax.chat.template_syntax import parse_template
from zephyr_jax.config.sections import TemplateValue
from zephyr_jax.errors import InputError, did_you_mean, join_items, truncate_repr

_MARK = "{# template_args #}"
_LINE = re.compile(
    rf"{re.escape(_MARK)}{{% set (?P<name>\w+) = (?P=name) if (?P=name) is defined else (?P<value>.*) %}}\n"
)
_RENDERER = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "raise_exception",
        "strftime_now",
        "range",
        "dict",
        "namespace",
        "lipsum",
        "cycler",
        "joiner",
        "loop",
        "caller",
        "varargs",
        "kwargs",
    }
)
"""Names that the renderer sets, besides those of special tokens, which end in `_token` or `_tokens`."""


def is_renderer_name(name: str, special_tokens: Collection[str] = ()) -> bool:
    """Whether the renderer sets a variable: the messages, a special token, a function."""
    return name in _RENDERER or name in special_tokens or name.endswith(("_token", "_tokens"))


def template_variables(source: str, special_tokens: Collection[str] = ()) -> list[str]:
    """Names that a template reads and the renderer does not set, sorted: what `data.template_args` may set.

    A variable that the template assigns counts only where the template also handles a value from outside: with the tests
    `defined` and `undefined` or the filter `default`.

    Args:
        source: A Jinja template.
        special_tokens: Names of the tokenizer's special tokens.
    """
    tree = parse_template(split_args(source)[1])
    if tree is None:
        return []
    assigned = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
    names = meta.find_undeclared_variables(tree) - (assigned - _with_default(tree))
    return sorted(name for name in names if not is_renderer_name(name, special_tokens))


def _with_default(tree: nodes.Template) -> set[str]:
    """Variables that a template tests for being set."""
    tests = (node.node for node in tree.find_all(nodes.Test) if node.name in ("defined", "undefined"))
    filters = (node.node for node in tree.find_all(nodes.Filter) if node.name in ("default", "d"))
    return {node.name for node in (*tests, *filters) if isinstance(node, nodes.Name)}


def split_args(source: str) -> tuple[dict[str, TemplateValue], str]:
    """The arguments that `with_args` has written into a source, and the source without them."""
    args: dict[str, TemplateValue] = {}
    while match := _LINE.match(source):
        args[match["name"]], source = json.loads(match["value"]), source[match.end() :]
    return args, source


def with_args(source: str, args: Mapping[str, TemplateValue]) -> str:
    """The source with arguments as the values of variables that the caller of the template does not set.

    Arguments that the source has already stay, unless `args` has them, too.
    """
    earlier, bare = split_args(source)
    values = {**earlier, **args}
    # Jinja drops one line end after a block, so that the template itself begins at the start of a line as it did.
    lines = [
        f"{_MARK}{{% set {name} = {name} if {name} is defined else {json.dumps(values[name], ensure_ascii=False)} %}}\n"
        for name in sorted(values)
    ]
    return "".join(lines) + bare


def check_args(args: Mapping[str, Any], source: str, choice: str, special_tokens: Collection[str]) -> None:
    """Raise InputError for arguments that the template does not read, that the renderer sets, or with values of other types.

    Args:
        args: Name -> value, as `data.template_args` has them.
        source: The template.
        choice: Its name, for errors.
        special_tokens: Names of the tokenizer's special tokens.
    """
    reads = template_variables(source, special_tokens)
    for name, value in args.items():
        if is_renderer_name(name, special_tokens):
            raise InputError(
                f"data.template_args.{name}: expected a variable of the chat template's own, got one that the renderer sets. "
                "Remove it."
            )
        if name not in reads:
            names = f"it reads {join_items([f'`{read}`' for read in reads], 20)}" if reads else "it reads no variable"
            raise InputError(
                f"data.template_args.{name}: expected a variable that the chat template `{choice}` reads, got `{name}`; {names}."
                f"{did_you_mean(name, reads, 'data.template_args.') if reads else ' Remove it.'}"
            )
        if not is_plain(value):
            raise InputError(
                f"data.template_args.{name}: expected a boolean, a finite number, a text or a list of these, got "
                f"{truncate_repr(value)}."
            )


def is_plain(value: Any) -> bool:
    """Whether a value can be written into a template: bool, int, finite float, text, or a list of these."""
    values = value if isinstance(value, list | tuple) else [value]
    return all(
        isinstance(item, bool | int | str) or (isinstance(item, float) and math.isfinite(item)) for item in values
    )
