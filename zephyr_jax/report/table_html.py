"""Rows and columns, and pairs of names and values."""

from collections.abc import Mapping, Sequence
from typing import Any

from zephyr_jax.report.markup import Markup, cut, element

_LONGEST = 1000  # letters of a cell


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> Markup:
    """A table whose first column names its rows; it can be pushed sideways where the screen is narrow."""
    head = element("thead", element("tr", *[element("th", _cell(each), scope="col") for each in header]))
    body = element("tbody", *[_row(row) for row in rows])
    return element(
        "div", element("table", head, body), class_="scroll", tabindex="0", role="region", aria_label="table"
    )


def facts(values: Mapping[str, object]) -> Markup:
    """Names and what they are."""
    rows = [
        element("tr", element("th", _cell(name), scope="row"), element("td", _cell(value)))
        for name, value in values.items()
    ]
    return element("table", element("tbody", *rows), class_="facts")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return found


def _row(row: Sequence[object]) -> Markup:
    first, *others = row
    return element("tr", element("th", _cell(first), scope="row"), *[element("td", _cell(each)) for each in others])


def _cell(value: object) -> str | Markup:
    return value if isinstance(value, Markup) else cut(str(value), _LONGEST)
