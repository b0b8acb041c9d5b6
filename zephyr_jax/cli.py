"""The command line: arguments to a command and its config, errors to messages and exit codes."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from zephyr_jax import log, startup
from zephyr_jax.commands import COMMANDS, plan_type
from zephyr_jax.config.inherited import unused
from zephyr_jax.errors import InputError, Stopped, TrainingError, did_you_mean, join_items, terminal_text

logger = logging.getLogger(__name__)

_EX_TEMPFAIL = 75  # of sysexits.h: everything is saved, the same command resumes

_USAGE = """\
zephyr-jax: align a chat model with AI feedback (arXiv 2310.16944), in JAX on TPUs

  zephyr-jax COMMAND [--config CARD.yaml] [--section.setting VALUE ...] [--log_level LEVEL]

{commands}

`zephyr-jax COMMAND --help` lists every setting with its default (the card's value, with --config).
Pipeline: sft, then reference, then dpo with the same card, then export.
--log_level is {levels}; default: info.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    The config is checked and Cloud Storage's errors are translated here, once for all commands.

    Args:
        arguments: What follows `zephyr-jax`; default: `sys.argv`.

    Raises:
        SystemExit: 2 for bad input, 3 for a run that had to stop, 75 for one that was preempted and saved, 130 for Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:<23} {command.help}" for name, command in COMMANDS.items())
        print(_USAGE.format(commands=commands, levels=", ".join(log.LEVELS)))
        return
    try:
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


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """The command, of one word or two (`reference ls`), and its arguments. Raises InputError for an unknown command."""
    two = " ".join(words[:2])
    if two in COMMANDS:
        return two, words[2:]
    first, second = words[0], next(iter(words[1:]), "-")
    subcommands = [name for name in COMMANDS if name.startswith(f"{first} ")]
    if subcommands and not second.startswith("-"):
        raise InputError(f"Unknown command `{two}`.{did_you_mean(two, subcommands)}")
    if first in COMMANDS:
        return first, words[1:]
    if subcommands:
        raise InputError(f"`{first}` needs a subcommand: {join_items(subcommands)}.")
    raise InputError(f"Unknown command `{first}`.{did_you_mean(first, COMMANDS)}")


def parse[C](kind: type[C], command: str, words: list[str]) -> C:
    """A config from `--config CARD` (defaults) and dotted overrides; tyro prints help and suggestions, and exits."""
    import tyro

    from zephyr_jax.config.yaml_file import expand_home, load_card

    card, overrides = _take_option("--config", words)
    _refuse_positional(command, overrides, kind)
    config = tyro.cli(
        kind,
        prog=f"zephyr-jax {command}",
        default=load_card(kind, card) if card else kind(),
        args=_expand_switches(_expand_paths(overrides, kind), _switches(kind)),
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff, tyro.conf.EnumChoicesFromValues),
    )
    if idle := list(unused(command, overrides)):
        logger.info("`%s` does not use %s; it accepts the settings of a card for all stages", command, ", ".join(idle))
    return expand_home(config)


def _refuse_positional(command: str, words: list[str], kind: Any) -> None:
    """Raise InputError for a value before any option, as in `lineage my-zephyr`."""
    if not words or words[0].startswith("-"):
        return
    types = get_type_hints(kind)
    names = [name for name in ("run", "path", "reference", "batch_file") if types.get(name) is str]
    names += [name for name in ("model", "data") if is_dataclass(types.get(name))]
    hint = " or ".join(f"`--{name} {shlex.quote(words[0])}`" for name in names)
    raise InputError(
        f"Unexpected argument `{words[0]}` of `{command}`. "
        + (f"Did you mean {hint}?" if hint else "Every value needs its setting before it.")
    )


def _switches(kind: Any, prefix: str = "--") -> set[str]:
    """The boolean settings of a config, as options."""
    types = get_type_hints(kind)
    nested = [_switches(inner, f"{prefix}{name}.") for name, inner in types.items() if is_dataclass(inner)]
    return {prefix + name for name, inner in types.items() if inner is bool}.union(*nested)


def _expand_switches(words: list[str], switches: set[str]) -> list[str]:
    """A switch without a value is on: `--fit` is `--fit True`."""
    expanded: list[str] = []
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        expanded += [word, "True"] if word in switches and following.startswith("--") else [word]
    return expanded


def _expand_paths(words: list[str], kind: Any) -> list[str]:
    """`--model PATH` is short for `--model.path PATH`, and so is `--data PATH`, where the config has such a section."""
    sections = [name for name, hint in get_type_hints(kind).items() if name in ("model", "data") and is_dataclass(hint)]
    short = re.compile(rf"^--({'|'.join(sections)})(?==|$)")
    return [short.sub(r"--\1.path", word) for word in words] if sections else words


def _take_option(option: str, words: list[str]) -> tuple[str | None, list[str]]:
    """The value of an option of every command, and the words without it."""
    for index, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2], [*words[:index], *words[index + 1 :]]
        if word == option:
            if index + 1 == len(words):
                raise InputError(f"`{option}` needs a value.")
            return words[index + 1], [*words[:index], *words[index + 2 :]]
    return None, words


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    if "zephyr_jax.parallel.hosts" in sys.modules:
        from zephyr_jax.parallel.hosts import abort_all_hosts

        abort_all_hosts(message, code)
    raise SystemExit(code)
