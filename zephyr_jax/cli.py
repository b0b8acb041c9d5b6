"""The command line: arguments to a command and its config, errors to messages and exit codes."""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from zephyr_jax import log, startup
from zephyr_jax.commands import COMMANDS, GROUPS, plan_type
from zephyr_jax.config.inherited import unused
from zephyr_jax.errors import InputError, Stopped, TrainingError, did_you_mean, terminal_text

logger = logging.getLogger(__name__)

_EX_TEMPFAIL = 75  # of sysexits.h: everything is saved, the same command resumes

_USAGE = "usage: zephyr-jax COMMAND [--config CARD.yaml] [--setting VALUE ...]"
_DESCRIPTION = "Align a chat model with AI feedback (arXiv 2310.16944), in JAX on TPUs, GPUs and CPUs."
_ENDING = (
    "`zephyr-jax COMMAND --help` lists a command's settings with their defaults (a card's values, with --config) and examples. "
    "The paper's pipeline: sft, then reference and dpo with one card, then export."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    The config is checked and Cloud Storage's errors are translated here, once for all commands.

    Args:
        arguments: What follows `zephyr-jax`; default: `sys.argv`.

    Raises:
        SystemExit: 2 for bad input, 3 for a run that had to stop, 75 for one that was preempted and saved, 130 for Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_overview())
        else:
            _run(words)
    except InputError as error:
        _stop(f"error: {error}", 2)
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        reason = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        _stop(f"error: {reason}. Free disk space or check permissions; results that were complete are kept.", 2)
    except TrainingError as error:
        _stop(f"stopped: {error}", 3)
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        raise SystemExit(_EX_TEMPFAIL) from None
    except KeyboardInterrupt:
        _stop("interrupted: run the same command again to resume from what was saved.", 130)


def _run(words: list[str]) -> None:
    from zephyr_jax.config import validation
    from zephyr_jax.storage.cloud import translate_cloud_errors

    name, options = split_command(words)
    level, options = _take_option("--log_level", options)
    log.configure(_log_level(level))
    command = COMMANDS[name]
    if {"-h", "--help"}.intersection(options):
        print(_command_help(name, options))
        return
    kind = plan_type(_take_option("--step", options)[0]) if name == "plan" else command.config_type()
    config: Any = parse(kind, name, options)
    if command.cpu_only:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    with translate_cloud_errors():
        validation.validate(config)
        run = command.function()
        startup.add_phase("import")
        text = run(config, shlex.join(["zephyr-jax", *words]))
    if text is not None:
        print(terminal_text(text))  # it may hold text of models, data or checkpoints


def _log_level(given: str | None) -> log.Level:
    for level in log.LEVELS:
        if level == (given or "info"):
            return level
    raise InputError(f"`log_level`: expected {', '.join(log.LEVELS)}, got {given!r}.")


def _overview() -> str:
    """The commands, grouped by purpose."""
    from zephyr_jax.config.help_text import paragraphs, table_row, terminal_width

    width = terminal_width()
    lines = [*paragraphs(_USAGE, width, 0), "", *paragraphs(_DESCRIPTION, width, 0)]
    for purpose, commands in GROUPS.items():
        lines += ["", f"{purpose}:"]
        for name, command in commands.items():
            lines += table_row(name, command.help, width)
    return "\n".join([*lines, "", *paragraphs(_ENDING, width, 0)])


def _command_help(name: str, options: list[str]) -> str:
    from zephyr_jax.config.help_text import command_help

    command = COMMANDS[name]
    card, _ = _take_option("--config", options)
    return command_help(name, _defaults(command.config_type(), card), command.positional, command.examples)


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """The command, of one word or two (`reference ls`), and its arguments. Raises InputError for an unknown command."""
    two = " ".join(words[:2])
    if two in COMMANDS:
        return two, words[2:]
    first, second = words[0], next(iter(words[1:]), "-")
    subcommands = [name.removeprefix(f"{first} ") for name in COMMANDS if name.startswith(f"{first} ")]
    if subcommands and not second.startswith("-") and (first not in COMMANDS or get_close_matches(second, subcommands)):
        raise InputError(f"Unknown command `{two}`.{did_you_mean(second, subcommands, f'{first} ')}")
    if first in COMMANDS:
        return first, words[1:]
    if subcommands:
        raise InputError(
            f"`{first}`: expected {' or '.join(f'`{first} {name}`' for name in subcommands)}, got no subcommand."
        )
    raise InputError(f"Unknown command `{first}`.{did_you_mean(first, COMMANDS)}")


def parse[C](kind: type[C], command: str, words: list[str]) -> C:
    """The config of a command line.

    Args:
        kind: The command's config class.
        command: Name of the command.
        words: Its arguments: `--config CARD` (defaults), overrides, and for some commands one positional argument.

    Raises:
        InputError: For an unknown setting, a value that its setting cannot hold, or an unexpected argument.
    """
    import tyro

    from zephyr_jax.config.overrides import check_flags, check_values, normalize, set_positional, take_mappings
    from zephyr_jax.config.settings import settings_of
    from zephyr_jax.config.yaml_file import expand_home

    card, words = _take_option("--config", words)
    default = _defaults(kind, card)
    settings = list(settings_of(default))
    words = normalize(words, settings)
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    default, words = take_mappings(default, words, settings)
    positional = COMMANDS[command].positional
    check_flags(words, settings, positional)
    check_values(words, settings)
    config, rest = tyro.cli(
        kind,
        prog=f"zephyr-jax {command}",
        default=default,
        args=words,
        return_unknown_args=True,
        use_underscores=True,
        add_help=False,
        config=(tyro.conf.EnumChoicesFromValues,),
    )
    config = set_positional(config, command, positional, rest, words)
    if idle := list(unused(command, given)):
        logger.info("`%s` does not use %s; it accepts the settings of a card for all stages", command, ", ".join(idle))
    return expand_home(config)


def _defaults[C](kind: type[C], card: str | None) -> C:
    from zephyr_jax.config.yaml_file import load_card

    return load_card(kind, card) if card else kind()


def _take_option(option: str, words: list[str]) -> tuple[str | None, list[str]]:
    """The value of an option of every command, and the words without it."""
    for index, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2], [*words[:index], *words[index + 1 :]]
        if word == option:
            if index + 1 == len(words):
                raise InputError(f"`{option}`: expected a value, got none.")
            return words[index + 1], [*words[:index], *words[index + 2 :]]
    return None, words


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    if "zephyr_jax.parallel.hosts" in sys.modules:
        from zephyr_jax.parallel.hosts import abort_all_hosts

        abort_all_hosts(message, code)
    raise SystemExit(code)
