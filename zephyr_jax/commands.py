"""The commands: a table of name, help, settings, module and examples, grouped by purpose.

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
    examples: tuple[str, ...] = ()
    """Arguments of example command lines, for the end of its help."""
    positional: str = ""
    """Full name of the setting that an argument without an option sets, as in `lineage PATH`: for commands with one input."""
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


_DATA = {
    "prepare ultrachat": Command(
        "raw dialogues to conversations: repaired, filtered, split",
        "prepare:UltrachatConfig",
        ".prepare.ultrachat",
        examples=(
            "stingning/ultrachat --output data/ultrachat",
            "raw.jsonl --output data/ultrachat --num_examples 10000 --no_truecase",
        ),
        positional="data",
    ),
    "prepare ultrafeedback": Command(
        "rated answers to preference pairs",
        "prepare:UltrafeedbackConfig",
        ".prepare.ultrafeedback",
        examples=(
            "openbmb/UltraFeedback --output data/ultrafeedback",
            "rated.jsonl --output data/pairs --ties margin --min_margin 0.5",
        ),
        positional="data",
    ),
    "preview": Command(
        "print rows with the target tokens in color",
        "inspect:PreviewConfig",
        ".report.preview",
        examples=(
            "--model mistralai/Mistral-7B-v0.1 --data chats.jsonl",
            "--model runs/sft --data pairs.jsonl --start 10 --num_examples 5",
        ),
    ),
}
_TRAIN = {
    "sft": Command(
        "fine-tune on conversations (dSFT)",
        "training:SftConfig",
        ".train_command",
        examples=(
            "--config configs/zephyr-7b-beta/sft.yaml --output runs/sft",
            "--model mistralai/Mistral-7B-v0.1 --data chats.jsonl --output runs/sft --schedule.epochs 3",
        ),
    ),
    "reference": Command(
        "compute the reference log-probs of all pairs once",
        "tables:ReferenceConfig",
        ".reference.fill",
        examples=(
            "--config configs/zephyr-7b-beta/dpo.yaml --model runs/sft --reference runs/reference",
            "--model runs/sft --data pairs.jsonl --reference runs/reference --verify_pairs 100",
        ),
    ),
    "dpo": Command(
        "align on preference pairs (dDPO)",
        "training:DpoConfig",
        ".train_command",
        examples=(
            "--config configs/zephyr-7b-beta/dpo.yaml --model runs/sft --reference runs/reference --output runs/dpo",
            "--model runs/sft --data pairs.jsonl --reference runs/reference --output runs/dpo --dpo.beta 0.05",
        ),
    ),
    "plan": Command(
        "memory and time of a step on a TPU topology, without TPUs",
        "plan:PlanConfig",
        ".plan.search",
        examples=(
            "--config configs/zephyr-7b-beta/dpo.yaml --topology v5e:4x4 --fit",
            "--config configs/zephyr-7b-beta/sft.yaml --topology v5p:2x2x1 --model_preset mistral-7b",
        ),
        cpu_only=True,
    ),
}
_INSPECT = {
    "report": Command(
        "write a run's HTML report",
        "inspect:ReportConfig",
        ".report.report",
        examples=("runs/dpo", "runs/dpo --sample_files sft=sft.jsonl dpo=dpo.jsonl"),
        positional="run",
    ),
    "check": Command(
        "compare a finished run with the results its card expects",
        "inspect:CheckConfig",
        ".report.check",
        examples=("runs/sft", "runs/sft --card configs/zephyr-7b-beta/sft.yaml"),
        positional="run",
    ),
    "lineage": Command(
        "the stages that made a run or an export",
        "models:LineageConfig",
        ".export.lineage",
        examples=("runs/dpo", "gs://my-bucket/my-zephyr"),
        positional="path",
    ),
    "debug-step": Command(
        "recompute a saved batch example by example",
        "training:DebugStepConfig",
        ".train.debug_step",
        examples=(
            "runs/sft/bad_batches/step-000012.safetensors",
            "runs/sft/bad_batches/step-000012.safetensors --compute_dtype float32",
        ),
        positional="batch_file",
    ),
    "reference ls": Command(
        "list reference tables",
        "tables:ReferenceLsConfig",
        ".reference.maintenance_commands:main_ls",
        examples=("runs/reference", "gs://my-bucket/reference"),
        positional="reference",
    ),
    "reference verify": Command(
        "recompute some pairs and compare",
        "tables:ReferenceVerifyConfig",
        ".reference.fill:main_verify",
        examples=(
            "--config configs/zephyr-7b-beta/dpo.yaml --model runs/sft --reference runs/reference",
            "--model runs/sft --data pairs.jsonl --reference runs/reference --num_pairs 500",
        ),
    ),
    "reference gc": Command(
        "delete and compact reference tables",
        "tables:ReferenceGcConfig",
        ".reference.maintenance_commands:main_gc",
        examples=("runs/reference", "runs/reference --older_than_days 30 --apply"),
        positional="reference",
    ),
}
_EVALUATE = {
    "evaluate": Command(
        "loss or preference accuracy on a split",
        "models:EvaluateConfig",
        ".evaluate.held_out",
        examples=(
            "--model runs/sft --data HuggingFaceH4/ultrachat_200k --data.split test_sft",
            "--model runs/dpo --data pairs.jsonl --reference_model runs/sft",
        ),
    ),
    "evaluate preferences": Command(
        "accuracy, margins and calibration by group",
        "models:PreferencesConfig",
        ".evaluate.preferences",
        examples=(
            "--model runs/dpo --data pairs.jsonl --reference runs/reference",
            "--model runs/dpo --data pairs.jsonl --reference_model runs/sft --group_by source",
        ),
    ),
    "evaluate mt-bench": Command(
        "MT-Bench, judged by a model",
        "benchmarks:MtBenchConfig",
        ".evaluate.mt_bench.run",
        examples=(
            "--model my-zephyr --chat_template fastchat-zephyr",
            "--model my-zephyr --judge gpt-4@https://api.openai.com/v1 --endpoint.api_key_env OPENAI_API_KEY",
        ),
    ),
    "evaluate alpaca-eval": Command(
        "AlpacaEval, judged by a model",
        "benchmarks:AlpacaEvalConfig",
        ".evaluate.alpaca_eval.run",
        examples=(
            "--model my-zephyr --limit 100",
            "--model my-zephyr --judge gpt-4@https://api.openai.com/v1 --endpoint.api_key_env OPENAI_API_KEY --swap_order",
        ),
    ),
    "evaluate lm-eval": Command(
        "ARC, HellaSwag, MMLU, TruthfulQA, ... by lm-eval",
        "benchmarks:LmEvalConfig",
        ".evaluate.lm_eval",
        examples=(
            "my-zephyr --output lm-eval.json",
            "my-zephyr --tasks hellaswag mmlu --limit 100 --output lm-eval.json --log_samples",
        ),
        positional="model.path",
    ),
    "evaluate table": Command(
        "the paper's tables with your results",
        "benchmarks:TableConfig",
        ".evaluate.table",
        examples=("--results runs/mt-bench runs/alpaca-eval", "--results runs/mt-bench --output runs/table"),
    ),
}
_USE = {
    "chat": Command(
        "chat with a model in the terminal",
        "models:ChatConfig",
        ".serve.chat",
        examples=("my-zephyr", "my-zephyr --temperature 0 --system 'Answer in one sentence.'"),
        positional="model.path",
    ),
    "generate": Command(
        "answer prompts",
        "models:GenerateConfig",
        ".generate.generate",
        examples=(
            "--model my-zephyr --prompts 'What is a TPU?'",
            "--model my-zephyr --data prompts.jsonl --output answers.jsonl --temperature 0.7 --top_p 0.95",
        ),
    ),
    "serve": Command(
        "an OpenAI-compatible server",
        "models:ServeConfig",
        ".serve.serve",
        examples=("my-zephyr", "my-zephyr --host 0.0.0.0 --port 9000 --api_key_env SERVE_KEY"),
        positional="model.path",
    ),
    "export": Command(
        "write a Hugging Face model folder, upload it to the hub",
        "models:ExportConfig",
        ".export.export",
        examples=(
            "runs/dpo --output my-zephyr --push_to OWNER/NAME",
            "runs/dpo --output my-adapter --format adapter",
        ),
        positional="model.path",
    ),
}
_FEEDBACK = {
    "feedback conversations": Command(
        "dialogues of two models from seed prompts",
        "feedback:ConversationsConfig",
        ".feedback.conversations",
        examples=(
            "--data prompts.jsonl --assistant my-zephyr --output data/dialogues",
            "--data prompts.jsonl --assistant gpt-4o@https://api.openai.com/v1 --endpoint.api_key_env OPENAI_API_KEY "
            "--output data/dialogues --estimate",
        ),
    ),
    "feedback answers": Command(
        "answers of several models to each prompt",
        "feedback:AnswersConfig",
        ".feedback.answers",
        examples=(
            "--data prompts.jsonl --models runs/sft other-model --output data/answers",
            "--data prompts.jsonl --models runs/sft llama@http://127.0.0.1:8000/v1 --output data/answers --principles",
        ),
    ),
    "feedback rate": Command(
        "a judge's ratings of answers",
        "feedback:RateConfig",
        ".feedback.rate",
        examples=(
            "--data data/answers --judge judge-model --output data/rated",
            "--data data/answers --judge gpt-4@https://api.openai.com/v1 --endpoint.api_key_env OPENAI_API_KEY "
            "--output data/rated --estimate",
        ),
    ),
}
_DEMO = {
    "demo": Command(
        "the paper's experiment in small, on this machine's CPU",
        "inspect:DemoConfig",
        ".demo.demo",
        examples=("--output runs/demo", "--output runs/demo-seeds --num_seeds 3"),
    ),
}

GROUPS = {
    "Try it": _DEMO,
    "Prepare data": _DATA,
    "Make feedback with models": _FEEDBACK,
    "Train": _TRAIN,
    "Evaluate": _EVALUATE,
    "Use a model": _USE,
    "Inspect runs and tables": _INSPECT,
}
"""Purpose -> its commands by name."""
COMMANDS = {name: command for commands in GROUPS.values() for name, command in commands.items()}


def plan_type(step: str | None) -> type:
    """The settings of `plan --step STEP`: those of `plan`, with the sections of the training method of that name."""
    kind = COMMANDS["plan"].config_type()
    method = COMMANDS.get(step or "")
    if method is None or method.module != COMMANDS["sft"].module or issubclass(kind, method.config_type()):
        return kind
    combined = type(kind.__name__, (kind, method.config_type()), {"__doc__": kind.__doc__})
    return dataclass(frozen=True)(combined)
