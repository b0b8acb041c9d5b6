"""The settings of `prepare ultrachat` and `prepare ultrafeedback`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from zephyr_jax.config.constraints import Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from zephyr_jax.config.sampling import Seed
from zephyr_jax.config.sections import DATA, DecontaminationOptions
from zephyr_jax.errors import InputError


@dataclass(frozen=True)
class UltrachatConfig:
    """Make conversations for dSFT from raw dialogues, as UltraChat 200k was made: repaired, filtered, deduplicated, split."""

    REQUIRED: ClassVar[dict[str, str]] = {"data": f"the raw dialogues, {DATA}", "output": "a folder"}

    data: str = ""
    """Raw rows with `data: [user, assistant, ...]` or `messages`: a JSONL, JSON or Parquet file, a folder of them (all are
    read), a `save_to_disk` folder, or a hub id; gs:// works too."""
    split: str | None = None
    """Split of a hub id or `save_to_disk` folder; default: train."""
    revision: str | None = None
    """Hub revision when `data` is a hub id."""
    output: str = ""
    """Folder for the splits, the dataset card and the statistics; files are written atomically."""
    num_examples: PositiveInt | None = None
    """Number of dialogues to keep, drawn by `seed`; default: all that pass the filters."""
    truecase: bool = True
    """Repair the case of sentence starts and of the pronoun I; code, lists and abbreviations stay as they are."""
    refusals: Literal["drop", "cut", "keep"] = "drop"
    """Dialogues with a refusal of the assistant ("as an AI, I have no opinions"): `drop` them, as published; `cut` them before
    the question that is refused; or `keep` them."""
    refusal_phrases: tuple[str, ...] = ()
    """Further phrases that mark a refusal, in any case: `"as an AI language model"`."""
    duplicates: Literal["prompt", "dialogue", "keep"] = "prompt"
    """Deduplicate by the first question (`prompt`) or by the whole `dialogue`, ignoring case and spacing, or `keep` all."""
    test_fraction: Fraction = 0.1
    """Fraction of prompts that are held out, by their hash; 0.1 as published."""
    gen_fraction: Fraction = 0.55
    """Fraction of prompts in the `gen` splits, which end with a question for a model; 0.55 as published. 0: all prompts are in
    the `sft` splits."""
    decontaminate: DecontaminationOptions = field(default_factory=DecontaminationOptions)
    num_samples: NonNegativeInt = 5
    """Number of sample texts of each kind of removal and repair in samples.md."""
    seed: Seed = 0
    """Seed of the order of the rows and of `num_examples`; the splits depend on the prompts alone."""

    def check(self) -> None:
        """Raise InputError for phrases without effect, or with too much of it."""
        if self.refusals == "keep" and self.refusal_phrases:
            raise InputError(
                f"refusal_phrases is {self.refusal_phrases} with refusals `keep`, where it has no effect: remove one of them."
            )
        if not all(phrase.strip() for phrase in self.refusal_phrases):
            raise InputError("refusal_phrases has an empty phrase, which every answer contains: remove it.")


@dataclass(frozen=True)
class UltrafeedbackConfig:
    """Make preference pairs for dDPO from rated answers, as UltraFeedback binarized was made: the best answer and another."""

    REQUIRED: ClassVar[dict[str, str]] = {"data": f"the rated answers, {DATA}", "output": "a folder"}

    data: str = ""
    """Raw rows with `instruction` (or `prompt`) and `completions`: a JSONL, JSON or Parquet file, a folder of them (all are
    read), a `save_to_disk` folder, or a hub id; gs:// works too."""
    split: str | None = None
    """Split of a hub id or `save_to_disk` folder; default: train."""
    revision: str | None = None
    """Hub revision when `data` is a hub id."""
    output: str = ""
    """Folder for the splits, the dataset card and the statistics; files are written atomically."""
    score: Literal["overall", "mean"] = "overall"
    """Score of an answer: the judge's `overall_score` (or `score`, in plain rows), as published, or the `mean` of its ratings
    by aspect."""
    repair_scores: bool = True
    """If the overall scores show the bug that stored 1 as 10, apply the published rule: with a mean rating of at most 2 the
    score is 1, above 4 it is 10, and between them the answer is rejected as ambiguous."""
    rejected: Literal["random", "lowest", "second", "revision-2023"] = "random"
    """The other answer of a pair: `random`, as in the paper; the `lowest`; the `second` best; or the one in the data set's
    `revision-2023`, which the first Zephyr was trained on (from the raw rows of that time, with `repair_scores False`,
    `duplicates keep` and no `exclude_sources`)."""
    ties: Literal["keep", "drop", "margin"] = "keep"
    """Scores of the other answer: `keep` ties with the chosen one, as published, `drop` ties, or require a difference of
    `min_margin`; rows without such an answer are rejected."""
    min_margin: PositiveFloat | None = None
    """Minimum difference of the two scores under `ties: margin`."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows with the same prompt (ignoring case and spacing): one pair per prompt, or one per row."""
    exclude_sources: tuple[str, ...] = ("truthful_qa",)
    """Rows to exclude by their `source` (or `dataset`): questions of a benchmark, as published since 2024."""
    test_fraction: Fraction = 0.03
    """Fraction of prompts that are held out, by their hash."""
    decontaminate: DecontaminationOptions = field(default_factory=DecontaminationOptions)
    num_samples: NonNegativeInt = 5
    """Number of sample texts of each kind of removal and repair in samples.md."""
    seed: Seed = 0
    """Seed of the other answer and of the order of the rows; the splits depend on the prompts alone."""

    def check(self) -> None:
        """Raise InputError for settings that contradict each other."""
        if (self.ties == "margin") != (self.min_margin is not None):
            raise InputError(
                f"ties is `{self.ties}` and min_margin {self.min_margin}: expected `ties: margin` with a min_margin, or neither."
            )
        if self.rejected == "revision-2023":
            given, needed = (self.ties, self.score, self.repair_scores), ("keep", "overall", False)
            if given != needed:
                raise InputError(
                    f"rejected is `revision-2023`: expected ties, score and repair_scores {needed}, as in that revision, got "
                    f"{given}."
                )

    @property
    def least_gap(self) -> float | None:
        """The setting `ties` as a number."""
        return {"keep": None, "drop": 0.0, "margin": self.min_margin}[self.ties]
