"""Cards: YAML in, typed config out, and back; what a card may not say."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from tests.settings import setting_names
from zephyr_jax.cli import parse
from zephyr_jax.commands import COMMANDS
from zephyr_jax.config.inspect import PreviewConfig
from zephyr_jax.config.models import EvaluateConfig, ExportConfig, GenerateConfig
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.validation import validate
from zephyr_jax.config.yaml_file import differences, expand_home, from_dict, load_card, save_card, to_dict
from zephyr_jax.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
CARDS = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
ALL_KINDS = (SftConfig, DpoConfig, EvaluateConfig, GenerateConfig, ExportConfig, PreviewConfig)


def written(folder: Path, text: str) -> Path:
    path = folder / "card.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, kind: type[Any] = SftConfig) -> str:
    with pytest.raises(InputError) as refused:
        load_card(kind, written(folder, text))
    message = str(refused.value)
    assert message.startswith(f"{folder / 'card.yaml'}: ")
    assert "\n" not in message
    return message.removeprefix(f"{folder / 'card.yaml'}: ")


# ---- the cards that we ship ----


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_sound(name: str) -> None:
    """Law: each card under configs/ loads and, with a model and rows named, holds together."""
    aligns = "reference" in yaml.safe_load((CONFIGS / name).read_text())
    card = load_card(DpoConfig if aligns else SftConfig, CONFIGS / name)
    model = replace(card.model, path=card.model.path or "a-model")
    data = replace(card.data, path=card.data.path or "rows.jsonl")
    validate(replace(card, model=model, data=data))


@pytest.mark.parametrize("name", CARDS)
def test_every_card_says_how_to_run_it(name: str) -> None:
    """Law: each card starts with a comment that names the verb and the card's own path."""
    header = [line for line in (CONFIGS / name).read_text().splitlines() if line.startswith("#")]
    assert any(f"configs/{name}" in line and "zephyr-jax" in line for line in header)


# ---- in ----


def test_an_empty_card_is_all_defaults(tmp_path: Path) -> None:
    """Law: what a card does not say has its default."""
    for text in ("", "# nothing yet\n", "{}\n"):
        assert load_card(DpoConfig, written(tmp_path, text)) == DpoConfig()


def test_a_card_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    """Law: a section may name some of its settings; the rest keep their defaults."""
    card = load_card(SftConfig, written(tmp_path, "seed: 7\ndata:\n  path: rows.jsonl\n  limit: 9\n"))
    assert (card.seed, card.data.path, card.data.limit) == (7, "rows.jsonl", 9)
    default = SftConfig()
    assert replace(card, seed=default.seed, data=default.data) == default


@pytest.mark.parametrize(("text", "value"), [("5e-7", 5e-7), ("5.0e-7", 5e-7), ("1", 1.0), ("'2e-5'", 2e-5)])
def test_a_number_is_a_number_however_yaml_reads_it(tmp_path: Path, text: str, value: float) -> None:
    """Law: `5e-7`, which YAML reads as text, is the float that was meant."""
    rate = load_card(SftConfig, written(tmp_path, f"optimizer:\n  learning_rate: {text}\n")).optimizer.learning_rate
    assert rate == value
    assert isinstance(rate, float)


def test_null_is_none_where_a_setting_allows_it(tmp_path: Path) -> None:
    """Law: a setting that can be absent is switched off by null."""
    assert (
        load_card(SftConfig, written(tmp_path, "optimizer:\n  max_grad_norm: null\n")).optimizer.max_grad_norm is None
    )


# ---- refused ----


@pytest.mark.parametrize(
    ("text", "named", "meant"),
    [
        ("sead: 7\n", "sead", "seed"),
        ("optimiser:\n  name: adamw\n", "optimiser", "optimizer"),
        ("optimizer:\n  learning_rat: 1.0\n", "optimizer.learning_rat", "optimizer.learning_rate"),
        ("data:\n  max_lenght: 64\n", "data.max_lenght", "data.max_length"),
        ("model:\n  compute_dtipe: float32\n", "model.compute_dtipe", "model.compute_dtype"),
    ],
)
def test_an_unknown_key_is_answered_with_the_right_name(tmp_path: Path, text: str, named: str, meant: str) -> None:
    """Law: a misspelt setting is refused by its full name, with the nearest one there is."""
    assert refusal(tmp_path, text) == f"`{named}` is not a setting. Did you mean `{meant}`?"


def test_a_key_like_no_other_is_answered_with_those_there_are(tmp_path: Path) -> None:
    """Law: where nothing is near, the names of that section are listed."""
    message = refusal(tmp_path, "batch:\n  xyz: 1\n")
    assert "batch.examples, batch.microbatch_rows, batch.rows" in message


def test_a_setting_in_the_wrong_card_is_refused(tmp_path: Path) -> None:
    """Law: `dpo` settings are no part of an SFT card."""
    assert "`dpo` is not a setting" in refusal(tmp_path, "dpo:\n  beta: 0.1\n")
    assert load_card(DpoConfig, written(tmp_path, "dpo:\n  beta: 0.2\n")).dpo.beta == 0.2


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("seed: many\n", "`seed`: expected a valid integer, got 'many'"),
        ("seed: 1.5\n", "`seed`: expected a valid integer"),
        ("output: 3\n", "`output`: expected a valid string, got 3"),
        ("resume: perhaps\n", "`resume`: expected a valid boolean"),
        ("batch:\n  rows: [1, 2]\n", "`batch.rows`: expected a valid integer, got [1, 2]"),
        (
            "optimizer:\n  learning_rate: fast\n",
            "`optimizer.learning_rate`: expected a valid number, got 'fast'",
        ),
        ("optimizer:\n  name: sgd\n", "`optimizer.name`: expected 'adamw' or 'rmsprop', got 'sgd'"),
        ("optimizer:\n  learning_rate: null\n", "`optimizer.learning_rate`: expected a valid number, got None"),
        ("model:\n  remat: true\n", "`model.remat`: expected "),
        ("data: rows.jsonl\n", "`data`: expected settings"),
        ("- seed\n- 7\n", "`the card`: expected settings"),
        ("just words\n", "`the card`: expected settings"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_full_name(tmp_path: Path, text: str, start: str) -> None:
    """Law: the refusal has the setting's full name, the value, and what it should be."""
    assert refusal(tmp_path, text).startswith(start)


@pytest.mark.parametrize("value", ["true", "yes"])
def test_a_truth_is_no_number(tmp_path: Path, value: str) -> None:
    """Law: `rows: true` is a mistake, not one row."""
    assert "`batch.rows`: expected int, got True" in refusal(tmp_path, f"batch:\n  rows: {value}\n")


@pytest.mark.parametrize(
    ("text", "reason"), [("a: [1\n", "line 2"), ("a: 1\n\tb: 2\n", "line 2"), ("a: b: c\n", "line 1")]
)
def test_broken_yaml_is_refused_with_its_place(tmp_path: Path, text: str, reason: str) -> None:
    """Law: what is not YAML is refused with the line, in one paragraph."""
    with pytest.raises(InputError, match=f"card.yaml is not valid YAML: .*{reason}.* Fix it") as refused:
        load_card(SftConfig, written(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_a_card_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Law: a missing file, a folder and a binary file are refused by name."""
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for name, reason in (
        ("nowhere.yaml", "No such file"),
        (".", "Is a directory"),
        ("binary.yaml", "not valid YAML"),
    ):
        with pytest.raises(InputError, match=reason):
            load_card(SftConfig, tmp_path / name)


# ---- out ----


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_saved_card_loads_as_the_same_config(tmp_path: Path, kind: type[Any]) -> None:
    """Law: save_card and load_card are inverse, for every kind of config, and every setting is escaped."""
    config = kind()
    path = tmp_path / "card.yaml"
    save_card(config, path)
    assert load_card(kind, path) == config
    assert all(f"{name.split('.')[-1]}:" in path.read_text() for name in setting_names(kind))


def test_awkward_values_survive_the_round_trip(tmp_path: Path) -> None:
    """Law: text that YAML would read as something else, tiny numbers, and lists come back as they were."""
    first = SftConfig(output="yes", seed=0)
    second = replace(first, data=replace(first.data, path="12", revision="1e3"))
    third = replace(second, optimizer=replace(second.optimizer, learning_rate=5e-7, eps=1e-30, max_grad_norm=None))
    prompts = GenerateConfig(prompts=("null", "a: b", "# no comment", "é\n\n"), top_p=0.1 + 0.2)
    for config in (first, second, third, prompts):
        save_card(config, tmp_path / "card.yaml")
        assert load_card(type(config), tmp_path / "card.yaml") == config


def test_plain_dicts_build_the_same_config() -> None:
    """Law: from_dict and to_dict are inverse."""
    config = DpoConfig(output="out")
    assert from_dict(DpoConfig, to_dict(config), "test") == config
    assert to_dict(config) == json.loads(json.dumps(asdict(config)))  # with lists for tuples


# ---- differences ----


def test_differences_name_each_setting_once() -> None:
    """Law: two configs differ in exactly the settings that were changed, each with both values."""
    base = DpoConfig()
    other = replace(base, seed=1, optimizer=replace(base.optimizer, learning_rate=1.0))
    assert differences(to_dict(base), to_dict(base)) == {}
    assert differences(to_dict(other), to_dict(base)) == {
        "optimizer.learning_rate": (1.0, 2e-5),
        "seed": (1, 42),
    }
    assert differences({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a.b": (1, None), "a.c": (None, 2)}


def test_no_card_trains_on_a_test_split() -> None:
    """Law: official test rows are evaluated on and nothing else (the handbook's newest recipe mixes them in)."""
    cards = [CONFIGS / name for name in CARDS if not name.startswith("tiny/")]
    assert len(cards) == 21
    for card in cards:
        data = yaml.safe_load(card.read_text())["data"]
        assert data["split"].startswith("train_")
        assert data["eval_split"].startswith("test_")


# ---- home folders ----


def string_settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting that holds text."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from string_settings(value, f"{prefix}{item.name}.")
        elif isinstance(value, str | tuple) or value is None:
            yield prefix + item.name, value


@pytest.mark.parametrize(
    "name", ["data.path", "data.eval_path", "data.chat_template", "model.path", "output", "reference"]
)
def test_a_tilde_is_the_home_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: `~` in a path of a card or of the command line is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    section, _, setting = name.rpartition(".")
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump({section: {setting: "~/here"}} if section else {setting: "~/here"}))
    for config in (load_card(DpoConfig, "~/card.yaml"), parse(DpoConfig, "dpo", [f"--{name}=~/here"])):
        assert dict(string_settings(config))[name] == f"{tmp_path}/here"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_of_every_command_may_start_at_home(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: every setting that a command has for text is expanded, except text that is no path."""
    monkeypatch.setenv("HOME", "/home/me")
    kind = COMMANDS[command].config_type()

    def at_home(config: Any) -> Any:
        changed = {}
        for item in fields(config):
            value = getattr(config, item.name)
            hint = str(get_type_hints(type(config))[item.name])
            if is_dataclass(value):
                changed[item.name] = at_home(value)
            elif "tuple[str" in hint:
                changed[item.name] = ("~/a", "NAME=~/b")
            elif "str" in hint and "Literal" not in hint and "dict" not in hint:
                changed[item.name] = "~/a"
        return replace(config, **changed)

    expanded = dict(string_settings(expand_home(at_home(kind()))))
    left = {name for name, value in expanded.items() if value in ("~/a", ("~/a", "NAME=~/b"))}
    texts = {"system", "prompts", "refusal_phrases", "principles", "exclude_sources", "tasks", "name"}
    assert {name.rpartition(".")[2] for name in left} <= texts
    assert all("~" not in str(value) for name, value in expanded.items() if name not in left)


def test_an_unknown_home_is_refused() -> None:
    with pytest.raises(InputError, match="`output` is '~nobody-here/x'"):
        parse(DpoConfig, "dpo", ["--output=~nobody-here/x"])
