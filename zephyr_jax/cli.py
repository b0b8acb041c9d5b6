"""The command line: words to a verb and its config, errors to messages and exit codes."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from zephyr_jax import log, startup
from zephyr_jax.commands import VERBS
from zephyr_jax.config.inherited import unused
from zephyr_jax.errors import InputError, Stopped, TrainingError, did_you_mean, join_items

_SAVED_AND_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same again goes on

_USAGE = """\
zephyr-jax: align a chat model with AI feedback (arXiv 2310.16944), in JAX on TPUs

  zephyr-jax VERB [--config CARD.yaml] [--section.setting VALUE ...]

{verbs}

`zephyr-jax VERB --help` explains every setting with its default (the card's value, with --config).
The recipe: sft, then reference, then dpo with the same card, then export.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb. Exits 2 on bad input, 3 on a run that had to stop, 75 on one that was told to and saved."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    log.configure()
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE.format(verbs="\n".join(f"  {name:<23} {verb.about}" for name, verb in VERBS.items())))
        return
    try:
        verb, options = take_verb(words)
        kind, recipe = VERBS[verb].load()
        config: Any = parse(kind, verb, options)
        startup.add_phase("import")
        recipe(config, shlex.join(["zephyr-jax", *words]))
    except InputError as error:
        _stop(f"error: {error}", 2)
    except BrokenPipeError:  # whoever read what we print has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        reason = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        _stop(
            f"error: the system refuses: {reason}. Make room or check permissions; what was complete before stays.", 2
        )
    except TrainingError as error:
        _stop(f"stopped: {error}", 3)
    except Stopped as told:
        print(told, file=sys.stderr, flush=True)
        raise SystemExit(_SAVED_AND_STOPPED) from None
    except KeyboardInterrupt:
        _stop("interrupted: run the same command again to go on from what was saved.", 130)


def take_verb(words: list[str]) -> tuple[str, list[str]]:
    """The verb, of one word or two (`reference ls`), and what follows it. Raises InputError for one that is none."""
    two = " ".join(words[:2])
    if two in VERBS and len(words) > 1:
        return two, words[2:]
    longer = [name for name in VERBS if name.startswith(f"{words[0]} ")]
    if words[0] not in VERBS and not longer:
        raise InputError(f"`{words[0]}` is not a verb.{did_you_mean(words[0], VERBS)}")
    if words[0] not in VERBS and (len(words) == 1 or words[1].startswith("-")):
        raise InputError(f"`{words[0]}` alone is not a verb. Known here: {join_items(longer)}.")
    if longer and len(words) > 1 and not words[1].startswith("-"):
        raise InputError(f"`{two}` is not a verb.{did_you_mean(two, longer)}")
    if words[0] not in VERBS:
        raise InputError(f"`{words[0]}` is not a verb.{did_you_mean(words[0], longer or VERBS)}")
    return words[0], words[1:]


def parse[C](kind: type[C], verb: str, words: list[str]) -> C:
    """A config from `--config CARD` (defaults) and dotted overrides; tyro prints help and suggestions, and exits."""
    import tyro

    from zephyr_jax.config.yaml_file import expand_home, load_card

    card, overrides = _take_card(words)
    _check_first(verb, overrides, kind)
    idle = list(unused(verb, overrides))
    default = load_card(kind, card) if card else kind()
    config = tyro.cli(
        kind,
        prog=f"zephyr-jax {verb}",
        default=default,
        args=_spell_out(_by_path(overrides, kind), _switches(kind)),
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff, tyro.conf.EnumChoicesFromValues),
    )
    if idle:
        text = f"note: `{verb}` does not use {', '.join(idle)}; it accepts the settings of a card for all stages"
        print(text, file=sys.stderr, flush=True)
    return expand_home(config)


def _check_first(verb: str, words: list[str], kind: Any) -> None:
    """Raise InputError for a value before any setting, as in `lineage my-zephyr`."""
    if not words or words[0].startswith("-"):
        return
    types = get_type_hints(kind)
    names = [name for name in ("run", "path", "reference", "batch") if types.get(name) is str]
    names += ["model.path"] if "model" in types else []
    names += ["data.path"] if types.get("data") not in (None, str) else []
    meant = " or ".join(f"`--{name} {shlex.quote(words[0])}`" for name in names) or "its setting before it"
    raise InputError(f"`{words[0]}` follows no setting: every value of `{verb}` is named. Write {meant}.")


def _switches(kind: Any, prefix: str = "--") -> set[str]:
    """The settings of a config that are on or off, as options."""
    types = get_type_hints(kind)
    inner = [_switches(each, f"{prefix}{name}.") for name, each in types.items() if is_dataclass(each)]
    return {prefix + name for name, each in types.items() if each is bool}.union(*inner)


def _spell_out(words: list[str], switches: set[str]) -> list[str]:
    """A switch without a value is on: `--fit` is `--fit True`."""
    spelt: list[str] = []
    for word, after in zip(words, [*words[1:], "--"], strict=False):
        spelt += [word, "True"] if word in switches and after.startswith("--") else [word]
    return spelt


def _by_path(words: list[str], kind: Any) -> list[str]:
    """`--model PATH` is short for `--model.path PATH`, and so is `--data PATH`, where a verb has such a section."""
    sections = [name for name, each in get_type_hints(kind).items() if name in ("model", "data") and is_dataclass(each)]
    short = re.compile(rf"^--({'|'.join(sections)})(?==|$)")
    return [short.sub(r"--\1.path", word) for word in words] if sections else words


def _take_card(words: list[str]) -> tuple[str | None, list[str]]:
    for index, word in enumerate(words):
        if word.startswith("--config="):
            return word.removeprefix("--config="), [*words[:index], *words[index + 1 :]]
        if word == "--config":
            if index + 1 == len(words):
                raise InputError("`--config` needs the path of a card, such as configs/tiny/sft.yaml.")
            return words[index + 1], [*words[:index], *words[index + 2 :]]
    return None, words


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr, flush=True)
    if "zephyr_jax.parallel.hosts" in sys.modules:
        from zephyr_jax.parallel.hosts import abort_all_hosts

        abort_all_hosts(message, code)
    raise SystemExit(code)
