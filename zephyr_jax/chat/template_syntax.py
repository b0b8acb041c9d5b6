"""The syntax tree of a chat template, read as transformers reads it."""

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser


class _Markers(Extension):
    """Reads generation markers as transformers does: what is between them belongs to the template."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def parse_template(source: str) -> nodes.Template | None:
    """The syntax tree; None where the source is not valid Jinja, which rendering reports."""
    try:
        return Environment(extensions=[loopcontrols, _Markers]).parse(source)
    except (TemplateError, RecursionError):
        return None
