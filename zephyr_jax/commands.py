"""The commands: a table of name, help, settings and module.

A command is a dataclass of settings (in `config`, light to import, so that `--help` is fast) and a module with
`main(config, command) -> str | None`, imported when the command runs: `command` is the command line as it can be pasted into
a shell, the result is printed. A new command is one module and one row here.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    help: str
    config: str
    """`module:Class` of its settings, relative to `zephyr_jax.config`, or absolute."""
    module: str
    """`.module` or `.module:function` (default: `main`), relative to `zephyr_jax` where it starts with a dot."""
    cpu_only: bool = False
    """JAX must not look for accelerators: the command runs on a machine that has none, or must leave them alone."""

    def config_type(self) -> type:
        """The dataclass of its settings."""
        kind: type = _load(self.config if "." in self.config else f".config.{self.config}")
        return kind

    def function(self) -> Any:
        """`main(config, command)`, which returns text to print, or None."""
        return _load(self.module)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module, __package__), name or "main")


COMMANDS = {
    "prepare ultrachat": Command(
        "raw dialogues to conversations: repaired, filtered, split", "prepare:UltrachatConfig", ".prepare.ultrachat"
    ),
    "prepare ultrafeedback": Command(
        "rated answers to preference pairs", "prepare:UltrafeedbackConfig", ".prepare.ultrafeedback"
    ),
    "preview": Command("print rows with the target tokens in color", "inspect:PreviewConfig", ".report.preview"),
    "sft": Command("fine-tune on conversations (dSFT)", "training:SftConfig", ".train_command"),
    "reference": Command(
        "compute the reference log-probs of all pairs once", "tables:ReferenceConfig", ".reference.fill"
    ),
    "reference ls": Command(
        "list reference tables", "tables:ReferenceLsConfig", ".reference.maintenance_commands:main_ls"
    ),
    "reference verify": Command(
        "recompute some pairs and compare", "tables:ReferenceVerifyConfig", ".reference.fill:main_verify"
    ),
    "reference gc": Command(
        "delete and compact reference tables", "tables:ReferenceGcConfig", ".reference.maintenance_commands:main_gc"
    ),
    "dpo": Command("align on preference pairs (dDPO)", "training:DpoConfig", ".train_command"),
    "evaluate": Command("loss or preference accuracy on a split", "models:EvaluateConfig", ".evaluate.held_out"),
    "evaluate preferences": Command(
        "accuracy, margins and calibration by group", "models:PreferencesConfig", ".evaluate.preferences"
    ),
    "evaluate mt-bench": Command("MT-Bench, judged by a model", "benchmarks:MtBenchConfig", ".evaluate.mt_bench.run"),
    "evaluate alpaca-eval": Command(
        "AlpacaEval, judged by a model", "benchmarks:AlpacaEvalConfig", ".evaluate.alpaca_eval.run"
    ),
    "evaluate lm-eval": Command(
        "ARC, HellaSwag, MMLU, TruthfulQA, ... by lm-eval", "benchmarks:LmEvalConfig", ".evaluate.lm_eval"
    ),
    "evaluate table": Command("the paper's tables with your results", "benchmarks:TableConfig", ".evaluate.table"),
    "generate": Command("answer prompts", "models:GenerateConfig", ".generate.generate"),
    "chat": Command("chat with a model in the terminal", "models:ChatConfig", ".serve.chat"),
    "serve": Command("an OpenAI-compatible server", "models:ServeConfig", ".serve.serve"),
    "feedback conversations": Command(
        "dialogues of two models from seed prompts", "feedback:ConversationsConfig", ".feedback.conversations"
    ),
    "feedback answers": Command(
        "answers of several models to each prompt", "feedback:AnswersConfig", ".feedback.answers"
    ),
    "feedback rate": Command("a judge's ratings of answers", "feedback:RateConfig", ".feedback.rate"),
    "debug-step": Command(
        "recompute a saved batch example by example", "training:DebugStepConfig", ".train.debug_step"
    ),
    "plan": Command(
        "memory and time of a step on a TPU topology, without TPUs", "plan:PlanConfig", ".plan.search", cpu_only=True
    ),
    "export": Command("write a Hugging Face model folder", "models:ExportConfig", ".export.export"),
    "check": Command(
        "compare a finished run with the results its card expects", "inspect:CheckConfig", ".report.check"
    ),
    "report": Command("write a run's HTML report", "inspect:ReportConfig", ".report.report"),
    "lineage": Command("the stages that made a run or an export", "models:LineageConfig", ".export.lineage"),
    "demo": Command("the paper's experiment in small, on this machine's CPU", "inspect:DemoConfig", ".demo.demo"),
}
