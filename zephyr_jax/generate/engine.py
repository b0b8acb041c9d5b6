"""Continuous batching: requests come and go, rows of one cache are never idle while somebody waits.

Everything that depends on a request is an argument of two compiled programs, so requests of all kinds share them; only a few
sizes of a prefill's chunk are compiled. What a request makes does not depend on the company it has.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from zephyr_jax.checkpoint.resolve import AbstractModel
from zephyr_jax.config.sampling import MAX_STOP_IDS, SamplingParams
from zephyr_jax.errors import InputError
from zephyr_jax.generate.decode import NOT_FINITE, Rows, decode, prefill
from zephyr_jax.generate.sampling import Sampling
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.cached import CachedModel
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.sharding import ShardingRules

CHUNKS = (16, 64, 256)
"""Tokens of a prefill's chunk; each is compiled when it is first needed."""
BURST = 8
"""Tokens that are made between two looks at the queue, unless said otherwise."""
_TOGETHER = 8  # rows that are prefilled together, where so many wait
_ROUND = 64  # slots of a cache are a multiple of this
_NOT_FINITE = (
    "its logits are NaN or infinite; check the weights, or compute in float32 (`--model.compute_dtype float32`)"
)


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it. Raises InputError for sampling parameters outside their bounds."""

    prompt: np.ndarray
    """int32 [n] with n >= 1."""
    most: int
    """Tokens to make at most."""
    stops: tuple[int, ...] = ()
    """Ids that end the answer, 64 at most; the one that does is part of it."""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: tuple[int, ...] = (0,)
    """Folded into one PRNG key, in order; the answer depends on it and on the prompt alone."""
    sampling: SamplingParams = field(init=False)
    """Temperature, top-p, top-k and seed, checked and normalized."""

    def __post_init__(self) -> None:
        params = SamplingParams(self.temperature, self.top_p, self.top_k, self.seed)
        object.__setattr__(self, "sampling", params)


@dataclass(frozen=True)
class Piece:
    """What a request has newly made."""

    number: int
    tokens: tuple[int, ...]
    end: Literal["", "stop", "length", "error"]
    """Why it has ended, if it has."""
    error: str = ""
    """What went wrong in this request alone, where `end` is "error"."""


@dataclass
class _Row:
    """A request in a row."""

    number: int
    request: Request
    filled: int = 0
    """Tokens of the prompt in the cache; the last one never goes there by a prefill: decoding begins with it."""

    @property
    def waits(self) -> int:
        """Tokens of the prompt that are still to be put into the cache."""
        return len(self.request.prompt) - 1 - self.filled


class Engine:
    """Rows of a cache, `rows` of them, each for prompts and answers of up to `context` tokens together.

    `burst` tokens are made between two looks at the queue. Not to be called by two threads at once.
    """

    def __init__(
        self,
        model: AbstractModel,
        parameters: Parameters,
        rules: ShardingRules,
        *,
        rows: int,
        context: int,
        burst: int = BURST,
    ):
        self._rules, self._burst, self.context = rules, burst, context
        self._model = CachedModel(model.config, model.compute)
        self._weights = jax.jit(self._model.flatten)(parameters)
        self._cache = jax.jit(partial(self._model.empty_cache, rows, slots_of(model.config, context)))()
        self._rows: list[_Row | None] = [None] * rows
        self._state = idle(rows)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._numbers = count()
        self._failed: list[Piece] = []

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._waiting) or any(self._rows)

    def submit(self, request: Request) -> int:
        """Queue a request; its number. Raises ValueError where it does not fit into the context."""
        longest = len(request.prompt) + request.most
        if not len(request.prompt) or request.most < 1 or longest > self.context or len(request.stops) > MAX_STOP_IDS:
            raise ValueError(
                f"a prompt of {len(request.prompt)} tokens, {request.most} new ones and {len(request.stops)} stop ids; a row "
                f"takes 1 to {self.context} tokens in all, and {MAX_STOP_IDS} stop ids"
            )
        vocab = self._model.config.vocab_size
        low, high = min(request.prompt.min(), *request.stops, 0), max(request.prompt.max(), *request.stops, 0)
        if low < 0 or high >= vocab:
            raise ValueError(f"expected token ids from 0 to {vocab - 1:,} in prompt and stop ids, got {low} to {high}")
        number = next(self._numbers)
        self._waiting.append((number, request))
        return number

    def cancel(self, number: int) -> None:
        """Forget a request, wherever it is; nothing where it has ended."""
        self._waiting = deque(each for each in self._waiting if each[0] != number)
        for place, row in enumerate(self._rows):
            if row and row.number == number:
                self._leave(place)

    def step(self) -> list[Piece]:
        """Let requests into free rows, put a chunk of waiting prompts into the cache, make a burst of tokens.

        A request that fails ends with a piece whose `end` is "error"; the others go on.
        """
        self._failed = []
        self._admit()
        self._prefill()
        return self._failed + (self._decode() if np.any(self._state.left) else [])

    def run(self) -> Iterator[Piece]:
        """Pieces until no request waits any more. Raises InputError where a request fails."""
        while self.busy:
            for piece in self.step():
                if piece.end == "error":
                    raise InputError(f"The model gave no answer: {piece.error}.")
                yield piece

    def _admit(self) -> None:
        for place, row in enumerate(self._rows):
            if row is None and self._waiting:
                number, request = self._waiting.popleft()
                self._rows[place] = _Row(number, request)
                if len(request.prompt) == 1:
                    self._clear(place)
                    self._begin(place)

    def _clear(self, place: int) -> None:
        """Empty a row that no prefill will: by a chunk of nothing."""
        tokens = np.zeros((self._parts(1), CHUNKS[0]), np.int32)
        self._put([place], tokens, tokens, tokens)

    def _parts(self, rows: int) -> int:
        """So many rows, or as many as the devices want."""
        parts = self._rules.num_shards("batch")
        return -(-rows // parts) * parts

    def _prefill(self) -> None:
        places = [place for place, row in enumerate(self._rows) if row and row.waits > 0][: self._parts(_TOGETHER)]
        if not places:
            return
        rows = [self._rows[place] for place in places]
        longest = max(row.waits for row in rows if row)
        chunk = next((size for size in CHUNKS if size >= longest), CHUNKS[-1])
        lines = self._parts(1) if len(places) <= self._parts(1) else self._parts(_TOGETHER)
        tokens, segments, positions = (np.zeros((lines, chunk), np.int32) for _ in range(3))
        for line, row in enumerate(rows):
            if row:
                taken = min(row.waits, chunk)
                tokens[line, :taken] = row.request.prompt[row.filled : row.filled + taken]
                segments[line, :taken] = 1
                positions[line] = row.filled + np.arange(chunk)
                row.filled += taken
        self._put(places, tokens, segments, positions)
        for place, row in zip(places, rows, strict=True):
            if row and not row.waits:
                self._begin(place)

    def _put(self, places: list[int], tokens: np.ndarray, segments: np.ndarray, positions: np.ndarray) -> None:
        unused = [len(self._rows)] * (len(tokens) - len(places))
        tokens_PC, *where_PC = jax.device_put((tokens, segments, positions), self._rules.sharding("batch", None))
        at = np.array([*places, *unused], np.int32)
        self._cache = prefill(self._model, self._weights, self._cache, at, tokens_PC, SegmentInfo(*where_PC))

    def _begin(self, place: int) -> None:
        """A row whose prompt is in the cache begins to make tokens, or ends with the error of its request."""
        row = self._rows[place]
        assert row is not None
        try:
            self._set_state(place, row.request)
        except Exception as error:  # whatever it is, it concerns this request only
            self._failed.append(Piece(row.number, (), "error", f"{type(error).__name__}: {error}"))
            self._leave(place)

    def _set_state(self, place: int, request: Request) -> None:
        params, state = request.sampling, self._state
        state.token[place], state.position[place] = request.prompt[-1], len(request.prompt) - 1
        state.key[place] = key_data(params.seed)
        state.stops[place] = [*request.stops, *[-1] * (MAX_STOP_IDS - len(request.stops))]
        for field_, value in zip(state.how, (params.temperature, params.top_p, params.top_k), strict=True):
            field_[place] = value
        state.left[place], state.made[place] = request.most, 0

    def _decode(self) -> list[Piece]:
        shardings = jax.tree.map(lambda leaf: self._rules.sharding("batch", *[None] * (leaf.ndim - 1)), self._state)
        placed = jax.device_put(self._state, shardings)
        out, after, self._cache = decode(self._model, self._weights, self._cache, placed, steps=self._burst)
        out, after = jax.device_get((out, after))
        self._state = jax.tree.map(np.array, after)
        pieces = []
        for place, row in enumerate(self._rows):
            tokens = tuple(int(token) for token in out[place] if token >= 0)
            if row is not None and NOT_FINITE in out[place]:
                pieces.append(Piece(row.number, tokens, "error", _NOT_FINITE))
            elif row is not None and tokens:
                pieces.append(Piece(row.number, tokens, self._end(place, row, tokens)))
            else:
                continue
            if pieces[-1].end:
                self._leave(place)
        return pieces

    def _end(self, place: int, row: _Row, tokens: tuple[int, ...]) -> Literal["", "stop", "length"]:
        if self._state.left[place]:
            return ""
        return "stop" if tokens[-1] in row.request.stops else "length"

    def _leave(self, place: int) -> None:
        self._rows[place] = None
        self._state.left[place] = 0


def slots_of(shape: ModelConfig, context: int) -> int:
    """Slots of a row: all positions, or the window and the longest chunk that must not overwrite it."""
    window = shape.sliding_window
    needed = context if window is None else min(context, window + CHUNKS[-1])
    return -(-needed // _ROUND) * _ROUND


def cache_bytes(model: AbstractModel, rows: int, context: int) -> int:
    """Bytes of the keys and values of all rows."""
    shape = model.config
    numbers = 2 * shape.num_layers * rows * shape.num_kv_heads * slots_of(shape, context) * shape.head_dim
    return numbers * jnp.dtype(model.compute.dtype).itemsize


def idle(rows: int) -> Rows:
    """Rows that are at nothing."""

    def zeros(dtype: Any, *more: int) -> np.ndarray:
        return np.zeros((rows, *more), dtype)

    how = Sampling(zeros(np.float32), np.ones(rows, np.float32), zeros(np.int32))
    token, position, left, made = (zeros(np.int32) for _ in range(4))
    return Rows(token, position, left, made, key=zeros(np.uint32, 2), stops=zeros(np.int32, MAX_STOP_IDS), how=how)


def key_data(seed: tuple[int, ...]) -> np.ndarray:
    """uint32 [2]: data of the PRNG key of a seed, `jax.random.key` of its first number with the others folded in.

    All 64 bits of a number count; `jax.random.key` and `fold_in` take 32.
    """
    first, *others = seed
    key = jax.random.wrap_key_data(jnp.array(_halves(first), jnp.uint32))
    for number in others:
        high, low = _halves(number)
        key = jax.random.fold_in(key, np.uint32(low))
        key = jax.random.fold_in(key, np.uint32(high)) if high else key
    return np.asarray(jax.random.key_data(key))


def _halves(number: int) -> tuple[int, int]:
    """The upper and the lower 32 bits."""
    return number >> 32, number & (2**32 - 1)
