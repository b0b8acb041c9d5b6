"""The demo's text: tiny stories, chats and preference pairs, generated from a small grammar.

This module owns the words, the plots, the imperfect "teacher" that answers story requests, and the rule
that rates an answer. Everything is our own text and depends on nothing but the seed.

Every story features exactly two nouns and names no other noun of the lists, so which requested nouns an
answer uses can be measured. `HELDOUT_NOUNS` occur in the pretraining documents and in the "test" split,
never in the "train" split.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypedDict

from zephyr_jax.demo.words import (
    ALL_NOUNS,
    ANIMAL_ADJECTIVES,
    ANIMALS,
    CANDIDATE_WEIGHTS,
    CLOSINGS,
    DAYS,
    ENDING_WEIGHTS,
    FOLLOW_UPS,
    HELDOUT_NOUNS,
    NAMES,
    OBJECT_ADJECTIVES,
    PLACES,
    PLOTS,
    REQUESTS,
    TEACHER_WEIGHTS,
    TITLE_SHARE,
    TITLES,
    TRAIN_NOUNS,
    TWO_TURN_SHARE,
)


class Message(TypedDict):
    """One turn of a chat."""

    role: Literal["user", "assistant"]
    content: str


class Conversation(TypedDict):
    """One row of the supervised chat data."""

    prompt: str
    prompt_id: str
    messages: list[Message]


class Preference(TypedDict):
    """One row of the preference data, with the columns of `HuggingFaceH4/ultrafeedback_binarized`."""

    prompt: str
    prompt_id: str
    chosen: list[Message]
    rejected: list[Message]
    messages: list[Message]
    score_chosen: float
    score_rejected: float


@dataclass(frozen=True)
class Split:
    """The nouns one split may name, and those of which a requested pair must contain at least one."""

    pool: tuple[str, ...]
    required: tuple[str, ...]


SPLITS: Mapping[str, Split] = MappingProxyType(
    {"train": Split(TRAIN_NOUNS, TRAIN_NOUNS), "test": Split(ALL_NOUNS, HELDOUT_NOUNS)}
)


def with_article(phrase: str) -> str:
    """The phrase behind its indefinite article: "a fox", "an old fox"."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def story(rng: random.Random, nouns: Sequence[str]) -> str:
    """A finished story that uses each of the given nouns at least twice.

    At most two nouns of `ALL_NOUNS` may be given; where fewer are, `rng` draws the others from all nouns. No
    noun beyond those two occurs. The last sentence is one of `CLOSINGS`.
    """
    if len(nouns) > 2 or len(set(nouns)) < len(nouns) or not set(nouns) <= set(ALL_NOUNS):
        raise ValueError(f"got the nouns {list(nouns)}, needed at most two different ones of ALL_NOUNS")
    drawn = _draw_others(rng, ALL_NOUNS, nouns, 2 - len(nouns))
    first, second = _order(rng, (*nouns, *drawn))
    plot = rng.choice(PLOTS[(first in ANIMALS) + (second in ANIMALS)])
    words = _words(rng, first, second)
    sentences = [_capitalised(rng.choice(beat).format(**words)) for beat in plot]
    return " ".join([*sentences, rng.choice(CLOSINGS)])


def documents(seed: int, count: int) -> Iterator[str]:
    """`count` pretraining stories over all nouns, about half of them under a title that names the nouns."""
    rng = random.Random(f"documents {seed}")
    return (_document(rng) for _ in range(count))


def conversations(seed: int, count: int, split: str) -> Iterator[Conversation]:
    """`count` chats in which an imperfect teacher answers requests for stories about two nouns.

    Every answer ends properly, yet only a share of them uses both requested nouns (`TEACHER_WEIGHTS`). About
    15 % of the chats have a second request and answer; "train" and "test" are the splits.
    """
    nouns = _split(split)
    rng = random.Random(f"conversations {split} {seed}")
    return (_conversation(rng, nouns) for _ in range(count))


def preferences(seed: int, count: int, split: str) -> Iterator[Preference]:
    """`count` preference pairs: the best of four rated candidates against a random worse one."""
    nouns = _split(split)
    rng = random.Random(f"preferences {split} {seed}")
    return (_preference(rng, nouns) for _ in range(count))


def rate(prompt_nouns: Sequence[str], answer: str) -> float:
    """The rating of an answer, from 1 to 5.

    1 point to start with, 3 points times the share of the requested nouns that occur in the answer as
    whole words, and 1 point if the answer ends with one of `CLOSINGS`. With two requested nouns the
    possible ratings are therefore 1, 2, 2.5, 3.5, 4 and 5.
    """
    if not prompt_nouns:
        raise ValueError("got no requested nouns, needed at least one")
    words = set(_lowercase_words(answer))
    present = sum(noun in words for noun in prompt_nouns)
    return 1.0 + 3.0 * present / len(prompt_nouns) + float(answer.rstrip().endswith(CLOSINGS))


def requested_nouns(prompt: str) -> tuple[str, ...]:
    """The nouns of `ALL_NOUNS` a prompt names as whole words, each once, in order of appearance."""
    return tuple(dict.fromkeys(word for word in _lowercase_words(prompt) if word in ALL_NOUNS))


def _split(name: str) -> Split:
    if name not in SPLITS:
        raise ValueError(f"got the split {name!r}, needed one of {', '.join(map(repr, SPLITS))}")
    return SPLITS[name]


def _lowercase_words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _draw_others(rng: random.Random, pool: Sequence[str], excluded: Sequence[str], count: int) -> list[str]:
    return rng.sample([noun for noun in pool if noun not in excluded], count)


def _order(rng: random.Random, pair: tuple[str, ...]) -> list[str]:
    """The pair in the order the plots need: an animal before an object, else any."""
    return sorted(rng.sample(pair, 2), key=lambda noun: noun not in ANIMALS)


def _words(rng: random.Random, first: str, second: str) -> dict[str, str]:
    """The words that fill the fields of a plot."""
    name, friend, nickname = rng.sample(NAMES, 3)
    place, spot = rng.sample(PLACES, 2)
    return {
        "first": first,
        "second": second,
        "a_first": _described(rng, first),
        "a_second": _described(rng, second),
        "name": name,
        "friend": friend,
        "nickname": nickname,
        "place": place,
        "spot": spot,
        "day": rng.choice(DAYS),
    }


def _described(rng: random.Random, noun: str) -> str:
    adjectives = ANIMAL_ADJECTIVES if noun in ANIMALS else OBJECT_ADJECTIVES
    return with_article(f"{rng.choice(adjectives)} {noun}" if rng.random() < 0.8 else noun)


def _pair_phrase(pair: Sequence[str]) -> str:
    return " and ".join(with_article(noun) for noun in pair)


def _document(rng: random.Random) -> str:
    pair = rng.sample(ALL_NOUNS, 2)
    text = story(rng, pair)
    if rng.random() >= TITLE_SHARE:
        return text
    return f"{rng.choice(TITLES).format(pair=_pair_phrase(pair))}\n{text}"


def _draw_request(rng: random.Random, split: Split, excluded: Sequence[str] = ()) -> list[str]:
    """Two different nouns to request, at least one of them a required noun of the split."""
    required = _draw_others(rng, split.required, excluded, 1)
    other = _draw_others(rng, split.pool, [*excluded, *required], 1)
    return rng.sample([*required, *other], 2)


def _story_using(rng: random.Random, requested: Sequence[str], used: int, split: Split) -> str:
    """A story with `used` of the requested nouns, the others replaced by nouns nobody asked for."""
    kept = rng.sample(requested, used)
    return story(rng, [*kept, *_draw_others(rng, split.pool, requested, 2 - used)])


def _turn(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _taught_turn(rng: random.Random, phrasings: Sequence[str], requested: Sequence[str], split: Split) -> list[Message]:
    prompt = rng.choice(phrasings).format(pair=_pair_phrase(requested))
    (used,) = rng.choices((0, 1, 2), TEACHER_WEIGHTS)
    return _turn(prompt, _story_using(rng, requested, used, split))


def _prompt_id(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def _conversation(rng: random.Random, split: Split) -> Conversation:
    requested = _draw_request(rng, split)
    messages = _taught_turn(rng, REQUESTS, requested, split)
    if rng.random() < TWO_TURN_SHARE:
        messages += _taught_turn(rng, FOLLOW_UPS, _draw_request(rng, split, requested), split)
    prompt = messages[0]["content"]
    return {"prompt": prompt, "prompt_id": _prompt_id(prompt), "messages": messages}


def _candidate(rng: random.Random, requested: Sequence[str], split: Split) -> str:
    """An answer of random quality: it uses 0 to 2 of the requested nouns and may be unfinished."""
    (used,) = rng.choices((0, 1, 2), CANDIDATE_WEIGHTS)
    answer = _story_using(rng, requested, used, split)
    (ending,) = rng.choices(("proper", "no closing", "cut"), ENDING_WEIGHTS)
    if ending == "proper":
        return answer
    body = _without_closing(answer)
    return body if ending == "no closing" else _cut_mid_sentence(rng, body)


def _without_closing(answer: str) -> str:
    closing = next(closing for closing in CLOSINGS if answer.endswith(closing))
    return answer.removesuffix(closing).rstrip()


def _cut_mid_sentence(rng: random.Random, body: str) -> str:
    """The body up to a random word of its second half that does not end a sentence or a clause."""
    words = body.split(" ")
    ends = [end for end in range(len(words) // 2, len(words)) if words[end - 1].isalpha()]
    return " ".join(words[: rng.choice(ends)])


def _rated_pair(rng: random.Random, requested: Sequence[str], split: Split) -> tuple[str, str]:
    """The best of four candidates and a random one rated strictly lower, redrawn until there is one."""
    while True:
        candidates = [_candidate(rng, requested, split) for _ in range(4)]
        chosen = max(candidates, key=lambda answer: rate(requested, answer))
        worse = [answer for answer in candidates if rate(requested, answer) < rate(requested, chosen)]
        if worse:
            return chosen, rng.choice(worse)


def _preference(rng: random.Random, split: Split) -> Preference:
    requested = _draw_request(rng, split)
    prompt = rng.choice(REQUESTS).format(pair=_pair_phrase(requested))
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
