"""The verbs: each is a typed config and a thin call into one recipe, imported only when it runs."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zephyr_jax.errors import terminal_text


@dataclass(frozen=True)
class Verb:
    """A command: what it says of itself, its config type and its recipe (imported only when it runs)."""

    about: str
    load: Callable[[], tuple[type, Callable[[Any, str], None]]]


def _show(result: object) -> None:
    """Print what may hold text of models, data or checkpoints."""
    print(terminal_text(str(result)))


def _sft() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.training import SftConfig
    from zephyr_jax.methods.sft import sft

    return SftConfig, lambda config, _: print(sft(config))


def _reference() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.tables import ReferenceConfig
    from zephyr_jax.reference.fill import reference, verify

    def run(config: ReferenceConfig, command: str) -> None:
        print(reference(config, command).folder)
        if config.verify_pairs:
            print(verify(config, config.verify_pairs, command))

    return ReferenceConfig, run


def _reference_verify() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.tables import ReferenceVerifyConfig
    from zephyr_jax.reference.fill import verify

    def run(config: ReferenceVerifyConfig, command: str) -> None:
        filling = re.sub(r" --num_pairs(=| )\d+", "", command).replace("reference verify", "reference", 1)
        print(verify(config, config.num_pairs, filling))

    return ReferenceVerifyConfig, run


def _reference_ls() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.tables import ReferenceLsConfig
    from zephyr_jax.reference.maintenance_commands import reference_ls

    return ReferenceLsConfig, lambda config, _: print(reference_ls(config))


def _reference_gc() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.tables import ReferenceGcConfig
    from zephyr_jax.reference.maintenance_commands import reference_gc

    return ReferenceGcConfig, lambda config, _: print(reference_gc(config))


def _dpo() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.training import DpoConfig
    from zephyr_jax.methods.dpo import dpo

    def run(config: DpoConfig, command: str) -> None:
        print(dpo(config, command.replace("zephyr-jax dpo", "zephyr-jax reference", 1)))

    return DpoConfig, run


def _evaluate() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.models import EvaluateConfig
    from zephyr_jax.evaluate.held_out import evaluate

    def run(config: EvaluateConfig, _: str) -> None:
        for name, value in evaluate(config).items():
            print(f"{name:<22} {value:.6g}")

    return EvaluateConfig, run


def _preferences() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.models import PreferencesConfig
    from zephyr_jax.evaluate.preferences import preferences

    return PreferencesConfig, lambda config, _: _show(preferences(config).report())


def _mt_bench() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.benchmarks import MtBenchConfig
    from zephyr_jax.evaluate.mt_bench import mt_bench
    from zephyr_jax.evaluate.mt_judge import rate_again, replay_judgments, table

    def run(config: MtBenchConfig, _: str) -> None:
        config.check()
        if config.judgments:
            _show(rate_again(config).report() if config.judge else table(replay_judgments(config)))
            return
        scores = mt_bench(config)
        _show(table(scores) if scores else f"The answers are in {config.output}. To have them rated, name a --judge.")

    return MtBenchConfig, run


def _alpaca_eval() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.benchmarks import AlpacaEvalConfig
    from zephyr_jax.evaluate.alpaca_eval import model_outputs
    from zephyr_jax.evaluate.alpaca_judge import judge_again, judge_outputs, open_jury, replay_annotations, table

    def run(config: AlpacaEvalConfig, _: str) -> None:
        config.check()
        jury = open_jury(config) if config.judge else None
        if config.annotations:
            _show(judge_again(config, jury).report() if jury else table(replay_annotations(config)))
            return
        path = config.outputs or model_outputs(config)
        _show(table(judge_outputs(config, jury, path)) if jury else f"{path}\nTo have them judged, name a --judge.")

    return AlpacaEvalConfig, run


def _lm_eval() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.benchmarks import LmEvalConfig
    from zephyr_jax.evaluate.lm_eval import lm_eval

    return LmEvalConfig, lambda config, _: _show(lm_eval(config))


def _table() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.benchmarks import TableConfig
    from zephyr_jax.evaluate.table import table

    return TableConfig, lambda config, _: _show(table(config))


def _generate() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.models import GenerateConfig
    from zephyr_jax.generate.generate import generate

    def run(config: GenerateConfig, _: str) -> None:
        for answer in generate(config):
            _show(f"> {answer.prompt}\n{answer.text}{'' if answer.ended else ' ...'}\n")

    return GenerateConfig, run


def _chat() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.models import ChatConfig
    from zephyr_jax.serve.chat import chat

    return ChatConfig, lambda config, _: chat(config)


def _serve() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.models import ServeConfig
    from zephyr_jax.serve.serve import serve

    return ServeConfig, lambda config, _: serve(config)


def _export() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.models import ExportConfig
    from zephyr_jax.export.export import export

    return ExportConfig, lambda config, _: print(export(config))


def _preview() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.inspect import PreviewConfig
    from zephyr_jax.report.preview import preview

    def run(config: PreviewConfig, _: str) -> None:
        preview(config)

    return PreviewConfig, run


def _lineage() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.models import LineageConfig
    from zephyr_jax.export.lineage import lineage

    return LineageConfig, lambda config, _: _show(lineage(config))


def _replay() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.training import DebugStepConfig
    from zephyr_jax.train.debug_step import replay

    return DebugStepConfig, lambda config, _: _show(replay(config).report())


def _check() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.inspect import CheckConfig
    from zephyr_jax.report.check import check

    def run(config: CheckConfig, _: str) -> None:
        found = check(config)
        _show(found.report())
        if not found.passed:
            raise SystemExit(1)

    return CheckConfig, run


def _prepare_ultrachat() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.prepare import UltrachatConfig
    from zephyr_jax.prepare.ultrachat import prepare_ultrachat

    return UltrachatConfig, lambda config, command: print(prepare_ultrachat(config, command))


def _prepare_ultrafeedback() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.prepare import UltrafeedbackConfig
    from zephyr_jax.prepare.ultrafeedback import prepare_ultrafeedback

    return UltrafeedbackConfig, lambda config, command: print(prepare_ultrafeedback(config, command))


def _feedback_conversations() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.feedback import ConversationsConfig
    from zephyr_jax.feedback.conversations_pipeline import feedback_conversations

    return ConversationsConfig, lambda config, _: print(feedback_conversations(config))


def _feedback_answers() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.feedback import AnswersConfig
    from zephyr_jax.feedback.answers_pipeline import feedback_answers

    return AnswersConfig, lambda config, _: print(feedback_answers(config))


def _feedback_rate() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.feedback import RateConfig
    from zephyr_jax.feedback.rate_pipeline import feedback_rate

    return RateConfig, lambda config, _: print(feedback_rate(config))


def _page() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.inspect import ReportConfig
    from zephyr_jax.report.report import page

    def run(config: ReportConfig, _: str) -> None:
        if config.num_samples:
            from zephyr_jax.report.samples import ask

            ask(config)
        print(page(config))

    return ReportConfig, run


def _demo() -> tuple[type, Callable[[Any, str], None]]:
    from zephyr_jax.config.inspect import DemoConfig
    from zephyr_jax.demo.demo import demo

    def run(config: DemoConfig, _: str) -> None:
        demo(config)

    return DemoConfig, run


def _plan() -> tuple[type, Callable[[Any, str], None]]:
    os.environ["JAX_PLATFORMS"] = "cpu"  # the chips are on paper
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from zephyr_jax.config.plan import PlanConfig
    from zephyr_jax.plan.plan import plan
    from zephyr_jax.plan.search import fit
    from zephyr_jax.plan.table import table

    def run(config: PlanConfig, _: str) -> None:
        if not config.fit:
            print(table(plan(config)))
            return
        found = fit(config)
        print(f"{table(found.plan)}\n\n{found.report()}")

    return PlanConfig, run


VERBS = {
    "prepare ultrachat": Verb("raw dialogues to conversations, filtered, repaired and split", _prepare_ultrachat),
    "prepare ultrafeedback": Verb("rated answers to preferences, with a data card", _prepare_ultrafeedback),
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
    "evaluate alpaca-eval": Verb("AlpacaEval: outputs, a judge's verdicts, the row", _alpaca_eval),
    "evaluate lm-eval": Verb("ARC, HellaSwag, MMLU, TruthfulQA and others, by lm-eval", _lm_eval),
    "evaluate table": Verb("the paper's tables with what was measured here", _table),
    "generate": Verb("answer prompts", _generate),
    "chat": Verb("talk to a model in the terminal", _chat),
    "serve": Verb("answer other programs, as OpenAI's API does", _serve),
    "feedback conversations": Verb("dialogues of two models from seed prompts", _feedback_conversations),
    "feedback answers": Verb("several models' answers to each prompt", _feedback_answers),
    "feedback rate": Verb("a judge's ratings of them, in UltraFeedback's form", _feedback_rate),
    "debug-step": Verb("the batch of a sick step, alone", _replay),
    "plan": Verb("what a card's step needs on a TPU topology, without one", _plan),
    "export": Verb("write a Hugging Face folder", _export),
    "check": Verb("compare a finished run with what its card expects", _check),
    "report": Verb("all about a run in one file of HTML", _page),
    "lineage": Verb("tell what a run or an export was made from, and how", _lineage),
    "demo": Verb("the whole recipe in minutes on this machine's CPU", _demo),
}
