"""The demo's generated text: stories, chats and preference pairs from a small grammar, fixed by a seed.

Every story features exactly two nouns and names no other noun of the lists, so which requested nouns an answer uses can be
measured. `HELDOUT_NOUNS` occur in the pretraining documents and in the "test" split, never in the "train" split.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypedDict

from zephyr_jax.demo import words


class Turn(TypedDict):
    """One message of a chat."""

    role: Literal["user", "assistant"]
    content: str


class ChatRow(TypedDict):
    """One row of the supervised chat data."""

    prompt: str
    prompt_id: str
    messages: list[Turn]


class PreferenceRow(TypedDict):
    """One row of the preference data, with the columns of `HuggingFaceH4/ultrafeedback_binarized`."""

    prompt: str
    prompt_id: str
    chosen: list[Turn]
    rejected: list[Turn]
    messages: list[Turn]
    score_chosen: float
    score_rejected: float


class NounSplit(NamedTuple):
    """The nouns one split may name, and those of which a requested pair must contain at least one."""

    pool: tuple[str, ...]
    required: tuple[str, ...]


SPLITS = {
    "train": NounSplit(words.TRAIN_NOUNS, words.TRAIN_NOUNS),
    "test": NounSplit(words.ALL_NOUNS, words.HELDOUT_NOUNS),
}


def with_article(phrase: str) -> str:
    """The phrase behind its indefinite article: "a fox", "an old fox"."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def story(rng: random.Random, nouns: Sequence[str]) -> str:
    """A finished story that uses each of the given nouns at least twice.

    Args:
        rng: Source of every choice.
        nouns: At most two nouns of `ALL_NOUNS`; the others are drawn. No third noun occurs in the story.

    Returns:
        Sentences separated by spaces, the last one of `CLOSINGS`.

    Raises:
        ValueError: for more than two, equal or unknown nouns.
    """
    if len(nouns) > 2 or len(set(nouns)) < len(nouns) or not set(nouns) <= set(words.ALL_NOUNS):
        raise ValueError(f"expected at most two different nouns of ALL_NOUNS, got {list(nouns)}")
    drawn = _draw_others(rng, words.ALL_NOUNS, nouns, 2 - len(nouns))
    first, second = _order(rng, (*nouns, *drawn))
    plot = rng.choice(words.PLOTS[(first in words.ANIMALS) + (second in words.ANIMALS)])
    fields = _plot_fields(rng, first, second)
    sentences = [_capitalized(rng.choice(wordings).format(**fields)) for wordings in plot]
    return " ".join([*sentences, rng.choice(words.CLOSINGS)])


def documents(seed: int, count: int) -> Iterator[str]:
    """`count` pretraining stories over all nouns, about half of them under a title that names the nouns."""
    rng = random.Random(f"documents {seed}")
    return (_document(rng) for _ in range(count))


def conversations(seed: int, count: int, split: str) -> Iterator[ChatRow]:
    """`count` chats in which an imperfect teacher answers requests for stories about two nouns.

    Every answer ends properly, yet only a share of them uses both requested nouns (`TEACHER_WEIGHTS`). About
    15 % of the chats have a second request and answer; "train" and "test" are the splits.
    """
    nouns = _split(split)
    rng = random.Random(f"conversations {split} {seed}")
    return (_conversation(rng, nouns) for _ in range(count))


def preferences(seed: int, count: int, split: str) -> Iterator[PreferenceRow]:
    """`count` preference pairs: the best of four rated candidates against a random worse one."""
    nouns = _split(split)
    rng = random.Random(f"preferences {split} {seed}")
    return (_preference(rng, nouns) for _ in range(count))


def rate(prompt_nouns: Sequence[str], answer: str) -> float:
    """The rating of an answer, from 1 to 5.

    1 point, plus 3 times the share of the requested nouns that occur as whole words, plus 1 point for an answer that ends with
    one of `CLOSINGS`: 1, 2, 2.5, 3.5, 4 or 5 with two requested nouns.
    """
    if not prompt_nouns:
        raise ValueError("expected at least one requested noun, got none")
    answer_words = set(_lowercase_words(answer))
    present = sum(noun in answer_words for noun in prompt_nouns)
    return 1.0 + 3.0 * present / len(prompt_nouns) + float(answer.rstrip().endswith(words.CLOSINGS))


def requested_nouns(prompt: str) -> tuple[str, ...]:
    """The nouns of `ALL_NOUNS` a prompt names as whole words, each once, in order of appearance."""
    return tuple(dict.fromkeys(word for word in _lowercase_words(prompt) if word in words.ALL_NOUNS))


def _split(name: str) -> NounSplit:
    if name not in SPLITS:
        raise ValueError(f"expected a split of {', '.join(SPLITS)}, got {name!r}")
    return SPLITS[name]


def _lowercase_words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _capitalized(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _draw_others(rng: random.Random, pool: Sequence[str], excluded: Sequence[str], count: int) -> list[str]:
    return rng.sample([noun for noun in pool if noun not in excluded], count)


def _order(rng: random.Random, pair: tuple[str, ...]) -> list[str]:
    """The pair in the order the plots need: an animal before an object, else any."""
    return sorted(rng.sample(pair, 2), key=lambda noun: noun not in words.ANIMALS)


def _plot_fields(rng: random.Random, first: str, second: str) -> dict[str, str]:
    """Values for the fields of a plot."""
    name, friend, nickname = rng.sample(words.NAMES, 3)
    location, spot = rng.sample(words.PLACES, 2)
    return {
        "first": first,
        "second": second,
        "a_first": _described(rng, first),
        "a_second": _described(rng, second),
        "name": name,
        "friend": friend,
        "nickname": nickname,
        "place": location,
        "spot": spot,
        "day": rng.choice(words.DAYS),
    }


def _described(rng: random.Random, noun: str) -> str:
    adjectives = words.ANIMAL_ADJECTIVES if noun in words.ANIMALS else words.OBJECT_ADJECTIVES
    return with_article(f"{rng.choice(adjectives)} {noun}" if rng.random() < 0.8 else noun)


def _pair_phrase(pair: Sequence[str]) -> str:
    return " and ".join(with_article(noun) for noun in pair)


def _document(rng: random.Random) -> str:
    pair = rng.sample(words.ALL_NOUNS, 2)
    text = story(rng, pair)
    if rng.random() >= words.TITLE_SHARE:
        return text
    return f"{rng.choice(words.TITLES).format(pair=_pair_phrase(pair))}\n{text}"


def _draw_request(rng: random.Random, split: NounSplit, excluded: Sequence[str] = ()) -> list[str]:
    """Two different nouns to request, at least one of them a required noun of the split."""
    required = _draw_others(rng, split.required, excluded, 1)
    other = _draw_others(rng, split.pool, [*excluded, *required], 1)
    return rng.sample([*required, *other], 2)


def _story_using(rng: random.Random, requested: Sequence[str], used: int, split: NounSplit) -> str:
    """A story with `used` of the requested nouns and unrequested ones for the rest."""
    kept = rng.sample(requested, used)
    return story(rng, [*kept, *_draw_others(rng, split.pool, requested, 2 - used)])


def _turn(prompt: str, answer: str) -> list[Turn]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _teacher_turns(
    rng: random.Random, phrasings: Sequence[str], requested: Sequence[str], split: NounSplit
) -> list[Turn]:
    prompt = rng.choice(phrasings).format(pair=_pair_phrase(requested))
    (used,) = rng.choices((0, 1, 2), words.TEACHER_WEIGHTS)
    return _turn(prompt, _story_using(rng, requested, used, split))


def _prompt_id(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def _conversation(rng: random.Random, split: NounSplit) -> ChatRow:
    requested = _draw_request(rng, split)
    messages = _teacher_turns(rng, words.REQUESTS, requested, split)
    if rng.random() < words.TWO_TURN_SHARE:
        messages += _teacher_turns(rng, words.FOLLOW_UPS, _draw_request(rng, split, requested), split)
    prompt = messages[0]["content"]
    return {"prompt": prompt, "prompt_id": _prompt_id(prompt), "messages": messages}


def _candidate(rng: random.Random, requested: Sequence[str], split: NounSplit) -> str:
    """An answer of random quality: it uses 0 to 2 of the requested nouns and may be unfinished."""
    (used,) = rng.choices((0, 1, 2), words.CANDIDATE_WEIGHTS)
    answer = _story_using(rng, requested, used, split)
    (ending,) = rng.choices(("proper", "no closing", "cut"), words.ENDING_WEIGHTS)
    if ending == "proper":
        return answer
    body = _without_closing(answer)
    return body if ending == "no closing" else _cut_mid_sentence(rng, body)


def _without_closing(answer: str) -> str:
    closing = next(closing for closing in words.CLOSINGS if answer.endswith(closing))
    return answer.removesuffix(closing).rstrip()


def _cut_mid_sentence(rng: random.Random, body: str) -> str:
    """The body up to a random word of its second half that does not end a sentence or a clause."""
    parts = body.split(" ")
    ends = [end for end in range(len(parts) // 2, len(parts)) if parts[end - 1].isalpha()]
    return " ".join(parts[: rng.choice(ends)])


def _rated_pair(rng: random.Random, requested: Sequence[str], split: NounSplit) -> tuple[str, str]:
    """The best of four candidates and a random one rated strictly lower, redrawn until there is one."""
    while True:
        candidates = [_candidate(rng, requested, split) for _ in range(4)]
        chosen = max(candidates, key=lambda answer: rate(requested, answer))
        worse = [answer for answer in candidates if rate(requested, answer) < rate(requested, chosen)]
        if worse:
            return chosen, rng.choice(worse)


def _preference(rng: random.Random, split: NounSplit) -> PreferenceRow:
    requested = _draw_request(rng, split)
    prompt = rng.choice(words.REQUESTS).format(pair=_pair_phrase(requested))
    chosen, rejected = _rated_pair(rng, requested, split)
    return {
        "prompt": prompt,
        "prompt_id": _prompt_id(prompt),
        "chosen": _turn(prompt, chosen),
        "rejected": _turn(prompt, rejected),
        "messages": _turn(prompt, chosen),
        "score_chosen": rate(requested, chosen),
        "score_rejected": rate(requested, rejected),
    }
