"""Raw data to what training reads."""

from dataclasses import dataclass, field
from typing import Literal

from zephyr_jax.config.checks import check_not_negative, check_positive, refuse, require
from zephyr_jax.config.sections import DecontaminationOptions


@dataclass(frozen=True)
class UltrachatConfig:
    """Conversations for dSFT from raw dialogues, as UltraChat 200k was made: repaired, filtered, without duplicates, split."""

    data: str = ""
    """Raw rows with `data: [user, assistant, ...]` or `messages`: a JSONL, JSON or Parquet file, a folder of them (all are
    read), a `save_to_disk` folder, or a hub id; gs:// works too."""
    split: str | None = None
    """Split of a hub id or `save_to_disk` folder; default: train."""
    revision: str | None = None
    """Hub revision when `data` is a hub id."""
    output: str = ""
    """Folder for the splits, the data card and the account; each file appears whole."""
    num_examples: int | None = None
    """Keep so many dialogues, drawn by `seed`; default: all that pass."""
    truecase: bool = True
    """Repair the case of sentence starts and of the pronoun I; code, lists and abbreviations stay as they are."""
    refusals: Literal["drop", "cut", "keep"] = "drop"
    """Dialogues in which the assistant says that it has no emotions, opinions and the like: left out, as published; cut before
    the question it answers so; or kept."""
    refusal_phrases: tuple[str, ...] = ()
    """Further phrases that count as such, in any case: `"as an AI language model"`."""
    duplicates: Literal["prompt", "dialogue", "keep"] = "prompt"
    """Of dialogues with the same first question, or the same altogether (case and spacing aside), one is kept; or all are."""
    test_fraction: float = 0.1
    """Share of prompts that are held out, by their hash; 0.1 as published."""
    gen_fraction: float = 0.55
    """Share of prompts that go to the `gen` splits, whose last answer is left for a model to give; 0.55 as published. Set 0 to
    have all in the `sft` splits."""
    decontaminate: DecontaminationOptions = field(default_factory=DecontaminationOptions)
    num_samples: int = 5
    """Texts of each kind of removal and repair that are written out for the eye."""
    seed: int = 0
    """Decides the order of the rows and the subset; the splits depend on the prompts alone."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.data, "data", "the raw dialogues: a file, a folder or a hub id")
        require(self.output, "output", "a folder")
        check_positive(num_examples=self.num_examples)
        check_not_negative(num_samples=self.num_samples, seed=self.seed)
        _check_shares(test_fraction=self.test_fraction, gen_fraction=self.gen_fraction)
        _check_decontamination(self.decontaminate)
        if self.refusals == "keep" and self.refusal_phrases:
            refuse(f"refusal_phrases is {self.refusal_phrases} with refusals `keep`.", "Leave one out.")
        if not all(phrase.strip() for phrase in self.refusal_phrases):
            refuse("One of refusal_phrases is empty.", "It would be in every answer: leave it out.")


@dataclass(frozen=True)
class UltrafeedbackConfig:
    """Preferences for dDPO from rated answers, as UltraFeedback binarized was made: the best answer against another one."""

    data: str = ""
    """Raw rows with `instruction` (or `prompt`) and `completions`: a JSONL, JSON or Parquet file, a folder of them (all are
    read), a `save_to_disk` folder, or a hub id; gs:// works too."""
    split: str | None = None
    """Split of a hub id or `save_to_disk` folder; default: train."""
    revision: str | None = None
    """Hub revision when `data` is a hub id."""
    output: str = ""
    """Folder for the splits, the data card and the account; each file appears whole."""
    score: Literal["overall", "mean"] = "overall"
    """What decides: the judge's `overall_score` (or `score`, in plain rows), as published, or the mean of its ratings by
    aspect."""
    repair_scores: bool = True
    """Where the overall scores show the bug that stored 1 as 10, apply the published rule: a mean rating of at most 2 makes it
    a 1, above 4 it is a 10, between them the answer is set aside, as nobody asks the judge again."""
    rejected: Literal["random", "lowest", "second", "revision-2023"] = "random"
    """Which of the other answers: any, as in the paper; the lowest; the second best; or the one that the data set's revision
    of 2023, which the first Zephyr saw, has drawn (from the raw rows of then, with `repair_scores False`, `duplicates keep` and
    no `exclude_sources`)."""
    ties: Literal["keep", "drop", "margin"] = "keep"
    """Whether the rejected answer may have the same score as the chosen one, as published, must have a lower one, or one that
    is lower by `min_margin`; rows without such an answer are set aside."""
    min_margin: float | None = None
    """Least difference of the two scores under `ties: margin`."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Whether a prompt (case and spacing aside) makes one pair, or each of its rows does."""
    exclude_sources: tuple[str, ...] = ("truthful_qa",)
    """Rows whose `source` (or `dataset`) is one of these are left out: a benchmark's questions, as published since 2024."""
    test_fraction: float = 0.03
    """Share of prompts that are held out, by their hash."""
    decontaminate: DecontaminationOptions = field(default_factory=DecontaminationOptions)
    num_samples: int = 5
    """Texts of each kind of removal and repair that are written out for the eye."""
    seed: int = 0
    """Decides the rejected answer and the order of the rows; the splits depend on the prompts alone."""

    def check(self) -> None:
        """Raise InputError for settings that are missing or cannot hold together."""
        require(self.data, "data", "the rated answers: a file, a folder or a hub id")
        require(self.output, "output", "a folder")
        check_not_negative(num_samples=self.num_samples, seed=self.seed)
        _check_shares(test_fraction=self.test_fraction)
        _check_decontamination(self.decontaminate)
        if (self.ties == "margin") != (self.min_margin is not None):
            refuse(
                f"ties is `{self.ties}` and min_margin {self.min_margin}.",
                "A margin needs `ties: margin`, and that a margin.",
            )
        check_positive(min_margin=self.min_margin)
        if self.rejected == "revision-2023" and (self.ties, self.score, self.repair_scores) != (
            "keep",
            "overall",
            False,
        ):
            refuse(
                f"rejected is `revision-2023` with ties `{self.ties}`, score `{self.score}` and repair_scores "
                f"{self.repair_scores}.",
                "That revision kept ties, used the overall score and knew of no bug: set ties keep, score overall and "
                "repair_scores False.",
            )

    @property
    def least_gap(self) -> float | None:
        """The setting `ties` as a number."""
        return {"keep": None, "drop": 0.0, "margin": self.min_margin}[self.ties]


def _check_shares(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            refuse(f"{name} is {value}.", "It is a share of all prompts: set 0 <= share <= 1.")


def _check_decontamination(options: DecontaminationOptions) -> None:
    if options.ngram and not 6 <= options.ngram <= 1000:
        refuse(
            f"decontaminate.ngram is {options.ngram}.",
            "Fewer words in a row than six are in every other text: set 6 or more, or 0 for whole texts only.",
        )
    default = DecontaminationOptions()
    if not options.against and options != default:
        refuse(
            f"decontaminate.ngram is {options.ngram} and decontaminate.scope `{options.scope}`, and no test set is named.",
            "Name files with decontaminate.against, or leave these out.",
        )
