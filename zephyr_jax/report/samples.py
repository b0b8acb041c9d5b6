"""What a run and the stages before it answer to the same ten prompts, for its page: when it has ended, or when asked later."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import jax

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.chat.template_source import own_template
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.fingerprint_cache import weights_state
from zephyr_jax.checkpoint.provenance import chain
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.inspect import ReportConfig
from zephyr_jax.config.models import GenerateConfig
from zephyr_jax.config.sections import ModelOptions
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.yaml_file import from_dict
from zephyr_jax.data.row_reader import Columns
from zephyr_jax.data.rows import COLUMNS, to_prompt
from zephyr_jax.data.sources import read_rows
from zephyr_jax.errors import InputError
from zephyr_jax.generate.generate import generate
from zephyr_jax.report.answers_html import Prompt, Said
from zephyr_jax.report.record import CONFIGS, Stage, called, earlier_stages, read_stage
from zephyr_jax.report.report import PAGE, asking, excuse, leave_page, page
from zephyr_jax.report.sample_files import Kept, read_kept, write_kept
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import Path, open_path
from zephyr_jax.train.setup import evaluation_source, open_tokenizer

_NEW = 256  # tokens of an answer
_LONGEST = 1000  # characters of a prompt


def leave_answers(config: SftConfig, folder: Path) -> None:
    """Answer `report.num_samples` prompts, once, and write the page again; failures are one line: the run has ended well."""
    if not config.report.num_samples:
        return
    later = f"To have them there: {asking(folder)}"
    if jax.process_count() > 1:
        if jax.process_index() == 0:
            print(f"a run of several processes makes no answers for its page. {later}", file=sys.stderr, flush=True)
        return
    try:
        if _answer(config, folder, config.report.num_samples):
            leave_page(folder)
    except Exception as error:  # whatever it is, the run is done
        excuse(error, "no answers were made for the page", later)


def ask(config: ReportConfig) -> None:
    """Have a run and the stages before it answer now, unless they have. Raises InputError."""
    folder = open_path(config.run)
    stage = read_stage(folder)
    made: SftConfig = from_dict(CONFIGS[stage.verb], stage.config, f"{folder}/provenance.json")
    if not _answer(replace(made, mesh=config.mesh), folder, config.num_samples):
        print("the page has the answers already: nobody was asked", file=sys.stderr, flush=True)


def _answer(config: SftConfig, folder: Path, most: int) -> bool:
    """Have whoever has not answered yet do so, and keep it; whether there was anything to do."""
    stage = read_stage(folder)
    name = called({**stage.record, "output": str(folder)})
    own = name if stage.saved == stage.total else f"{name}, step {stage.saved:,}"
    model = replace(config.model, path=str(folder), revision=None)
    kept = read_kept(folder)
    if own in kept.stages and current(kept, model):
        return False
    kept = Kept() if own in kept.stages else kept  # another training of that name gave those answers
    begun = time.perf_counter()
    kept = kept if kept.prompts else _inherited(config, most)
    models = {} if kept.prompts else _before(config, stage, folder)
    kept = kept if kept.prompts else _asked(config, model, name, most)
    for each, earlier in models.items():
        kept = _with_earlier(kept, config, each, earlier)
    kept = replace(_with(kept, config, own, model), weights=weights_state(find_model(model)))
    write_kept(folder, kept)
    who, seconds = ", ".join(kept.stages), time.perf_counter() - begun
    print(f"{folder / PAGE}: {len(kept.prompts)} answers each of {who} ({seconds:.1f} s)", file=sys.stderr, flush=True)
    return True


def current(kept: Kept, model: ModelOptions) -> bool:
    """Whether the weights at a model's path are those that gave the answers; answers from files are taken as they are."""
    return not kept.weights or kept.weights == weights_state(find_model(model))


def _inherited(config: SftConfig, most: int) -> Kept:
    """What the run that this one started from has on its page, unless better prompts are to be had."""
    try:
        found = read_kept(open_path(config.model.path))
        found = found if current(found, config.model) else Kept()
    except Exception:  # whatever it is, others answer
        return Kept()
    better = not found.held_out and evaluation_source(config.data)
    return Kept() if better else replace(found, prompts=found.prompts[:most])


def _before(config: SftConfig, stage: Stage, folder: Path) -> dict[str, ModelOptions]:
    """The base and the runs before this one, by name; the last of them is what this one started from."""
    base = chain(stage.record)[0]
    path = str(base.get("path") or "")
    near = bool(path) and not is_remote(path) and open_path(path).is_dir()  # nothing is downloaded for a page
    places = {called(base): path if near else ""}
    places |= {called(s.record): str(s.record["output"]) if s.here else "" for s in earlier_stages(stage, folder)}
    models = {name: replace(config.model, path=place, revision=None) for name, place in places.items()}
    return models | {list(models)[-1]: config.model}


def _with_earlier(kept: Kept, config: SftConfig, name: str, model: ModelOptions) -> Kept:
    """The same, or a word why not: an earlier stage's weights may be gone."""
    try:
        if not model.path:
            raise InputError("its weights are not on this machine")
        return _with(kept, config, name, model)
    except Exception as error:  # whatever it is, the others answer
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        return replace(kept, about=f"{kept.about} {name} is not among them: {reason}.")


def _with(kept: Kept, config: SftConfig, name: str, model: ModelOptions) -> Kept:
    """The prompts with one more stage's greedy answers."""
    settings = GenerateConfig(
        model=model,
        mesh=config.mesh,
        prompts=tuple(prompt.text for prompt in kept.prompts),
        chat_template=_template(config, model),
        batch_size=len(kept.prompts),
        max_new_tokens=_new(config),
    )
    answered = zip(kept.prompts, generate(settings), strict=True)
    return replace(kept, prompts=tuple(Prompt(p.text, (*p.answers, Said(name, a.text, a.ended))) for p, a in answered))


def _template(config: SftConfig, model: ModelOptions) -> str | None:
    """None where a stage has a chat template, which it then uses; the run's where it has none, as most bases."""
    own = own_template(load_tokenizer(str(find_model(model).folder)))
    return None if own else config.data.chat_template


def _new(config: SftConfig) -> int:
    return min(_NEW, config.data.max_length // 2)


def _asked(config: SftConfig, model: ModelOptions, name: str, most: int) -> Kept:
    """The first different prompts of the held-out rows, or where there are none, of the training rows."""
    held_out = evaluation_source(config.data)
    path, split = held_out or (config.data.path, config.data.split)
    texts = dict.fromkeys(_texts(config, model, path, split))
    prompts = tuple(Prompt(text, ()) for text, _ in zip(texts, range(most), strict=False))
    if not prompts:
        raise InputError(
            f"{path} ({split}) has no prompt of at most {_LONGEST:,} characters that leaves room to answer"
        )
    what = (
        f"of {path} ({split}), which was held out when {name} was trained"
        if held_out
        else f"that {name} was trained on, as nothing was held out (data.eval_path or data.eval_split names such rows)"
    )
    return Kept(prompts, f"Greedy answers of at most {_new(config)} tokens to prompts {what}.", bool(held_out))


def _texts(config: SftConfig, model: ModelOptions, path: str, split: str) -> Iterator[str]:
    """First questions that leave room for an answer."""
    source, data = find_model(model), config.data
    tokenizer = open_tokenizer(source, replace(data, chat_template=None, template_date=None))  # the run's own
    most = min(data.max_length, source.model_config.max_positions or data.max_length) - _new(config)
    for row in read_rows(path, split, data.revision, data.limit, Columns(COLUMNS)):
        with suppress(SkippedRow):
            text = to_prompt(row.content).first_user_text
            if len(text) <= _LONGEST and len(tokenizer.prompt([{"role": "user", "content": text}])) <= most:
                yield text


def main(config: ReportConfig, command: str) -> str:
    """`zephyr-jax report`, with new samples where `num_samples` is set."""
    if config.num_samples:
        ask(config)
    return str(page(config))
