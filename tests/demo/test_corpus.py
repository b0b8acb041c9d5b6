"""The laws of the demo's text: what a seed fixes, what a split may name, what a rating means."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import pytest

from zephyr_jax.demo import corpus, words

ROWS = 2_000
SPLITS = ("train", "test")


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def nouns_of(text: str) -> set[str]:
    return set(words_of(text)) & set(words.ALL_NOUNS)


def turns(messages: list[corpus.Turn]) -> Iterator[tuple[str, str]]:
    """The (request, answer) pairs of a chat."""
    for user, assistant in zip(messages[::2], messages[1::2], strict=True):
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        yield user["content"], assistant["content"]


def texts_of(split: str) -> Iterator[str]:
    for chat in corpus.conversations(3, ROWS, split):
        yield from (message["content"] for message in chat["messages"])
    for row in corpus.preferences(3, ROWS, split):
        yield from (message["content"] for message in row["chosen"] + row["rejected"])


def all_texts() -> Iterator[str]:
    yield from corpus.documents(3, ROWS)
    for split in SPLITS:
        yield from texts_of(split)


def test_the_seed_fixes_every_row() -> None:
    def everything(seed: int) -> list[object]:
        chats = [list(corpus.conversations(seed, 50, split)) for split in SPLITS]
        pairs = [list(corpus.preferences(seed, 50, split)) for split in SPLITS]
        return [list(corpus.documents(seed, 50)), *chats, *pairs]

    first = everything(7)
    random.seed(99)
    assert everything(7) == first
    assert all(here != there for here, there in zip(everything(8), first, strict=True))


def test_a_shorter_corpus_is_a_prefix_of_a_longer_one() -> None:
    assert list(corpus.documents(1, 20)) == list(corpus.documents(1, 40))[:20]
    assert list(corpus.preferences(1, 20, "test")) == list(corpus.preferences(1, 40, "test"))[:20]


def test_the_noun_lists_are_disjoint_and_of_the_stated_size() -> None:
    assert (len(words.TRAIN_NOUNS), len(words.HELDOUT_NOUNS)) == (48, 16)
    assert len(set(words.ALL_NOUNS)) == 64
    assert words.ANIMALS.issubset(words.ALL_NOUNS)


def test_the_train_split_never_names_a_heldout_noun() -> None:
    named = set().union(*map(nouns_of, texts_of("train")))
    assert named == set(words.TRAIN_NOUNS)


def test_every_request_of_the_test_split_names_a_heldout_noun() -> None:
    requests = [request for chat in corpus.conversations(3, ROWS, "test") for request, _ in turns(chat["messages"])]
    requests += [row["prompt"] for row in corpus.preferences(3, ROWS, "test")]
    assert all(nouns_of(request) & set(words.HELDOUT_NOUNS) for request in requests)
    assert set().union(*map(nouns_of, requests)) == set(words.ALL_NOUNS)


def test_pretraining_names_every_noun() -> None:
    assert set().union(*map(nouns_of, corpus.documents(3, ROWS))) == set(words.ALL_NOUNS)


@pytest.mark.parametrize("generate", [corpus.conversations, corpus.preferences])
def test_an_unknown_split_is_refused_at_the_call(generate: object) -> None:
    assert callable(generate)
    with pytest.raises(ValueError, match="got 'validation'"):
        generate(0, 1, "validation")


def test_a_story_uses_each_given_noun_twice_and_no_third_noun() -> None:
    rng = random.Random(5)
    for pair in combinations(words.ALL_NOUNS, 2):
        for nouns in (pair, pair[::-1]):
            text = corpus.story(rng, nouns)
            counts = Counter(words_of(text))
            assert min(counts[noun] for noun in nouns) >= 2, text
            assert nouns_of(text) == set(nouns), text


@pytest.mark.parametrize("given", [(), ("fox",), ("key",)])
def test_a_story_draws_the_nouns_it_is_not_given(given: tuple[str, ...]) -> None:
    stories = [corpus.story(random.Random(seed), given) for seed in range(1_000)]
    assert all(len(nouns_of(text)) == 2 and set(given) <= nouns_of(text) for text in stories)
    assert set().union(*map(nouns_of, stories)) == set(words.ALL_NOUNS)


@pytest.mark.parametrize("nouns", [("fox", "fox"), ("fox", "key", "cup"), ("dragon",)])
def test_a_story_refuses_nouns_it_cannot_feature(nouns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="at most two different nouns"):
        corpus.story(random.Random(0), nouns)


def test_stories_are_short_finished_and_well_formed() -> None:
    rng = random.Random(6)
    for _ in range(ROWS):
        text = corpus.story(rng, ())
        sentences = re.split(r'(?<=[.!?]) (?=["A-Z])', text)
        assert 3 <= len(sentences) <= 5, text
        assert 40 <= len(text.split()) <= 70, text
        assert text.endswith(words.CLOSINGS)
        assert all(re.match(r'"?[A-Z]', sentence) for sentence in sentences), text
        assert text.count('"') % 2 == 0 and not re.search(r"[{}]|  ", text), text


def test_every_wording_of_every_plot_occurs() -> None:
    stories = [corpus.story(random.Random(seed), ()) for seed in range(ROWS)]
    text = " ".join(stories).lower()
    for plots in words.PLOTS.values():
        for alternative in {wording for plot in plots for wordings in plot for wording in wordings}:
            pattern = re.sub(r"\\\{\w+\\\}", "[a-z ]+", re.escape(alternative.lower()))
            assert re.search(pattern, text), alternative


def test_the_article_fits_the_next_word() -> None:
    text = "\n".join(all_texts())
    assert re.search(r"\ban (owl|apple|old)\b", text)
    assert not re.findall(r"\b[Aa] [aeiouAEIOU]\w*", text)
    assert not re.findall(r"\b[Aa]n [^aeiouAEIOU\W]\w*", text)
    assert (corpus.with_article("owl"), corpus.with_article("shy owl")) == ("an owl", "a shy owl")


def test_documents_are_distinct_and_half_titled() -> None:
    texts = list(corpus.documents(11, ROWS))
    assert len(set(texts)) > 0.95 * ROWS
    titled = [text.split("\n") for text in texts if "\n" in text]
    assert len(titled) / ROWS == pytest.approx(0.5, abs=0.05)
    assert all(set(corpus.requested_nouns(title)) == nouns_of(body) for title, body in titled)


@pytest.mark.parametrize("split", SPLITS)
def test_conversations_have_the_chat_schema(split: str) -> None:
    chats = list(corpus.conversations(4, ROWS, split))
    for chat in chats:
        assert set(chat) == {"prompt", "prompt_id", "messages"}
        assert chat["prompt"] == chat["messages"][0]["content"]
        assert chat["prompt_id"] == hashlib.sha256(chat["prompt"].encode()).hexdigest()
        assert all(len(corpus.requested_nouns(request)) == 2 for request, _ in turns(chat["messages"]))
    lengths = Counter(len(chat["messages"]) for chat in chats)
    assert set(lengths) == {2, 4}
    assert lengths[4] / ROWS == pytest.approx(0.15, abs=0.03)


def test_prompts_are_phrased_in_six_ways() -> None:
    noun = "|".join(words.ALL_NOUNS)
    prompts = (chat["prompt"] for chat in corpus.conversations(4, ROWS, "train"))
    phrasings = Counter(re.sub(rf"\ban? ({noun})\b", "NOUN", prompt) for prompt in prompts)
    assert len(phrasings) == 6
    assert min(phrasings.values()) > ROWS / 6 * 0.8


@pytest.mark.parametrize("split", SPLITS)
def test_the_teacher_uses_the_requested_nouns_at_the_stated_rates(split: str) -> None:
    answered = [turn for chat in corpus.conversations(4, ROWS, split) for turn in turns(chat["messages"])]
    assert all(answer.endswith(words.CLOSINGS) for _, answer in answered)
    used = Counter(len(nouns_of(request) & nouns_of(answer)) for request, answer in answered)
    shares = [used[number] / len(answered) for number in (0, 1, 2)]
    assert shares == pytest.approx([0.15, 0.30, 0.55], abs=0.04)


@pytest.mark.parametrize("split", SPLITS)
def test_preferences_have_the_schema_and_a_strictly_better_choice(split: str) -> None:
    for row in corpus.preferences(4, ROWS, split):
        assert set(row) == set(corpus.PreferenceRow.__annotations__)
        assert row["prompt_id"] == hashlib.sha256(row["prompt"].encode()).hexdigest()
        assert row["messages"] == row["chosen"]
        ((chosen_request, chosen),) = turns(row["chosen"])
        ((rejected_request, rejected),) = turns(row["rejected"])
        assert chosen_request == rejected_request == row["prompt"]
        nouns = corpus.requested_nouns(row["prompt"])
        assert len(nouns) == 2
        assert row["score_chosen"] == corpus.rate(nouns, chosen)
        assert row["score_rejected"] == corpus.rate(nouns, rejected)
        assert row["score_chosen"] > row["score_rejected"]


def test_preferences_teach_both_the_nouns_and_the_ending() -> None:
    rows = list(corpus.preferences(4, ROWS, "train"))
    assert sum(row["score_chosen"] == 5.0 for row in rows) > 0.7 * ROWS
    rejected = [(row["prompt"], row["rejected"][1]["content"]) for row in rows]
    unfinished = [answer for _, answer in rejected if not answer.endswith(words.CLOSINGS)]
    missing = [answer for prompt, answer in rejected if not nouns_of(prompt) <= nouns_of(answer)]
    assert len(unfinished) > 0.3 * ROWS and len(missing) > 0.3 * ROWS
    mid_sentence = [answer for answer in unfinished if answer[-1].isalpha()]
    assert len(mid_sentence) / len(unfinished) == pytest.approx(0.5, abs=0.1)
    assert all(answer.endswith((".", '"')) for answer in unfinished if not answer[-1].isalpha())


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("The fox saw a key. It had been the best day of all.", 5.0),
        ("The fox saw a key. It had been the best day of all.\n", 5.0),
        ("The fox saw a key.", 4.0),
        ("The fox saw a key. It had been the best", 4.0),
        ("It had been the best day of all. The fox saw a key.", 4.0),
        ("The fox saw a cup. It had been the best day of all.", 3.5),
        ("The key fell", 2.5),
        ("The foxes had keys. It had been the best day of all.", 2.0),
        ("A monkey saw a firefox", 1.0),
        ("", 1.0),
    ],
)
def test_rate_of_handmade_answers(answer: str, rating: float) -> None:
    assert corpus.rate(("fox", "key"), answer) == rating


def test_rate_needs_requested_nouns() -> None:
    with pytest.raises(ValueError, match="got none"):
        corpus.rate((), "The fox saw a key.")


@pytest.mark.parametrize(
    ("prompt", "nouns"),
    [
        ("Tell a story about an owl and a fox.", ("owl", "fox")),
        ("A Fox, a teapot; then the fox!", ("fox", "teapot")),
        ("Tell a story about foxes and a monkey.", ()),
    ],
)
def test_requested_nouns_are_whole_words_in_order(prompt: str, nouns: tuple[str, ...]) -> None:
    assert corpus.requested_nouns(prompt) == nouns
