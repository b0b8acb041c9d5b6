"""zephyr-jax: align a Mistral-architecture chat model with JAX (dSFT, reference pass, dDPO, export).

The public Python API: `import zephyr_jax as zj`. A name is imported when it is first used, so that the package itself, and
`zephyr-jax --help`, import no JAX.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from zephyr_jax.api.loading import LoadedModel as LoadedModel
    from zephyr_jax.api.loading import RowTokenizer as RowTokenizer
    from zephyr_jax.api.loading import load_model as load_model
    from zephyr_jax.api.loading import load_tokenizer as load_tokenizer
    from zephyr_jax.api.metrics import RunMetrics as RunMetrics
    from zephyr_jax.api.metrics import read_metrics as read_metrics
    from zephyr_jax.api.rows import read_rows as read_rows
    from zephyr_jax.api.runs import export_model as export_model
    from zephyr_jax.api.runs import fill_reference as fill_reference
    from zephyr_jax.api.runs import train_model as train_model
    from zephyr_jax.api.scoring import RowScores as RowScores
    from zephyr_jax.api.scoring import score as score
    from zephyr_jax.api.text import generate_text as generate_text
    from zephyr_jax.api.tokens import TokenizedSegment as TokenizedSegment
    from zephyr_jax.api.tokens import render as render
    from zephyr_jax.api.tokens import tokenize as tokenize
    from zephyr_jax.config.adapter import AdapterOptions as AdapterOptions
    from zephyr_jax.config.adapter import EvaluationOptions as EvaluationOptions
    from zephyr_jax.config.models import ExportConfig as ExportConfig
    from zephyr_jax.config.sampling import TopKSamplingOptions as TopKSamplingOptions
    from zephyr_jax.config.sections import DataOptions as DataOptions
    from zephyr_jax.config.sections import MeshOptions as MeshOptions
    from zephyr_jax.config.sections import ModelOptions as ModelOptions
    from zephyr_jax.config.sections import Remat as Remat
    from zephyr_jax.config.sections import ScoringOptions as ScoringOptions
    from zephyr_jax.config.sections import WeightsOptions as WeightsOptions
    from zephyr_jax.config.training import DpoConfig as DpoConfig
    from zephyr_jax.config.training import SftConfig as SftConfig
    from zephyr_jax.config.training_sections import AnomalyOptions as AnomalyOptions
    from zephyr_jax.config.training_sections import BatchOptions as BatchOptions
    from zephyr_jax.config.training_sections import DpoOptions as DpoOptions
    from zephyr_jax.config.training_sections import OptimizerOptions as OptimizerOptions
    from zephyr_jax.config.training_sections import PairAnomalyOptions as PairAnomalyOptions
    from zephyr_jax.config.training_sections import ReportOptions as ReportOptions
    from zephyr_jax.config.training_sections import ScheduleOptions as ScheduleOptions
    from zephyr_jax.config.yaml_file import load_card as load_card
    from zephyr_jax.errors import InputError as InputError
    from zephyr_jax.errors import Stopped as Stopped
    from zephyr_jax.errors import TrainingError as TrainingError
    from zephyr_jax.generate.generate import GeneratedAnswer as GeneratedAnswer
    from zephyr_jax.reference.fill import PassResult as PassResult
else:
    _NAMES = {
        "api.loading": ("LoadedModel", "RowTokenizer", "load_model", "load_tokenizer"),
        "api.metrics": ("RunMetrics", "read_metrics"),
        "api.rows": ("read_rows",),
        "api.runs": ("export_model", "fill_reference", "train_model"),
        "api.scoring": ("RowScores", "score"),
        "api.text": ("generate_text",),
        "api.tokens": ("TokenizedSegment", "render", "tokenize"),
        "config.adapter": ("AdapterOptions", "EvaluationOptions"),
        "config.models": ("ExportConfig",),
        "config.sampling": ("TopKSamplingOptions",),
        "config.sections": (
            "DataOptions",
            "MeshOptions",
            "ModelOptions",
            "Remat",
            "ScoringOptions",
            "WeightsOptions",
        ),
        "config.training": ("DpoConfig", "SftConfig"),
        "config.training_sections": (
            "AnomalyOptions",
            "BatchOptions",
            "DpoOptions",
            "OptimizerOptions",
            "PairAnomalyOptions",
            "ReportOptions",
            "ScheduleOptions",
        ),
        "config.yaml_file": ("load_card",),
        "errors": ("InputError", "Stopped", "TrainingError"),
        "generate.generate": ("GeneratedAnswer",),
        "reference.fill": ("PassResult",),
    }
    """Module of the package -> its public names; the imports above are the same for type checkers."""
    _MODULES = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}
    __all__ = sorted([*_MODULES, "__version__"])

    def __getattr__(name: str) -> Any:
        """Import a public name on first use (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value

    def __dir__() -> list[str]:
        return list(__all__)
