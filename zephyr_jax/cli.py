"""The command line: each verb is a typed config and a thin call into one recipe."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, get_type_hints

from zephyr_jax import startup
from zephyr_jax.errors import InputError, Stopped, TrainingError, suggestion

_SAVED_AND_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same again goes on

_USAGE = """\
zephyr-jax: align a chat model with AI feedback (arXiv 2310.16944), in JAX on TPUs

  zephyr-jax VERB [--config CARD.yaml] [--section.setting VALUE ...]

{verbs}

`zephyr-jax VERB --help` explains every setting with its default (the card's value, with --config).
The recipe: sft, then reference, then dpo with the same card, then export.
"""


@dataclass(frozen=True)
class Verb:
    """A command: what it says of itself, its config type and its recipe (imported only when it runs)."""

    about: str
    load: Callable[[], tuple[type, Callable[[Any, str], None]]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb. Exits 2 on bad input, 3 on a run that had to stop, 75 on one that was told to and saved."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise to install torch
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE.format(verbs="\n".join(f"  {name:<22} {verb.about}" for name, verb in VERBS.items())))
        return
    try:
        verb, options = take_verb(words)
        kind, recipe = VERBS[verb].load()
        config: Any = parse(kind, verb, options)
        startup.passed("import")
        recipe(config, shlex.join(["zephyr-jax", *words]))
    except InputError as error:
        _stop(f"error: {error}", 2)
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
        _stop("interrupted: run the same command again to go on from the newest checkpoint.", 130)


def take_verb(words: list[str]) -> tuple[str, list[str]]:
    """The verb, of one word or two (`reference ls`), and what follows it. Raises InputError for one that is none."""
    two = " ".join(words[:2])
    if two in VERBS and len(words) > 1:
        return two, words[2:]
    if words[0] not in VERBS:
        raise InputError(f"`{words[0]}` is not a verb.{suggestion(words[0], VERBS)}")
    longer = [name for name in VERBS if name.startswith(f"{words[0]} ")]
    if longer and len(words) > 1 and not words[1].startswith("-"):
        raise InputError(f"`{two}` is not a verb.{suggestion(two, longer)}")
    return words[0], words[1:]


def parse[C](kind: type[C], verb: str, words: list[str]) -> C:
    """A config from `--config CARD` (defaults) and dotted overrides; tyro prints help and suggestions, and exits."""
    import tyro

    from zephyr_jax.card import load_card

    card, overrides = _take_card(words)
    default = load_card(kind, card) if card else kind()
    return tyro.cli(
        kind,
        prog=f"zephyr-jax {verb}",
        default=default,
        args=_spell_out(_model_by_path(overrides, kind), _switches(kind)),
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff,),
    )


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


def _model_by_path(words: list[str], kind: Any) -> list[str]:
    """`--model PATH` is short for `--model.path PATH`."""
    if "model" not in get_type_hints(kind):
        return words
    return [re.sub(r"^--model(?==|$)", "--model.path", word) for word in words]


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
        from zephyr_jax.parallel.hosts import stop_all

        stop_all(message, code)
    raise SystemExit(code)


def _sft() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.sft import sft
    from zephyr_jax.verbs.training import SftConfig

    return SftConfig, lambda config, _: print(sft(config))


def _reference() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.reference import reference, verify
    from zephyr_jax.verbs.tables import ReferenceConfig

    def run(config: ReferenceConfig, command: str) -> None:
        print(reference(config, command).folder)
        if config.verify:
            print(verify(config, config.verify, command))

    return ReferenceConfig, run


def _reference_verify() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.reference import verify
    from zephyr_jax.verbs.tables import ReferenceVerifyConfig

    def run(config: ReferenceVerifyConfig, command: str) -> None:
        filling = re.sub(r" --pairs(=| )\d+", "", command).replace("reference verify", "reference", 1)
        print(verify(config, config.pairs, filling))

    return ReferenceVerifyConfig, run


def _reference_ls() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.reference_tables import reference_ls
    from zephyr_jax.verbs.tables import ReferenceLsConfig

    return ReferenceLsConfig, lambda config, _: print(reference_ls(config))


def _reference_gc() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.reference_tables import reference_gc
    from zephyr_jax.verbs.tables import ReferenceGcConfig

    return ReferenceGcConfig, lambda config, _: print(reference_gc(config))


def _dpo() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.dpo import dpo
    from zephyr_jax.verbs.training import DpoConfig

    def run(config: DpoConfig, command: str) -> None:
        print(dpo(config, command.replace("zephyr-jax dpo", "zephyr-jax reference", 1)))

    return DpoConfig, run


def _evaluate() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.evaluate import evaluate
    from zephyr_jax.verbs.models import EvaluateConfig

    def run(config: EvaluateConfig, _: str) -> None:
        for name, value in evaluate(config).items():
            print(f"{name:<22} {value:.6g}")

    return EvaluateConfig, run


def _preferences() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.preferences import preferences
    from zephyr_jax.verbs.models import PreferencesConfig

    return PreferencesConfig, lambda config, _: print(preferences(config).report())


def _mt_bench() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.mt_bench import mt_bench, table
    from zephyr_jax.verbs.benchmarks import MtBenchConfig

    def run(config: MtBenchConfig, _: str) -> None:
        scores = mt_bench(config)
        print(table(scores) if scores else f"The answers are in {config.output}. To have them rated, name a --judge.")

    return MtBenchConfig, run


def _generate() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.generate import generate
    from zephyr_jax.verbs.models import GenerateConfig

    def run(config: GenerateConfig, _: str) -> None:
        for answer in generate(config):
            print(f"> {answer.prompt}\n{answer.text}{'' if answer.ended else ' ...'}\n")

    return GenerateConfig, run


def _chat() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.chat import chat
    from zephyr_jax.verbs.models import ChatConfig

    return ChatConfig, lambda config, _: chat(config)


def _serve() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.serve import serve
    from zephyr_jax.verbs.models import ServeConfig

    return ServeConfig, lambda config, _: serve(config)


def _export() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.export import export
    from zephyr_jax.verbs.models import ExportConfig

    return ExportConfig, lambda config, _: print(export(config))


def _preview() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.preview import preview
    from zephyr_jax.verbs.looks import PreviewConfig

    def run(config: PreviewConfig, _: str) -> None:
        preview(config)

    return PreviewConfig, run


def _lineage() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.lineage import lineage
    from zephyr_jax.verbs.models import LineageConfig

    return LineageConfig, lambda config, _: print(lineage(config))


def _replay() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.replay import replay
    from zephyr_jax.verbs.training import ReplayConfig

    return ReplayConfig, lambda config, _: print(replay(config).report())


def _check() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.check import check
    from zephyr_jax.verbs.looks import CheckConfig

    def run(config: CheckConfig, _: str) -> None:
        found = check(config)
        print(found.report())
        if not found.passed:
            raise SystemExit(1)

    return CheckConfig, run


def _demo() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.recipes.demo import demo
    from zephyr_jax.verbs.looks import DemoConfig

    def run(config: DemoConfig, _: str) -> None:
        demo(config)

    return DemoConfig, run


def _plan() -> tuple[type, Callable[[Any, str], None]]:
    os.environ["JAX_PLATFORMS"] = "cpu"  # the chips are on paper
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from zephyr_jax.recipes.fit import fit
    from zephyr_jax.recipes.plan import plan
    from zephyr_jax.recipes.plan_table import table
    from zephyr_jax.verbs.planning import PlanConfig

    def run(config: PlanConfig, _: str) -> None:
        if not config.fit:
            print(table(plan(config)))
            return
        found = fit(config)
        print(f"{table(found.plan)}\n\n{found.report()}")

    return PlanConfig, run


VERBS = {
    "preview": Verb("show rows with the tokens that count in colour", _preview),
    "sft": Verb("fine-tune on conversations (dSFT)", _sft),
    "reference": Verb("score all pairs once with the frozen weights", _reference),
    "reference ls": Verb("what tables a folder has", _reference_ls),
    "reference verify": Verb("compute some of their pairs anew", _reference_verify),
    "reference gc": Verb("tidy them", _reference_gc),
    "dpo": Verb("align on preferences against that table (dDPO)", _dpo),
    "evaluate": Verb("loss, or preference accuracy, of a checkpoint on a split", _evaluate),
    "evaluate preferences": Verb("accuracy, margins and calibration by source and length", _preferences),
    "evaluate mt-bench": Verb("MT-Bench: answers, a judge's ratings, FastChat's files", _mt_bench),
    "generate": Verb("answer prompts", _generate),
    "chat": Verb("talk to a model in the terminal", _chat),
    "serve": Verb("answer other programs, as OpenAI's API does", _serve),
    "replay": Verb("the batch of a sick step, alone", _replay),
    "plan": Verb("what a card's step needs on a TPU topology, without one", _plan),
    "export": Verb("write a Hugging Face folder", _export),
    "check": Verb("compare a finished run with what its card expects", _check),
    "lineage": Verb("tell what a run or an export was made from, and how", _lineage),
    "demo": Verb("the whole recipe in minutes on this machine's CPU", _demo),
}
