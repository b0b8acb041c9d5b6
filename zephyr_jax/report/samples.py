"""Samples for a run's report: the run and the stages before it answer the same prompts, after training or on request."""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.chat.template_args import template_variables
from zephyr_jax.chat.template_source import own_template
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.fingerprint_cache import weights_key
from zephyr_jax.checkpoint.inheritance import open_tokenizer
from zephyr_jax.checkpoint.provenance import chain, stage_kind
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.adapter import InferenceOptions
from zephyr_jax.config.inspect import ReportConfig
from zephyr_jax.config.models import GenerateConfig
from zephyr_jax.config.sections import ModelOptions, WeightsOptions
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.yaml_file import from_dict
from zephyr_jax.data.row_reader import Columns
from zephyr_jax.data.rows import COLUMNS, to_prompt
from zephyr_jax.data.sources import read_rows
from zephyr_jax.errors import InputError
from zephyr_jax.generate.generate import generate
from zephyr_jax.methods.registry import METHODS
from zephyr_jax.model.quantize import CODE_DTYPES
from zephyr_jax.report.html import PromptSamples, Sample
from zephyr_jax.report.run_record import RunRecord, earlier_runs, read_run, run_name
from zephyr_jax.report.sample_files import SAMPLES, SampleSet, read_samples, write_samples
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import Path, open_path

_LOG = logging.getLogger(__name__)

_MAX_NEW_TOKENS = 256
_MAX_PROMPT_CHARS = 1000


def sample_run(folder: Path, run: RunRecord, config: ReportConfig) -> bool:
    """`update_samples` with the settings of a run's own record, on the mesh of `config`. Raises InputError."""
    settings: SftConfig = from_dict(run.method.config, run.config, f"{folder}/provenance.json")
    return update_samples(replace(settings, mesh=config.mesh), folder, config.num_samples)


def update_samples(config: SftConfig, folder: Path, num_prompts: int) -> bool:
    """Add samples of a run's current weights to its folder, and of the stages before it if the folder has no samples yet.

    Returns:
        Whether anything was generated; False if the samples are current.
    """
    run, start = read_run(folder), time.perf_counter()
    name = run_name({**run.provenance, "output": str(folder)})
    label = name if run.last_saved == run.total_steps else f"{name}, step {run.last_saved:,}"
    model = replace(config.model, path=str(folder), revision=None, adapter=None, adapter_revision=None)
    samples = read_samples(folder)
    if label in samples.models:
        if is_current(samples, model):
            return False
        samples = SampleSet()  # from another training run of the same name
    if not samples.prompts:
        samples = _samples_of_parent(config, num_prompts)
    if not samples.prompts:
        samples = _choose_prompts(config, model, name, num_prompts)
        for earlier_name, earlier_model in _earlier_models(config, run, folder).items():
            samples = _try_generate(samples, config, earlier_name, earlier_model)
    samples = replace(_generate(samples, config, label, model), weights=weights_key(find_model(model)))
    write_samples(folder, samples)
    models, seconds = ", ".join(samples.models), time.perf_counter() - start
    _LOG.info("%s: %d samples each of %s (%.1f s)", folder / SAMPLES, len(samples.prompts), models, seconds)
    return True


def is_current(samples: SampleSet, model: ModelOptions) -> bool:
    """Whether the weights at a model's path are those that generated; samples from files always count as current."""
    return not samples.weights or samples.weights == weights_key(find_model(model))


def _samples_of_parent(config: SftConfig, num_prompts: int) -> SampleSet:
    """The samples of the run that this one started from; empty if they are stale or if held-out prompts are available instead."""
    try:
        samples = read_samples(open_path(config.model.path))
        if not is_current(samples, config.model):
            return SampleSet()
    except Exception:  # not a run, or damaged: generate
        return SampleSet()
    if not samples.held_out and config.data.evaluation_source:
        return SampleSet()
    return replace(samples, prompts=samples.prompts[:num_prompts])


def _earlier_models(config: SftConfig, run: RunRecord, folder: Path) -> dict[str, ModelOptions]:
    """The base and the runs before this one by name, the path empty if unavailable; the last is what this run started from.

    Adapters from elsewhere that it started from are in the last name; the model below them has an entry without them.
    """
    base = chain(run.provenance)[0]
    path = str(base.get("path") or "")
    local = bool(path) and not is_remote(path) and open_path(path).is_dir()  # never download a model for a report
    paths = {run_name(base): path if local else ""}
    for earlier in earlier_runs(run, folder):
        paths[run_name(earlier.provenance)] = str(earlier.provenance.get("output") or "") if earlier.available else ""
    alone = replace(config.model, revision=None, adapter=None, adapter_revision=None)
    models = {name: replace(alone, path=path) for name, path in paths.items()}
    last = list(models)[-1]
    adapters = _adapters_above(run)
    if len(adapters) == 1 and config.model.adapter:
        models[last] = replace(config.model, adapter=None, adapter_revision=None)
    return models | {" + ".join([last, *adapters]): config.model}


def _adapters_above(run: RunRecord) -> list[str]:
    """Names of the adapters from elsewhere in what a run started from, on top of the last run before it or the base."""
    names: list[str] = []
    for link in reversed(chain(run.provenance)[:-1]):
        if link.get("made_by") in METHODS:
            break
        if stage_kind(link) == "adapter":
            names.insert(0, PurePath(str(link.get("path"))).name)
    return names


def _try_generate(samples: SampleSet, config: SftConfig, name: str, model: ModelOptions) -> SampleSet:
    """`_generate`, or a note on why the model is missing: an earlier stage's weights may be deleted."""
    try:
        if not model.path:
            raise InputError("its weights are not on this machine")
        return _generate(samples, config, name, model)
    except Exception as error:
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        return replace(samples, about=f"{samples.about} {name} is missing: {reason}.")


def _generate(samples: SampleSet, config: SftConfig, name: str, model: ModelOptions) -> SampleSet:
    """The prompts with greedy samples of one more model."""
    settings = GenerateConfig(
        model=_inference_options(config, model),
        mesh=config.mesh.without_context(),
        prompts=tuple(prompt.prompt for prompt in samples.prompts),
        **_template_settings(config, model),
        batch_size=len(samples.prompts),
        max_new_tokens=_max_new_tokens(config),
    )
    _LOG.info("samples of %s", name)
    pairs = zip(samples.prompts, generate(settings), strict=True)
    prompts = (PromptSamples(p.prompt, (*p.samples, Sample(name, new.text, new.ended))) for p, new in pairs)
    return replace(samples, prompts=tuple(prompts))


def _inference_options(config: SftConfig, model: ModelOptions) -> InferenceOptions:
    """The model in the base format of the run's adapter, if it has one: what the run could hold in memory fits again."""
    adapter = find_model(WeightsOptions(config.output)).adapter
    has_blocks = adapter is not None and adapter.base_format in CODE_DTYPES
    return InferenceOptions(
        path=model.path,
        revision=model.revision,
        adapter=model.adapter,
        adapter_revision=model.adapter_revision,
        compute_dtype=model.compute_dtype,
        base_format=adapter.base_format if adapter else None,
        block_size=adapter.block_size if adapter and has_blocks else None,
    )


def _template_settings(config: SftConfig, model: ModelOptions) -> dict[str, Any]:
    """The run's chat template for a model without its own, as most bases; and the run's arguments where they are read."""
    own, args = own_template(load_tokenizer(str(find_model(model).folder))), config.data.template_args
    if own is None:
        return {"chat_template": config.data.chat_template, "template_args": args}
    return {"template_args": args if args.keys() <= set(template_variables(own)) else {}}


def _max_new_tokens(config: SftConfig) -> int:
    return min(_MAX_NEW_TOKENS, config.data.max_length // 2)


def _choose_prompts(config: SftConfig, model: ModelOptions, name: str, num_prompts: int) -> SampleSet:
    """The first distinct prompts of the held-out rows, or of the training rows if nothing is held out."""
    held_out = config.data.evaluation_source
    path, split = held_out or (config.data.path, config.data.split)
    texts = dict.fromkeys(_short_prompts(config, model, path, split))
    prompts = tuple(PromptSamples(text, ()) for text, _ in zip(texts, range(num_prompts), strict=False))
    if not prompts:
        raise InputError(
            f"expected a prompt of at most {_MAX_PROMPT_CHARS:,} characters that fits data.max_length, got none "
            f"in {path} ({split})"
        )
    rows = (
        "held-out rows" if held_out else "training rows, since nothing is held out (data.eval_path, data.eval_split),"
    )
    about = f"Greedy samples of at most {_max_new_tokens(config)} tokens. Prompts: {rows} of {name}, {path} ({split})."
    return SampleSet(prompts, about, bool(held_out))


def _short_prompts(config: SftConfig, model: ModelOptions, path: str, split: str) -> Iterator[str]:
    """First user messages that leave room for a sample within the model's positions."""
    source, data = find_model(model), config.data
    own = replace(data, chat_template=None, template_date=None, template_args={})  # the run's own template
    tokenizer = open_tokenizer(source, own)
    max_positions = min(data.max_length, source.model_config.max_positions or data.max_length)
    for row in read_rows(path, split, data.revision, data.limit, Columns(COLUMNS)):
        with suppress(SkippedRow):
            text = to_prompt(row.content).first_user_text
            if len(text) > _MAX_PROMPT_CHARS:
                continue
            if len(tokenizer.prompt([{"role": "user", "content": text}])) + _max_new_tokens(config) <= max_positions:
                yield text
