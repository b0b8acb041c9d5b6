"""The settings of `prepare ultrachat` and `prepare ultrafeedback`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from zephyr_jax.config.constraints import ADVANCED, Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from zephyr_jax.config.sampling import Seed
from zephyr_jax.config.sections import DATA, DecontaminationOptions
from zephyr_jax.errors import InputError


@dataclass(frozen=True)
class UltrachatConfig:
    """Make conversations for dSFT from raw dialogues, as UltraChat 200k was made: repaired, filtered, deduplicated, split."""

    REQUIRED: ClassVar[dict[str, str]] = {"data": f"the raw dialogues, {DATA}", "output": "a folder"}

    data: str = ""
    """Raw dialogues, with `data: [user, assistant, ...]` or `messages`: a JSONL, JSON or Parquet file, a folder of files
    (all are read), a `save_to_disk` folder or a hub id; gs:// works too."""
    split: str | None = field(default=None, metadata=ADVANCED)
    """Split of a hub id or `save_to_disk` folder; default: train."""
    revision: str | None = field(default=None, metadata=ADVANCED)
    """Hub revision (branch, tag or commit) of `data`."""
    output: str = ""
    """Output folder for the splits, the dataset card and the statistics. Each file is written whole or not at all."""
    num_examples: PositiveInt | None = None
    """Number of dialogues to keep, drawn by `seed`; default: all that pass the filters."""
    truecase: bool = True
    """Truecasing: repair the case of sentence starts and of the pronoun I. Code, lists and abbreviations stay as they are."""
    refusals: Literal["drop", "cut", "keep"] = "drop"
    """Filter for refusals of the assistant, such as "as an AI, I have no opinions".

    - `drop`: drop the dialogue, as published.
    - `cut`: cut the dialogue before the question that is refused.
    - `keep`: keep the dialogue.
    """
    refusal_phrases: tuple[str, ...] = field(default=(), metadata=ADVANCED)
    """Further phrases that mark a refusal, in any case, such as `as an AI language model`."""
    duplicates: Literal["prompt", "dialogue", "keep"] = "prompt"
    """Deduplication, ignoring case and spacing.

    - `prompt`: one dialogue per first question.
    - `dialogue`: one of dialogues that are equal.
    - `keep`: keep all.
    """
    test_fraction: Fraction = 0.1
    """Test set fraction: the share of prompts that are held out, by their hash; 0.1 as published."""
    gen_fraction: Fraction = field(default=0.55, metadata=ADVANCED)
    """Fraction of prompts in the `gen` splits, which end with a question for a model; 0.55 as published. 0: all prompts are
    in the `sft` splits."""
    decontaminate: DecontaminationOptions = field(default_factory=DecontaminationOptions)
    num_samples: NonNegativeInt = field(default=5, metadata=ADVANCED)
    """Number of sample texts of each kind of removal and repair in samples.md."""
    seed: Seed = 0
    """Random seed of the order of the rows and of `num_examples`; the splits depend on the prompts alone."""

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
    """Rated answers, with `instruction` (or `prompt`) and `completions`: a JSONL, JSON or Parquet file, a folder of files
    (all are read), a `save_to_disk` folder or a hub id; gs:// works too."""
    split: str | None = field(default=None, metadata=ADVANCED)
    """Split of a hub id or `save_to_disk` folder; default: train."""
    revision: str | None = field(default=None, metadata=ADVANCED)
    """Hub revision (branch, tag or commit) of `data`."""
    output: str = ""
    """Output folder for the splits, the dataset card and the statistics. Each file is written whole or not at all."""
    score: Literal["overall", "mean"] = "overall"
    """Score of an answer.

    - `overall`: the judge's `overall_score` (`score` in plain rows), as published.
    - `mean`: the mean of its ratings by aspect.
    """
    repair_scores: bool = field(default=True, metadata=ADVANCED)
    """Repair the scores if they have the bug that stored 1 as 10, by the published rule: at a mean rating of at most 2 the
    score is 1, above 4 it is 10; between them the answer is rejected."""
    rejected: Literal["random", "lowest", "second", "revision-2023"] = "random"
    """Rejected answer of a pair; the chosen one has the highest score.

    - `random`: a random one of the others, as in the paper.
    - `lowest`: the one with the lowest score.
    - `second`: the one with the second highest score.
    - `revision-2023`: the one of that revision of the published data set, for raw rows of that time, with
      `--no_repair_scores --duplicates keep --exclude_sources`.
    """
    ties: Literal["keep", "drop", "margin"] = "keep"
    """Rejected answers by score; rows without such an answer are rejected.

    - `keep`: allow the chosen answer's score, as published.
    - `drop`: only lower scores.
    - `margin`: only scores lower by `min_margin`.
    """
    min_margin: PositiveFloat | None = None
    """Minimum difference of the two scores, under `ties margin`."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Deduplication of prompts, ignoring case and spacing.

    - `drop`: one pair per prompt.
    - `keep`: one pair per row.
    """
    exclude_sources: tuple[str, ...] = ("truthful_qa",)
    """Rows to exclude by their `source` (or `dataset`): questions of a benchmark, as published since 2024. Without a value:
    none."""
    test_fraction: Fraction = 0.03
    """Test set fraction: the share of prompts that are held out, by their hash."""
    decontaminate: DecontaminationOptions = field(default_factory=DecontaminationOptions)
    num_samples: NonNegativeInt = field(default=5, metadata=ADVANCED)
    """Number of sample texts of each kind of removal and repair in samples.md."""
    seed: Seed = 0
    """Random seed of the rejected answer and of the order of the rows; the splits depend on the prompts alone."""

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
