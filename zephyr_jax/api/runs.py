"""Training runs and exports from config objects: `fill_reference`, `train_model` and `export_model`."""

from zephyr_jax.config.models import ExportConfig
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.validation import validate
from zephyr_jax.config.yaml_file import expand_home
from zephyr_jax.export.export import export
from zephyr_jax.reference.fill import PassResult, reference
from zephyr_jax.storage.cloud import translate_cloud_errors
from zephyr_jax.storage.files import Path
from zephyr_jax.train_command import train

_FILL = "zephyr_jax.fill_reference with the same config"


@translate_cloud_errors()
def train_model(config: SftConfig) -> Path:
    """Train as `zephyr-jax sft` and `zephyr-jax dpo` do: checkpoints, metrics, report, and resuming with the same config.

    Args:
        config: `SftConfig`, `DpoConfig` or the config of another registered method. `load_card` reads one from a YAML card.

    Returns:
        The run's folder, `config.output`. `load_model`, `read_metrics` and `export_model` take it.

    Raises:
        InputError: Settings, rows, weights or the reference table cannot be used.
        TrainingError: The run had to stop, for example on a non-finite loss.
        Stopped: SIGTERM or Ctrl-C (an interrupted notebook cell): the step is saved, and the same call resumes.
    """
    return train(_checked(config), _FILL)


@translate_cloud_errors()
def fill_reference(config: DpoConfig) -> PassResult:
    """Compute the reference log-probs of all pairs of a DPO run, as `zephyr-jax reference` does; those in the table are reused.

    Args:
        config: The config that `train_model` takes afterwards; `config.reference` is the folder of the table.

    Returns:
        The table's folder, and how many pairs were computed and reused.

    Raises:
        InputError: Settings, rows, weights or the table cannot be used.
    """
    return reference(_checked(config), _FILL)


@translate_cloud_errors()
def export_model(config: ExportConfig) -> Path:
    """Write a Hugging Face folder (safetensors, config, tokenizer, chat template, model card), as `zephyr-jax export` does.

    Args:
        config: The run or model, the folder to write and the dtype of the weights.

    Returns:
        The folder. An export that is there already is kept.

    Raises:
        InputError: The model cannot be read, the folder has other content, or a weight exceeds the range of the dtype.
    """
    return export(_checked(config))


def _checked[C: SftConfig | ExportConfig](config: C) -> C:
    """The config with `~` expanded; raises InputError for a setting that is missing or invalid."""
    config = expand_home(config)
    validate(config)
    return config
