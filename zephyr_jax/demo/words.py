"""Word lists, plots and sampling weights of the demo's generated text, read from `assets/words.yaml`."""

from pathlib import Path
from typing import Any

import yaml

_DATA: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "assets" / "words.yaml").read_text())
_NOUNS = {group: tuple(nouns) for group, nouns in _DATA["nouns"].items()}

TRAIN_NOUNS: tuple[str, ...] = _NOUNS["train_animals"] + _NOUNS["train_objects"]
HELDOUT_NOUNS: tuple[str, ...] = _NOUNS["heldout_animals"] + _NOUNS["heldout_objects"]
ALL_NOUNS = TRAIN_NOUNS + HELDOUT_NOUNS
ANIMALS = frozenset(_NOUNS["train_animals"] + _NOUNS["heldout_animals"])

NAMES: list[str] = _DATA["names"]
PLACES: list[str] = _DATA["places"]
ANIMAL_ADJECTIVES: list[str] = _DATA["animal_adjectives"]
OBJECT_ADJECTIVES: list[str] = _DATA["object_adjectives"]
DAYS: list[str] = _DATA["days"]
CLOSINGS: tuple[str, ...] = tuple(_DATA["closings"])
REQUESTS: list[str] = _DATA["requests"]
FOLLOW_UPS: list[str] = _DATA["follow_ups"]
TITLES: list[str] = _DATA["titles"]

TEACHER_WEIGHTS: list[float] = _DATA["teacher_weights"]
CANDIDATE_WEIGHTS: list[float] = _DATA["candidate_weights"]
ENDING_WEIGHTS: list[float] = _DATA["ending_weights"]
TWO_TURN_SHARE: float = _DATA["two_turn_share"]
TITLE_SHARE: float = _DATA["title_share"]

PLOTS: dict[int, list[list[list[str]]]] = {
    num_animals: list(plots.values()) for num_animals, plots in _DATA["plots"].items()
}
"""Plots by the number of animals among a story's two nouns; a plot is a list of sentences in several wordings."""
