"""Checks of a whole config. The command line calls `validate` once, after card and arguments are merged; a Python program that
builds a config calls it before the pipeline. Pipelines do not check again."""

from typing import Protocol


class Config(Protocol):
    """Settings that can be checked."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""


def validate(config: Config) -> None:
    """Raise InputError for settings that are missing, out of range or contradictory."""
    config.check()
