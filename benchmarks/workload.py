"""The examples and the model shape that every benchmark worker trains on, and digests that prove it. Needs numpy only.

Token ids are random; only lengths matter. They imitate UltraFeedback: prompt length is lognormal with median
150 and sigma 0.9, clipped to 8..480; each response is lognormal with median 260 and sigma 0.55, clipped to
50..500. Content ids avoid 0 (padding), 1 (bos) and 2 (eos). A prompt is bos, a user header, the content, eos
and an assistant header (17 tokens more than the content); a response is content and eos. So a prompt has at
most 497 tokens, a response at most 501 and a sequence at most 998: ``MAX_LENGTH`` and ``MAX_PROMPT_LENGTH``
never cut anything.

A target token is a token whose log-probability enters the loss: response content and its eos. DPO uses both
responses of a pair; SFT uses the prompt and the chosen response. Example ``i`` of a seed does not depend on
how many are drawn.
"""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

VOCAB = 32_000
ROPE_THETA, NORM_EPS = 10_000, 1e-5
MAX_LENGTH, MAX_PROMPT_LENGTH = 1024, 512
PAD, BOS, EOS = 0, 1, 2
MODES = ("dpo", "sft")
BATCH = {"dpo": 16, "sft": 32}
"""Pairs (DPO) or conversations (SFT) of an optimizer update: 32 sequences."""
PADDED = {"dpo": 4, "sft": 8}
"""How many of them a peer that pads takes in one forward: eight sequences."""
LEARNING_RATE = 5e-7
USER_HEADER = [523, 28766, 1838, 28766, 28767, 13]
ASSISTANT_HEADER = [28705, 13, 28789, 28766, 489, 11143, 28766, 28767, 13]


@dataclass(frozen=True)
class Dims:
    """Sizes of a model."""

    model: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int


DIMS = {"58m": Dims(512, 8, 8, 4, 64, 1536), "1.1b": Dims(2048, 22, 32, 4, 64, 5632)}
"""The second has the shape of TinyLlama."""


@dataclass(frozen=True)
class Pair:
    """One preference pair, already rendered and tokenised."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    def sequences(self, mode: str) -> list[tuple[list[int], list[int]]]:
        """The (prompt, response) sequences that ``mode`` trains on."""
        responses = [self.chosen, self.rejected] if mode == "dpo" else [self.chosen]
        return [(self.prompt, response) for response in responses]


def _length(rng: np.random.Generator, median: float, sigma: float, low: int, high: int) -> int:
    return int(np.clip(rng.lognormal(np.log(median), sigma), low, high))


def _content(rng: np.random.Generator, length: int) -> list[int]:
    return [int(token) for token in rng.integers(EOS + 1, VOCAB, length)]


def make_pair(seed: int, index: int) -> Pair:
    """Example ``index`` of the stream ``seed``."""
    rng = np.random.default_rng([seed, index])
    prompt = _content(rng, _length(rng, 150, 0.9, 8, 480))
    chosen = _content(rng, _length(rng, 260, 0.55, 50, 500))
    rejected = _content(rng, _length(rng, 260, 0.55, 50, 500))
    rendered = [BOS, *USER_HEADER, *prompt, EOS, *ASSISTANT_HEADER]
    return Pair(rendered, [*chosen, EOS], [*rejected, EOS])


def make_pairs(count: int, seed: int) -> list[Pair]:
    """The first ``count`` examples of the stream ``seed``."""
    return [make_pair(seed, index) for index in range(count)]


def make_batches(mode: str, steps: int, seed: int, size: int | None = None) -> list[list[Pair]]:
    """One warm-up batch and ``steps`` batches to time, of ``size`` examples (``BATCH[mode]``) each, in stream order."""
    size = size or BATCH[mode]
    pairs = make_pairs(size * (steps + 1), seed)
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def count_targets(pairs: list[Pair], mode: str) -> int:
    """Target tokens of ``pairs``."""
    return sum(len(response) for pair in pairs for _, response in pair.sequences(mode))


def hash_sequence(tokens: Any, targets: Any) -> int:
    """64-bit hash of one sequence: its token ids, int [T], and which of them are targets, bool [T]."""
    data = np.asarray(tokens, np.int32).tobytes() + np.asarray(targets, np.bool_).tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def digest(hashes: Iterable[int]) -> str:
    """Digest of the sequences of an optimizer update, whatever their order: the sum of their hashes, modulo 2^64, in hex."""
    return f"{sum(hashes) % 2**64:016x}"


def digest_batches(batches: list[list[Pair]], mode: str) -> list[str]:
    """The digest of every batch, which a worker reports if it trains on nothing else."""

    def hash_of(prompt: list[int], response: list[int]) -> int:
        return hash_sequence(prompt + response, [False] * len(prompt) + [True] * len(response))

    return [digest(hash_of(*sequence) for pair in pairs for sequence in pair.sequences(mode)) for pairs in batches]


def clocks() -> tuple[float, float]:
    """(CPU seconds of this process, user and system; wall-clock seconds)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, time.perf_counter()


@dataclass
class Result:
    """A worker's measurements over its timed steps; ``slots`` are all token positions, padding included."""

    name: str
    mode: str
    target_tokens: int
    cpu_seconds: float
    wall_seconds: float
    slots: int
    nonpad: int
    note: str
    digests: list[str]
    """`digest` of the sequences of every timed update, read from the arrays that the step was given."""

    def emit(self) -> None:
        """Print the JSON line that ``benchmarks.peers`` reads."""
        print(json.dumps(self.__dict__), flush=True)


def check_targets(name: str, seen: int, pairs: list[Pair], mode: str) -> None:
    """Refuse a measurement in which the trainer scored other tokens than the workload's."""
    expected = count_targets(pairs, mode)
    if seen != expected:
        raise RuntimeError(
            f"{name} scored {seen} target tokens where the workload has {expected}: compare the batches its "
            "collator builds with benchmarks.workload.make_batches before trusting any timing."
        )
