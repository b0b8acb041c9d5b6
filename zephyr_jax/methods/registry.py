"""The registry of training methods. A method's name, its type of settings or the columns of its rows find it."""

from collections.abc import Collection

from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training import SftConfig
from zephyr_jax.data.sources import open_rows
from zephyr_jax.errors import join_items
from zephyr_jax.methods.base import Method
from zephyr_jax.methods.dpo import DPO
from zephyr_jax.methods.sft import SFT

METHODS: dict[str, Method] = {method.name: method for method in (SFT, DPO)}
"""Every method by name, in the order of the training stages."""


def method_of(config: SftConfig) -> Method:
    """The method whose settings these are: the one with the nearest type."""
    by_type = {method.config: method for method in METHODS.values()}
    return next(by_type[base] for base in type(config).__mro__ if base in by_type)


def method_of_rows(data: DataOptions, trained_by: str | None = None) -> Method:
    """The method that trains on rows with the columns of `data`'s.

    Args:
        data: Where the rows are.
        trained_by: Name of the method of the run that the rows are for; preferred among methods with the same `row_column`.

    Raises:
        InputError: The rows cannot be opened.
    """
    return method_of_columns(open_rows(data.path, data.split, data.revision, data.limit).fields, trained_by)


def method_of_columns(columns: Collection[str], trained_by: str | None = None) -> Method:
    """The method that trains on rows with these columns; `trained_by` as in `method_of_rows`."""
    candidates = [method for method in METHODS.values() if method.row_column in columns]
    named = [method for method in candidates if method.name == trained_by]
    return next(iter([*named, *candidates]), SFT)


def method_names() -> str:
    """The names of all methods, for messages."""
    return join_items([f"`{name}`" for name in METHODS], len(METHODS))
