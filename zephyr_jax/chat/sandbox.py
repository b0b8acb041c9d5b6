"""Chat templates as programs from elsewhere: rendered in Jinja's sandbox, with limits on time and on the text that they make.

The dialect is that of transformers (`apply_chat_template`): `raise_exception`, `strftime_now`, `tojson`, `{% generation %}`, loop
controls. Every loop, call, filter, operator and output is charged to a budget, so that a template can neither run nor grow
without end.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from zephyr_jax.chat.message import REASONING_FIELDS
from zephyr_jax.chat.template_budget import (
    MAX_BITS,
    RenderBudget,
    budget,
    charge,
    charge_whole,
    check_call,
    check_format,
    check_product,
    check_size,
)


def render_sandboxed(
    source: str, messages: Sequence[Mapping[str, Any]], tools: Any = None, **variables: Any
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a template, and the character ranges [start, end) of its `{% generation %}` blocks.

    Args:
        source: A Jinja template.
        messages: The conversation, of plain JSON values. Reasoning is also passed under the other names that templates read.
        tools: JSON schemas of functions, or None.
        variables: More that the template may read: special tokens, `add_generation_prompt`.

    Raises:
        TemplateError: where the template is not sound, refuses its input, or passes a limit. Templates are programs: errors of
            any other kind may come from them, too.
    """
    token, ranges = budget.set(RenderBudget()), _Ranges()
    other = _ranges.set(ranges)
    try:
        chat = [_with_reasoning(message) for message in messages]
        for block in _compiled(source).generate(messages=chat, tools=tools, documents=None, **variables):
            ranges.blocks.append(block)
            ranges.length += len(block)
        return "".join(ranges.blocks), ranges.found
    finally:
        _ranges.reset(other)
        budget.reset(token)


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under `reasoning_content` and `thinking`, as transformers does."""
    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)
    return dict(message) if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


class _Ranges:
    """Text so far, and where the assistant's parts of it are."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.length = 0
        self.found: list[tuple[int, int]] = []


_ranges: ContextVar[_Ranges] = ContextVar("ranges")


class _Generation(Extension):
    """`{% generation %}`: what the assistant wrote."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """A call block around the body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _marked(self, _: Any, caller: Callable[[], str]) -> str:
        text, ranges = caller(), _ranges.get()
        ranges.found.append((ranges.length, ranges.length + len(text)))
        return text


class _CountedIterable:
    """An iterable whose items are charged one by one."""

    def __init__(self, items: Any, size: int):
        self._items, self._size = items, size

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        spend, size = budget.get().charge, self._size
        for item in self._items:
            spend(size)
            yield item


@pass_context
def _counted(_: Any, items: Any, size: int) -> _CountedIterable:
    return _CountedIterable(items, size)


@pass_context
def _charged(_: Any, value: Any) -> Any:
    return charge(value)


@pass_context
def _charged_whole(_: Any, value: Any) -> Any:
    return charge_whole(value)


class _ChargingGenerator(CodeGenerator):
    """Code in which loops count their rounds, and what grows is charged."""

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        """The module, after the tree has been changed."""
        super().visit_Template(_Charger().visit(node), frame)


class _Charger(NodeTransformer):
    """Wraps loops, outputs, concatenations and literals into filters that charge them."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Each round costs the template's own text within."""
        data = sum(len(text.data) for part in node.body for text in _data_of(part))
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_counted", nodes.Const(data))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        """What is written."""
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, nodes.TemplateData) else _filter(part, "_charged") for part in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Texts joined by `~`."""
        self.generic_visit(node)
        return _filter(node, "_charged")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        """A list, with all that its items hold."""
        self.generic_visit(node)
        return _filter(node, "_charged_whole")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        """A dict, likewise."""
        self.generic_visit(node)
        return _filter(node, "_charged_whole")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        """A tuple, unless it is assigned to."""
        self.generic_visit(node)
        return _filter(node, "_charged_whole") if node.ctx == "load" else node


def _data_of(node: nodes.Node) -> Iterable[nodes.TemplateData]:
    return [node] if isinstance(node, nodes.TemplateData) else node.find_all(nodes.TemplateData)


def _filter(node: nodes.Node, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which operators, calls and filters are charged."""

    code_generator_class = _ChargingGenerator
    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation, unless its result would be too large."""
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            budget.get().charge(len(left) + len(right))
            return left + right
        if operator == "*":
            check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_size(left.bit_length() * abs(right), MAX_BITS)
        elif operator == "%" and isinstance(left, str):
            check_format(left)
        return charge_whole(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call, with arguments of moderate size."""
        method = getattr(function, "__wrapped__", function)
        check_call(getattr(method, "__name__", ""), getattr(method, "__self__", None), [*args, *kwargs.values()])
        return charge_whole(super().call(context, function, *args, **kwargs))


def _charging(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments are checked and whose result is charged."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0
        value, *more = args[skipped:] or (None,)
        check_call(name, value, [*more, *kwargs.values()])
        return charge(function(*args, **kwargs))

    return run


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _TemplateDict:
    """`dict`, without attributes that lead to other classes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As that of `dict`."""
        return dict.fromkeys(*args)


class _TemplateNamespace(Namespace):
    """`namespace`, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        content = dict(*rest, **kwargs)
        for name in content:
            _check_name(name)
        Namespace.__init__(self, content)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, got {name!r}")


def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.filters = {name: _charging(name, function) for name, function in environment.filters.items()}
    environment.filters |= {"_counted": _counted, "_charged": _charged, "_charged_whole": _charged_whole}
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _TemplateDict(),
        "namespace": _TemplateNamespace,
    }
    del environment.globals["lipsum"]  # it makes random text
    return environment


@lru_cache
def _compiled(source: str) -> Template:
    return _environment().from_string(source)
