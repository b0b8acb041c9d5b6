"""Log lines: time, level, host; levels of this package and of libraries."""

import logging
import re
from collections.abc import Iterator

import pytest

from zephyr_jax import log

LOGGER = logging.getLogger("zephyr_jax.test")


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    log.configure()
    yield
    log.configure()
    log.set_host(0, 1)


def test_info_has_a_time_and_no_level(capsys: pytest.CaptureFixture[str]) -> None:
    LOGGER.info("step %d/%d", 1, 2)
    assert re.fullmatch(r"\d\d:\d\d:\d\d step 1/2\n", capsys.readouterr().err)


def test_other_levels_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    LOGGER.warning("careful")
    assert re.fullmatch(r"\S+ WARNING careful\n", capsys.readouterr().err)


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """Messages may hold text of models, rows and servers."""
    LOGGER.info("id %s", "a\x1b[2J\rb")
    assert capsys.readouterr().err.endswith(r"id a\x1b[2J\rb" + "\n")


def test_the_host_is_shown_only_when_there_are_several(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_host(1, 2)
    LOGGER.info("here")
    assert re.fullmatch(r"\S+ \[host 1\] here\n", capsys.readouterr().err)
    log.set_host(0, 1)
    LOGGER.info("here")
    assert re.fullmatch(r"\S+ here\n", capsys.readouterr().err)


def test_the_level_holds_for_this_package_and_not_for_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("error")
    LOGGER.warning("hidden")
    assert not capsys.readouterr().err
    log.configure("debug")
    LOGGER.debug("visible")
    logging.getLogger("httpx").info("request")
    logging.getLogger("some_library").info("detail")
    logging.getLogger("absl").error("raised again elsewhere")
    assert capsys.readouterr().err.endswith(" DEBUG visible\n")


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    log.configure()
    LOGGER.info("once")
    assert capsys.readouterr().err.count("once") == 1
