"""Rows of files, folders and hub data sets: `read_rows`."""

import os
from typing import Any

from zephyr_jax.data.sources import read_rows as read_source
from zephyr_jax.storage.cloud import translate_cloud_errors


@translate_cloud_errors()
def read_rows(
    path: str | os.PathLike[str], split: str = "train", *, revision: str | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Read rows from where `data.path` may point, for `score`, `tokenize` and `generate_text`.

    Args:
        path: A file (JSONL, JSON, Parquet, CSV, TSV or Arrow, compressed or not), a folder of them, or a hub id.
        split: The split to read; a single file has only `train`.
        revision: Hub revision.
        limit: Number of rows to read from the start; default: all.

    Returns:
        Rows by column name, with values as the source has them.

    Raises:
        InputError: The source cannot be opened, or a row cannot be parsed.
    """
    return [row.content for row in read_source(os.path.expanduser(path), split, revision, limit)]
