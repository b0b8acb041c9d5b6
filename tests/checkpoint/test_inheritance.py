"""What later commands take from the run or checkpoint that they continue or look at."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from tests.conftest import write_rows
from tests.methods.small import dpo_config, sft_config
from zephyr_jax.chat import template_loader
from zephyr_jax.chat.template_args import with_args
from zephyr_jax.chat.template_source import built_in_source, without_markers
from zephyr_jax.chat.tokenizer import load_chat_tokenizer
from zephyr_jax.chat.tokenizer_files import TRAINING_TEMPLATE, load_tokenizer
from zephyr_jax.checkpoint import inheritance
from zephyr_jax.checkpoint.inheritance import prompt_tokenizer, properties, resolve
from zephyr_jax.checkpoint.model_source import MODEL_FOLDER, ModelSource
from zephyr_jax.checkpoint.provenance import write_record
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.cli import main
from zephyr_jax.config.models import EvaluateConfig, LineageConfig
from zephyr_jax.config.sections import DataOptions, ModelOptions
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.training_sections import BatchOptions, ScheduleOptions
from zephyr_jax.config.yaml_file import from_dict, to_dict
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.errors import InputError
from zephyr_jax.evaluate.held_out import evaluate
from zephyr_jax.export.lineage import lineage
from zephyr_jax.generate.load import open_text_model
from zephyr_jax.reference.fill import reference
from zephyr_jax.train_command import train

OTHER = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'A:\n' }}{% generation %}{{ m['content'] + eos_token }}"
    "{% endgeneration %}{% else %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:\n' }}{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') + eos_token }}" + OTHER
PROMPT = [{"role": "user", "content": "Name a color."}]
RUN = {
    "model": {"compute_dtype": "float32"},
    "data": {"max_length": 300, "max_prompt_length": 77, "on_bad_row": "drop", "targets": "all", "multi_turn": "last"},
}
VALUES = {"model.compute_dtype": "float32", "data.max_length": 300, "data.max_prompt_length": 77,
          "data.on_bad_row": "drop", "data.targets": "all", "data.multi_turn": "last"}  # fmt: skip
"""What later stages take from `RUN`."""

type MakeRun = Callable[..., ModelSource]


@pytest.fixture
def make_run(tiny_model: Path, tmp_path: Path) -> MakeRun:
    """Makes the folder of a run without weights: model files, the chat template and the record."""

    def make(verb: str = "sft", template: str = OTHER, **data: Any) -> ModelSource:
        folder = tmp_path / f"{verb}-run"
        copytree(tiny_model, folder / MODEL_FOLDER)
        (folder / MODEL_FOLDER / "chat_template.jinja").write_text(without_markers(template))
        (folder / MODEL_FOLDER / TRAINING_TEMPLATE).write_text(template)
        config = {**RUN, "data": {**RUN["data"], **data}}
        write_record(folder, {"made_by": verb, "output": str(folder), "config": config, "parent": {"path": "base"}})
        return find_model(ModelOptions(path=str(folder)))

    return make


def value(resolved: inheritance.Resolved, name: str) -> Any:
    section, _, setting = name.partition(".")
    return getattr(getattr(resolved, section), setting)


def text(resolved: inheritance.Resolved) -> str:
    return resolved.chat.template.render(PROMPT, add_generation_prompt=True).text


# ---- the settings that are listed ----


@pytest.mark.parametrize("command", ["sft", "reference", "dpo", "evaluate", "evaluate preferences"])
@pytest.mark.parametrize("verb", ["sft", "dpo"])
def test_each_listed_property_is_inherited_where_the_list_has_it(make_run: MakeRun, verb: str, command: str) -> None:
    """Law: a setting that is left alone takes the run's value exactly for the commands and runs of the list."""
    source = make_run(verb)
    found = resolve(command, source, ModelOptions(), DataOptions())
    plain = {"model": ModelOptions(), "data": DataOptions()}
    for each in properties():
        name = f"{each.section}.{each.name}"
        inherits = (each.commands is None or command in each.commands) and (
            each.methods is None or verb in each.methods
        )
        expected = VALUES[name] if inherits else getattr(plain[each.section], each.name)
        if name == "data.max_prompt_length" and not inherits and command.startswith("evaluate"):
            expected = 150  # half of the inherited max_length
        assert value(found, name) == expected


def test_a_given_value_wins_also_where_it_is_the_default(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: what is given is used, and one line names what differs from the run; the rest is inherited."""
    given = DataOptions(max_length=2048, on_bad_row="truncate")
    found = resolve("evaluate", make_run(), ModelOptions(compute_dtype="bfloat16"), given)
    assert (found.model.compute_dtype, found.data.max_length, found.data.on_bad_row) == ("bfloat16", 2048, "truncate")
    assert found.data.targets == "all"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if " WARNING " in line]
    assert "model.compute_dtype is bfloat16, the run has float32" in line
    assert "data.max_length is 2048, the run has 300" in line


def test_a_checkpoint_of_others_hands_on_no_settings(tiny_model: Path) -> None:
    """Law: without a run's record every setting has its default."""
    found = resolve("evaluate", find_model(ModelOptions(path=str(tiny_model))), ModelOptions(), DataOptions())
    assert found.model.compute_dtype == "bfloat16"
    assert (found.data.max_length, found.data.max_prompt_length, found.data.on_bad_row) == (2048, 512, "truncate")


def test_rows_hold_the_inherited_length(make_run: MakeRun) -> None:
    """Law: an inherited length beyond the default row makes the rows longer."""
    found = resolve("evaluate", make_run(max_length=5000), ModelOptions(), DataOptions())
    assert found.data.row_length == found.data.max_length == 5000


@pytest.mark.parametrize(
    ("run", "given", "prompt"),
    [
        ({"max_length": 600, "max_prompt_length": 512}, {}, 512),
        ({"max_length": 600, "max_prompt_length": 400}, {"max_length": 300}, 150),
        ({"max_length": 600, "max_prompt_length": 400}, {"max_length": 300, "max_prompt_length": 299}, 299),
    ],
)
def test_an_inherited_prompt_length_stays_unless_it_leaves_no_answer(
    make_run: MakeRun, run: dict[str, int], given: dict[str, int], prompt: int
) -> None:
    """Law: pairs are truncated as the run truncated them, so that its reference table fits the evaluation."""
    found = resolve("evaluate", make_run("dpo", **run), ModelOptions(), DataOptions(**given))
    assert found.data.max_prompt_length == prompt


def test_an_export_hands_on_what_its_run_had(make_run: MakeRun, tmp_path: Path) -> None:
    """Law: the run's settings are found behind an export's record."""
    source = make_run()
    folder = copytree(source.folder, tmp_path / "hf")
    (folder / TRAINING_TEMPLATE).unlink()
    write_record(folder, {"made_by": "export", "output": str(folder), "parent": source.record})
    record = find_model(ModelOptions(path=str(folder))).record
    assert inheritance.run_of(record)["config"] == RUN


@pytest.mark.parametrize("verb", ["generate", "chat", "serve", "evaluate mt-bench", "feedback answers"])
def test_speaking_commands_take_template_and_dtype(make_run: MakeRun, verb: str) -> None:
    """Law: whatever answers prompts computes and asks as the run did."""
    source = make_run()
    options = replace(sft_config(Path(), Path(), Path()).mesh, data=1, fsdp=1, tensor=1)
    found = open_text_model(verb, ModelOptions(path=str(source.run)), replace(options, fsdp=-1), 1)
    assert found.opened.options.compute_dtype == "float32"
    assert found.chat_tokenizer(None).template.source == OTHER


# ---- the chat template ----


@pytest.mark.parametrize("command", ["sft", "reference", "dpo", "evaluate", "evaluate preferences"])
def test_the_template_of_the_run_is_taken(make_run: MakeRun, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: without a choice every command uses the run's own template, markers included, and names it in one line."""
    found = resolve(command, source := make_run(), ModelOptions(), DataOptions())
    assert found.chat.template.source == OTHER
    assert found.data.chat_template == "tokenizer"
    assert f"chat template: `tokenizer` of {source.asked}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sft", "reference", "dpo"])
def test_training_refuses_another_template_unless_confirmed(make_run: MakeRun, command: str) -> None:
    """Law: what trains on a run stops at another template, names both and the setting that confirms it."""
    source = make_run()
    with pytest.raises(InputError, match=r"`zephyr`.*another chat template, `tokenizer`.*data\.allow_template_change"):
        resolve(command, source, ModelOptions(), DataOptions(chat_template="zephyr"))
    confirmed = DataOptions(chat_template="zephyr", allow_template_change=True)
    assert resolve(command, source, ModelOptions(), confirmed).chat.template.name == "zephyr"


VARIABLE = OTHER.replace("{{ 'A:\n' }}", "{{ name | default('A') + ':\n' }}")
"""A template that reads a variable."""


@pytest.mark.parametrize("command", ["sft", "reference", "dpo", "evaluate", "evaluate preferences"])
def test_template_args_of_a_run_are_inherited(
    make_run: MakeRun, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: a run's template renders with the run's arguments in every later command, which records and prints them."""
    source = make_run(template=with_args(VARIABLE, {"name": "B"}))
    found = resolve(command, source, ModelOptions(), DataOptions())
    assert text(found).endswith("B:\n")
    assert found.data.template_args == {"name": "B"}
    assert "with name 'B'" in capsys.readouterr().err
    assert prompt_tokenizer(source, load_tokenizer(str(source.folder)), None).fingerprint == found.chat.fingerprint
    again = resolve(command, source, ModelOptions(), DataOptions(template_args={"name": "B"}))
    assert again.chat.fingerprint == found.chat.fingerprint


@pytest.mark.parametrize("command", ["sft", "reference", "dpo"])
def test_training_refuses_other_template_args_unless_confirmed(make_run: MakeRun, command: str) -> None:
    """Law: arguments that differ from the run's are another template, also where it has none."""
    source = make_run(template=VARIABLE)
    given = DataOptions(template_args={"name": "B"})
    with pytest.raises(InputError, match=r"data.template_args are .*'B'.* has none.*data\.allow_template_change"):
        resolve(command, source, ModelOptions(), given)
    confirmed = resolve(command, source, ModelOptions(), replace(given, allow_template_change=True))
    assert text(confirmed).endswith("B:\n")


def test_evaluation_with_other_template_args_is_a_warning(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: evaluation goes on with the given arguments and one line of warning."""
    given = DataOptions(template_args={"name": "B"})
    found = resolve("evaluate", make_run(template=VARIABLE), ModelOptions(), given)
    assert text(found).endswith("B:\n")
    assert "WARNING data.template_args are {'name': 'B'}" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_template_args(make_run: MakeRun) -> None:
    """Law: the arguments of the run that is resumed are those of its settings."""
    source = make_run(template=VARIABLE)
    resumed = {"data": {"template_args": {"name": "C"}, "allow_template_change": True}}
    found = resolve("sft", source, ModelOptions(), DataOptions(), resumed)
    assert found.data.template_args == {"name": "C"}
    assert text(found).endswith("C:\n")


@pytest.mark.parametrize("command", ["evaluate", "evaluate preferences"])
def test_looking_with_another_template_is_a_warning(
    make_run: MakeRun, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: evaluation with another template than the run's goes on with one line of warning."""
    found = resolve(command, make_run(), ModelOptions(), DataOptions(chat_template="zephyr"))
    assert found.chat.template.name == "zephyr"
    assert "WARNING data.chat_template is `zephyr`" in capsys.readouterr().err


def test_a_checkpoint_of_others_may_be_trained_with_another_template(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: a base that comes with a chat template is a warning, also for training."""
    folder = copytree(make_run().folder, tmp_path / "base")
    found = resolve(
        "sft", find_model(ModelOptions(path=str(folder))), ModelOptions(), DataOptions(chat_template="zephyr")
    )
    assert found.data.chat_template == "zephyr"
    assert "WARNING data.chat_template is `zephyr`" in capsys.readouterr().err


@pytest.mark.parametrize("choice", ["tokenizer", "the same file", "the same without markers", "built in"])
def test_the_same_template_by_another_name_is_no_change(make_run: MakeRun, tmp_path: Path, choice: str) -> None:
    """Law: templates are compared by the token ids that they give."""
    path = tmp_path / "same.jinja"
    path.write_text(without_markers(OTHER) if "without" in choice else OTHER)
    source = make_run(template=built_in_source("zephyr") if choice == "built in" else OTHER)
    given = {"tokenizer": "tokenizer", "built in": "zephyr"}.get(choice, str(path))
    resolve("dpo", source, ModelOptions(), DataOptions(chat_template=given))


def test_zephyr_is_recognized_in_an_older_run(make_run: MakeRun, tiny_model: Path) -> None:
    """Law: a run from before markers were kept has `zephyr` with its markers, and the fingerprint of a card that names it."""
    tokenizer = load_tokenizer(str(tiny_model))
    named = load_chat_tokenizer("zephyr", tokenizer)
    source = make_run(template=named.template.source)
    (source.folder / TRAINING_TEMPLATE).unlink()
    found = resolve("dpo", source, ModelOptions(), DataOptions())
    assert found.data.chat_template == "zephyr"
    assert found.chat.fingerprint == named.fingerprint


def test_a_checkpoint_without_a_template_gets_zephyr(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: `zephyr` is the default where a checkpoint has no template, and one line names it with the reason."""
    found = resolve("sft", find_model(ModelOptions(path=str(tiny_model))), ModelOptions(), DataOptions())
    assert found.data.chat_template == "zephyr"
    assert f"chat template: `zephyr` as {tiny_model} has none" in capsys.readouterr().err


def test_a_resumed_run_keeps_what_it_resolved(make_run: MakeRun) -> None:
    """Law: what was resolved when a run began is what it is resumed with, though the model's run had other values."""
    saved = {"model": {"compute_dtype": "bfloat16"}, "data": {"max_length": 99, "chat_template": "zephyr",
             "allow_template_change": True}}  # fmt: skip
    found = resolve("dpo", make_run(), ModelOptions(), DataOptions(), saved)
    assert (found.model.compute_dtype, found.data.max_length, found.data.chat_template) == ("bfloat16", 99, "zephyr")


# ---- the date ----


def set_clock(monkeypatch: pytest.MonkeyPatch, day: date) -> None:
    for module in (inheritance, template_loader):
        monkeypatch.setattr(module, "now", lambda: datetime(day.year, day.month, day.day, 23, 50))


def test_the_day_comes_from_the_first_source_that_has_one(
    make_run: MakeRun, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the given day, else the resumed run's, else the continued run's, else the table's, else today."""
    set_clock(monkeypatch, date(2026, 11, 29))
    (tmp_path / "dated.jinja").write_text(DATED)
    data = DataOptions(chat_template=str(tmp_path / "dated.jinja"))
    base, model = find_model(ModelOptions(path=str(tiny_model))), ModelOptions()
    today = resolve("dpo", base, model, data)
    assert (text(today)[:11], today.data.template_date) == ("29 Nov 2026", "2026-11-29")
    made = load_chat_tokenizer(data.chat_template, load_tokenizer(str(tiny_model)), date(2026, 11, 20))
    tables = [(date(2026, 11, 25), "of another template"), (date(2026, 11, 20), made.fingerprint)]
    assert text(resolve("dpo", base, model, data, tables=tables)).startswith("20 Nov 2026")
    frozen = DATED.replace("strftime_now('%d %b %Y')", "'10 Nov 2026'")
    run = make_run(template=frozen, template_date="2026-11-10")
    assert text(resolve("dpo", run, model, data, tables=tables)).startswith("10 Nov 2026")
    assert text(resolve("dpo", run, model, DataOptions())).startswith("10 Nov 2026")
    resumed = {"data": {"template_date": "2026-11-11", "allow_template_change": True}}
    assert text(resolve("dpo", run, model, data, resumed)).startswith("11 Nov 2026")
    given = replace(data, template_date="2026-11-12", allow_template_change=True)
    assert text(resolve("dpo", run, model, given, resumed)).startswith("12 Nov 2026")


@pytest.mark.parametrize("day", ["tomorrow", "2026-13-01", "28 Nov 2026"])
def test_a_day_that_is_none_is_refused(tiny_model: Path, day: str) -> None:
    """Law: a day is YYYY-MM-DD."""
    source = find_model(ModelOptions(path=str(tiny_model)))
    with pytest.raises(InputError, match=r"data\.template_date.*YYYY-MM-DD"):
        resolve("sft", source, ModelOptions(), DataOptions(template_date=day))


# ---- from stage to stage ----


def test_a_dated_template_and_the_run_go_on_the_next_day(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: `sft`, `reference` and `dpo` on three days see one date; so do resume and evaluation."""
    (tmp_path / "dated.jinja").write_text(DATED)
    chats = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 24, "train")))
    pairs = write_rows(tmp_path / "pairs.jsonl", list(preferences(0, 8, "train")))
    first = sft_config(tiny_model, chats, tmp_path / "sft", epochs=1)
    first = replace(first, data=replace(first.data, chat_template=str(tmp_path / "dated.jinja")))
    one_step = replace(first, schedule=ScheduleOptions(max_steps=1, evaluate_every=0))
    set_clock(monkeypatch, date(2026, 11, 28))
    folder = train(one_step)
    (tmp_path / "dated.jinja").unlink()  # as on another machine
    config = dpo_config(tmp_path / "sft", pairs, tmp_path / "dpo", tmp_path / "table")
    config = replace(
        config, model=replace(config.model, compute_dtype=ModelOptions().compute_dtype),
        batch=BatchOptions(rows=4), schedule=ScheduleOptions(max_steps=1, evaluate_every=0),
    )  # fmt: skip
    set_clock(monkeypatch, date(2026, 11, 29))
    assert reference(config).computed == 8
    set_clock(monkeypatch, date(2026, 11, 30))
    train(config)
    set_clock(monkeypatch, date(2026, 12, 1))
    train(config)  # resumed, and done
    saved = yaml.safe_load((tmp_path / "dpo" / "config.yaml").read_text())
    assert saved["model"]["compute_dtype"] == "float32"
    assert saved["data"]["chat_template"] == "tokenizer"
    for run in (folder, tmp_path / "dpo"):
        source = (run / MODEL_FOLDER / TRAINING_TEMPLATE).read_text()
        assert '"28 Nov 2026"' in source
        assert "strftime_now" not in source
        assert "28 Nov 2026" in (run / MODEL_FOLDER / "chat_template.jinja").read_text()
    mesh = config.mesh
    values = [
        evaluate(EvaluateConfig(model=ModelOptions(path=str(folder), **given), data=data, mesh=mesh))["loss"]
        for given, data in (
            ({}, DataOptions(path=str(chats))),
            ({"compute_dtype": "float32"}, DataOptions(path=str(chats), chat_template="tokenizer", max_length=256)),
        )
    ]
    assert values[0] == values[1], "what is inherited is what would have been given"
    capsys.readouterr()
    shown = lineage(LineageConfig(path=str(tmp_path / "dpo")))
    assert shown.count("template: name ") == 2
    assert "date 2026-11-28" in shown
    assert shown.count("model.compute_dtype: float32") == 2
    assert "data.max_length: 256" in shown
    assert "data.max_prompt_length: " in shown and "data.targets: " in shown


def test_a_reference_table_keeps_the_day_for_dpo(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: from a base whose own template prints the date, `reference` on one day serves `reference` and `dpo` on the next."""
    base = copytree(tiny_model, tmp_path / "base")
    (base / "chat_template.jinja").write_text(DATED)
    pairs = write_rows(tmp_path / "pairs.jsonl", list(preferences(0, 8, "train")))
    config = dpo_config(base, pairs, tmp_path / "dpo", tmp_path / "table")
    config = replace(config, batch=BatchOptions(rows=4), schedule=ScheduleOptions(max_steps=1, evaluate_every=0))
    set_clock(monkeypatch, date(2026, 11, 28))
    folder = reference(config).folder
    assert json.loads((folder / "manifest.json").read_text())["template_date"] == "2026-11-28"
    set_clock(monkeypatch, date(2026, 11, 29))
    assert reference(config).computed == 0
    train(config)
    record = json.loads((tmp_path / "dpo" / "provenance.json").read_text())
    assert record["template"]["date"] == record["config"]["data"]["template_date"] == "2026-11-28"
    main(["reference", "ls", "--reference", str(tmp_path / "table")])
    main(["reference", "gc", "--reference", str(tmp_path / "table"), "--apply"])
    assert reference(config).computed == 0


@pytest.mark.shared
def test_the_shared_chatml_run_is_inherited(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: a run trained with ChatML is evaluated with ChatML, in its dtype, unless another template is given."""
    cases = shared / "cases" / "checkpoints"
    first = sft_config(cases / "02-03-smollm2-base-chatml", cases / "chats.jsonl", tmp_path / "sft", epochs=1)
    data = replace(first.data, chat_template=str(cases / "chatml.jinja"))
    mesh = replace(first.mesh, data=-1, fsdp=1, tensor=1)
    step = ScheduleOptions(max_steps=1, evaluate_every=0)
    folder = train(replace(first, data=data, mesh=mesh, schedule=step, batch=BatchOptions(rows=8)))
    model, rows = ModelOptions(path=str(folder)), str(cases / "chats.jsonl")
    losses = {
        template: evaluate(EvaluateConfig(model=model, data=DataOptions(path=rows, chat_template=template), mesh=mesh))[
            "loss"
        ]
        for template in (None, "tokenizer", "zephyr")
    }
    assert losses[None] == losses["tokenizer"] != losses["zephyr"]
    assert capsys.readouterr().err.count("WARNING data.chat_template is `zephyr`") == 1
    config = dpo_config(folder, cases / "pairs.jsonl", tmp_path / "dpo", tmp_path / "table")
    with pytest.raises(InputError, match="another chat template"):
        reference(
            replace(config, data=replace(config.data, chat_template="zephyr"), mesh=mesh, batch=BatchOptions(rows=8))
        )


@pytest.mark.shared
def test_the_shared_template_with_a_date_is_frozen(
    shared: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the template of case 03 gives the given day's tokens on every day."""
    source = find_model(ModelOptions(path=str(tiny_model)))
    data = DataOptions(chat_template=str(shared / "cases" / "data" / "03-template-with-date" / "date.jinja"))
    prints = []
    for day in (date(2026, 11, 28), date(2026, 11, 29)):
        set_clock(monkeypatch, day)
        found = resolve("reference", source, ModelOptions(), data)
        fixed = resolve("dpo", source, ModelOptions(), replace(data, template_date="2026-11-28"))
        prints.append((found.chat.fingerprint, fixed.chat.fingerprint))
    assert prints[0][0] == prints[0][1] == prints[1][1] != prints[1][0]


def test_a_resolved_config_can_be_run_again(make_run: MakeRun) -> None:
    """Law: the saved card of a run has plain values and resolves to itself."""
    source = make_run()
    config = sft_config(source.folder, Path("rows"), Path("out"))
    found = resolve("sft", source, replace(config.model, compute_dtype=ModelOptions().compute_dtype), config.data)
    resolved = replace(config, model=found.model, data=found.data)
    card = yaml.safe_load(yaml.safe_dump(to_dict(resolved)))
    again: SftConfig = from_dict(SftConfig, card, "card")
    assert again == resolved
    assert resolve("sft", source, again.model, again.data).data == resolved.data
