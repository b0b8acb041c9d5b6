"""Templates that print the date or draw random values."""

from datetime import date, datetime
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from zephyr_jax.chat import template_loader
from zephyr_jax.chat.template_date import check_nothing_random, freeze_date, prints_date
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import load_chat_tokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.errors import InputError

DAY = date(2026, 11, 28)
TURNS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
DATED = {
    "single quotes": ("{{ strftime_now('%d %b %Y') }}", "28 Nov 2026"),
    "double quotes": ('{{ strftime_now("%Y-%m-%d") }}', "2026-11-28"),
    "by name": ("{{ strftime_now(format='%Y') }}", "2026"),
    "twice": ("{{ strftime_now('%d') }}/{{ strftime_now('%m') }}", "28/11"),
    "where it is defined": (
        "{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}{%- else %}{%- set day = 'then' %}"
        "{%- endif %}{{ day }}",
        "28 Nov 2026",
    ),
    "in a default": (
        "{%- if not day is defined %}{%- set day = strftime_now('%B') %}{%- endif %}{{ day }}",
        "November",
    ),
    "beside markers": ("{% generation %}{{ strftime_now('%d') }}{% endgeneration %}", "28"),
    "a quote in the format": ("{{ strftime_now('%d o\\'clock') }}", "28 o'clock"),
}
UNFREEZABLE = {
    "a computed format": "{% set f = '%Y' %}{{ strftime_now(f) }}",
    "a joined format": "{{ strftime_now('%d ' ~ '%b') }}",
    "another name": "{% set clock = strftime_now %}{{ clock('%Y') }}",
}
RANDOM = {
    "the filter random": ("{{ ['a', 'b'] | random }}", "the filter `random`"),
    "lipsum": ("{{ lipsum(1, False) }}", r"`lipsum\(\)`"),
    "random behind map": ("{{ [range(99999)] | map('random') | join }}", "is random"),
    "an address": ("{{ cycler('a') }}", "is random"),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model))


def written(folder: Path, source: str) -> str:
    path = folder / "own.jinja"
    path.write_text(source + TURNS)
    return str(path)


@pytest.mark.parametrize(("source", "text"), DATED.values(), ids=DATED)
def test_a_date_is_frozen_in_the_source(source: str, text: str) -> None:
    """Law: the frozen source prints the given day, whatever the clock shows, and reads no clock any more."""
    frozen = freeze_date(source, DAY, "own.jinja")
    assert render_jinja_template([[]], chat_template=frozen)[0][0] == text
    assert prints_date(source)
    assert not prints_date(frozen)


@pytest.mark.parametrize("source", ["{{ 'strftime_now' }}", "strftime_now('%Y')", "{{ messages | length }}"])
def test_a_template_that_reads_no_clock_stays(source: str) -> None:
    """Law: text that only spells the clock's name is left alone."""
    assert not prints_date(source)
    assert freeze_date(source, DAY, "own.jinja") == source


@pytest.mark.parametrize("source", UNFREEZABLE.values(), ids=UNFREEZABLE)
def test_a_clock_that_cannot_be_frozen_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, source: str
) -> None:
    """Law: a date that would change from day to day is an error that names the template and the call."""
    with pytest.raises(InputError, match=r"own\.jinja.*cannot be frozen.*strftime_now"):
        load_template(written(tmp_path, source), tokenizer)


@pytest.mark.parametrize(("source", "reason"), RANDOM.values(), ids=RANDOM)
@pytest.mark.parametrize("training", [True, False])
def test_a_random_template_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, source: str, reason: str, training: bool
) -> None:
    """Law: a template that renders differently each time is refused by name, for training and for generation."""
    with pytest.raises(InputError, match=reason) as refused:
        load_template(written(tmp_path, source), tokenizer, training=training)
    assert "own.jinja" in str(refused.value)


def test_a_harmless_template_is_not_random() -> None:
    """Law: filters that draw nothing pass."""
    check_nothing_random("{{ messages | map(attribute='content') | join | trim }}", "own.jinja")


def test_the_day_decides_the_fingerprint_and_not_the_clock(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: with a given day the template gives the same tokens on every day; without one, those of today."""
    path = written(tmp_path, DATED["single quotes"][0])
    prints: dict[str, list[str]] = {"given": [], "today": []}
    for day in (DAY, date(2026, 11, 29)):
        monkeypatch.setattr(template_loader, "now", lambda day=day: datetime(day.year, day.month, day.day, 23, 50))
        prints["given"].append(load_chat_tokenizer(path, tokenizer, DAY).fingerprint)
        prints["today"].append(load_chat_tokenizer(path, tokenizer).fingerprint)
    assert prints["given"] == [prints["today"][0]] * 2
    assert prints["today"][0] != prints["today"][1]
    assert load_template(path, tokenizer, DAY).day == DAY
    assert load_template("zephyr", tokenizer, DAY).day is None


@pytest.mark.shared
@pytest.mark.parametrize("case", ["checkpoints/16-strftime", "checkpoints/14-named-templates"])
def test_shared_checkpoints_with_special_templates_load(shared: Path, case: str) -> None:
    """Law: a checkpoint whose template prints the date, and one with named templates, give prompts of one kind."""
    own = load_tokenizer(str(shared / "cases" / case))
    tokenizer = load_chat_tokenizer(None, own, DAY)
    prompt = [{"role": "user", "content": "Hello!"}]
    assert tokenizer.template.name == "tokenizer"
    assert ("28 Nov 2026" in tokenizer.template.render(prompt, True).text) == ("strftime" in case)
