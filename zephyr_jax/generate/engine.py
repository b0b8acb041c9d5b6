"""Continuous batching: requests share the rows of one KV cache, and a row takes the next request as soon as one ends.

Everything that depends on a request is an argument of the two compiled programs, so all requests share them; only a few prefill
chunk sizes are compiled. The tokens of a request do not depend on the other requests. A prompt that begins like that of another
row, such as further samples of one prompt or a shared system prompt, copies its beginning instead of computing it again.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from zephyr_jax.checkpoint.opened import AbstractModel
from zephyr_jax.config.sampling import MAX_STOP_IDS, SamplingParams
from zephyr_jax.errors import InputError
from zephyr_jax.generate.decode import NON_FINITE, copy_prefix, decode, idle_state, key_data, prefill
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.cached import CachedModel
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.sharding import ShardingRules

PREFILL_CHUNKS = (16, 64, 256)
"""Chunk sizes of a prefill in tokens; each is compiled on first use."""
DECODE_STEPS = 8
"""Default number of tokens generated per row between two looks at the queue."""
_PREFILL_ROWS = 8  # rows of one prefill when several requests wait
_SLOT_MULTIPLE = 64  # cache slots per row are rounded up to this
_MIN_SHARED = 16  # tokens that prompts share, from which on copying them is worth a program call
_NON_FINITE_ERROR = (
    "logits are NaN or infinite; check the weights, or compute in float32 (`--model.compute_dtype float32`)"
)


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt and how to continue it."""

    prompt: np.ndarray
    """int32 [n] with n >= 1."""
    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    """Ids that end the answer, MAX_STOP_IDS at most; the one that does is part of it."""
    sampling: SamplingParams = SamplingParams()


@dataclass(frozen=True)
class RequestOutput:
    """New tokens of one request."""

    request_id: int
    tokens: tuple[int, ...]
    finish_reason: Literal["", "stop", "length", "error"]
    """Empty while the request goes on."""
    error: str = ""
    """Error of this request, if `finish_reason` is "error"."""


@dataclass(eq=False)
class _ActiveRequest:
    """A request in a row of the cache. The row keeps its tokens after its end, until another request takes the row."""

    request_id: int
    request: GenerationRequest
    num_prefilled: int = 0
    """Prompt tokens in the cache. The last token of a prompt is not prefilled: decoding starts with it."""
    num_generated: int = 0
    waits_for: "_SharedPrefix | None" = None
    """Set until the beginning of the prompt can be copied from the row that is computing it."""

    @property
    def num_pending(self) -> int:
        """Prompt tokens still to prefill."""
        return len(self.request.prompt) - 1 - self.num_prefilled

    def num_shared(self, prompt: np.ndarray) -> int:
        """Tokens at the beginning of both prompts; the last of a prompt does not count, as it is not prefilled."""
        size = min(len(self.request.prompt), len(prompt)) - 1
        differs = np.flatnonzero(self.request.prompt[:size] != prompt[:size])
        return int(differs[0]) if len(differs) else size


@dataclass(frozen=True)
class _SharedPrefix:
    """The beginning of a prompt in another row."""

    row: int
    owner: _ActiveRequest
    length: int


class Engine:
    """Generates for many requests at a time. Not thread-safe.

    Args:
        model: the model without its weights.
        parameters: its weights.
        rules: sharding of weights, cache and rows.
        batch_size: rows of the cache, a multiple of the shards of the batch axis.
        context: maximum tokens of a prompt and its answer together.
        decode_steps: tokens generated per row between two looks at the queue.
    """

    def __init__(
        self,
        model: AbstractModel,
        parameters: Parameters,
        rules: ShardingRules,
        *,
        batch_size: int,
        context: int,
        decode_steps: int = DECODE_STEPS,
    ):
        self._rules, self._decode_steps, self.context = rules, decode_steps, context
        self._model = CachedModel(model.config, model.compute, model.weight_format)
        self._weights = jax.jit(self._model.flatten)(parameters)
        self._cache = jax.jit(partial(self._model.empty_cache, batch_size, num_slots(model.config, context)))()
        self._active: list[_ActiveRequest | None] = [None] * batch_size
        self._cached: list[_ActiveRequest | None] = [None] * batch_size  # whose tokens a row holds
        self._prefilled_tokens = 0
        self._state = idle_state(batch_size)
        self._queue: deque[tuple[int, GenerationRequest]] = deque()
        self._request_ids = count()
        self._failed: list[RequestOutput] = []

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._queue) or any(self._active)

    @property
    def prefilled_tokens(self) -> int:
        """Prompt tokens computed so far; those that were copied from another row do not count."""
        return self._prefilled_tokens

    def submit(self, request: GenerationRequest) -> int:
        """Queue a request; returns its id. Raises ValueError for a request that does not fit into the context."""
        total, num_stops = len(request.prompt) + request.max_new_tokens, len(request.stop_ids)
        if not len(request.prompt) or request.max_new_tokens < 1 or total > self.context or num_stops > MAX_STOP_IDS:
            raise ValueError(
                f"expected 1 to {self.context} tokens of prompt and answer and at most {MAX_STOP_IDS} stop ids, got a prompt of "
                f"{len(request.prompt)} tokens, {request.max_new_tokens} new ones and {num_stops} stop ids"
            )
        vocab = self._model.config.vocab_size
        low, high = min(request.prompt.min(), *request.stop_ids, 0), max(request.prompt.max(), *request.stop_ids, 0)
        if low < 0 or high >= vocab:
            raise ValueError(f"expected token ids from 0 to {vocab - 1:,} in prompt and stop ids, got {low} to {high}")
        request_id = next(self._request_ids)
        self._queue.append((request_id, request))
        return request_id

    def cancel(self, request_id: int) -> None:
        """Drop a request, queued or active; no effect on one that has ended."""
        self._queue = deque(item for item in self._queue if item[0] != request_id)
        for row, active in enumerate(self._active):
            if active and active.request_id == request_id:
                self._free(row)

    def step(self) -> list[RequestOutput]:
        """Admit queued requests into free rows, prefill one chunk of their prompts, decode in all started rows.

        A request that fails ends with an output whose `finish_reason` is "error"; the others go on.
        """
        self._failed = []
        self._admit()
        self._copy_prefixes()
        self._prefill()
        return self._failed + (self._decode() if np.any(self._state.remaining) else [])

    def run(self) -> Iterator[RequestOutput]:
        """Outputs until all requests have ended. Raises InputError for a request that fails."""
        while self.busy:
            for output in self.step():
                if output.finish_reason == "error":
                    raise InputError(f"Generation failed: {output.error}.")
                yield output

    def _admit(self) -> None:
        free = [row for row, active in enumerate(self._active) if active is None]
        while free and self._queue:
            request_id, request = self._queue.popleft()
            shared = self._longest_shared_prefix(request.prompt)
            row = shared.row if shared and shared.row in free else free[0]
            free.remove(row)
            self._active[row] = self._cached[row] = _ActiveRequest(request_id, request, waits_for=shared)
            if shared and shared.row == row:
                self._copy_prefix(row, shared)
            if len(request.prompt) == 1:  # nothing to prefill: a chunk of padding clears the row
                padding = np.zeros((self._round_up(1), PREFILL_CHUNKS[0]), np.int32)
                self._prefill_rows([row], padding, padding, padding)
                self._start(row)

    def _longest_shared_prefix(self, prompt: np.ndarray) -> _SharedPrefix | None:
        """The row whose prompt begins like this one for most tokens, if that is worth copying."""
        if self._rules.num_shards("batch") > 1:  # another device may have that row
            return None
        rows = [_SharedPrefix(row, owner, owner.num_shared(prompt)) for row, owner in enumerate(self._cached) if owner]
        usable = [shared for shared in rows if shared.length >= _MIN_SHARED and self._will_hold(shared)]
        return max(usable, key=lambda shared: shared.length, default=None)

    def _will_hold(self, shared: _SharedPrefix) -> bool:
        """Whether the row has the prefix, or is computing it; not if its ring wraps, or another request has taken the row."""
        owner = shared.owner
        fits = owner.num_prefilled + owner.num_generated < self._cache.slots
        goes_on = self._active[shared.row] is owner or owner.num_prefilled >= shared.length
        return self._cached[shared.row] is owner and fits and goes_on

    def _copy_prefixes(self) -> None:
        """Copy what requests waited for; a request whose source is gone computes its prompt itself."""
        for row, active in enumerate(self._active):
            if active is None or active.waits_for is None:
                continue
            if not self._will_hold(active.waits_for):
                active.waits_for = None
            elif active.waits_for.owner.num_prefilled >= active.waits_for.length:
                self._copy_prefix(row, active.waits_for)

    def _copy_prefix(self, row: int, shared: _SharedPrefix) -> None:
        active = self._active[row]
        assert active is not None
        scalars = (np.int32(shared.row), np.int32(row), np.int32(shared.length))
        self._cache = copy_prefix(self._model, self._cache, *scalars)
        active.num_prefilled, active.waits_for = shared.length, None
        if not active.num_pending:
            self._start(row)

    def _round_up(self, rows: int) -> int:
        """Rows rounded up to a multiple of the shards of the batch axis."""
        shards = self._rules.num_shards("batch")
        return -(-rows // shards) * shards

    def _prefill(self) -> None:
        pending = [
            (row, active)
            for row, active in enumerate(self._active)
            if active and active.num_pending > 0 and active.waits_for is None
        ]
        pending = pending[: self._round_up(_PREFILL_ROWS)]
        if not pending:
            return
        longest = max(active.num_pending for _, active in pending)
        chunk = next((size for size in PREFILL_CHUNKS if size >= longest), PREFILL_CHUNKS[-1])
        num_rows = self._round_up(1 if len(pending) <= self._round_up(1) else _PREFILL_ROWS)
        tokens, segments, positions = (np.zeros((num_rows, chunk), np.int32) for _ in range(3))
        for index, (_, active) in enumerate(pending):
            size, start = min(active.num_pending, chunk), active.num_prefilled
            tokens[index, :size] = active.request.prompt[start : start + size]
            segments[index, :size] = 1
            positions[index] = start + np.arange(chunk)
            active.num_prefilled += size
            self._prefilled_tokens += size
        self._prefill_rows([row for row, _ in pending], tokens, segments, positions)
        for row, active in pending:
            if not active.num_pending:
                self._start(row)

    def _prefill_rows(self, rows: list[int], tokens: np.ndarray, segments: np.ndarray, positions: np.ndarray) -> None:
        """Write int32 [len(rows) or more, chunk] tokens into these rows of the cache; the rest of the arrays is unused."""
        unused = [len(self._active)] * (len(tokens) - len(rows))
        chunk = jax.device_put((tokens, segments, positions), self._rules.sharding("batch", None))
        row_indices = np.array([*rows, *unused], np.int32)
        self._cache = prefill(self._model, self._weights, self._cache, row_indices, chunk[0], SegmentInfo(*chunk[1:]))

    def _start(self, row: int) -> None:
        """Start to decode a row whose prompt is prefilled; an error ends this request only."""
        active = self._active[row]
        assert active is not None
        try:
            self._set_state(row, active.request)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            self._failed.append(RequestOutput(active.request_id, (), finish_reason="error", error=message))
            self._free(row)

    def _set_state(self, row: int, request: GenerationRequest) -> None:
        state, params = self._state, request.sampling
        state.token[row], state.position[row] = request.prompt[-1], len(request.prompt) - 1
        state.key_data[row] = key_data(params.seed)
        state.stop_ids[row] = [*request.stop_ids, *[-1] * (MAX_STOP_IDS - len(request.stop_ids))]
        state.sampling.temperature[row] = params.temperature
        state.sampling.top_p[row], state.sampling.top_k[row] = params.top_p, params.top_k
        state.remaining[row], state.num_generated[row] = request.max_new_tokens, 0

    def _decode(self) -> list[RequestOutput]:
        shardings = jax.tree.map(lambda leaf: self._rules.sharding("batch", *[None] * (leaf.ndim - 1)), self._state)
        placed = jax.device_put(self._state, shardings)
        tokens, state, self._cache = decode(self._model, self._weights, self._cache, placed, steps=self._decode_steps)
        tokens, state = jax.device_get((tokens, state))
        self._state = jax.tree.map(np.array, state)  # writable copies
        outputs = []
        for row, active in enumerate(self._active):
            new = tuple(int(token) for token in tokens[row] if token >= 0)
            if active is None or not (new or NON_FINITE in tokens[row]):
                continue
            active.num_generated += len(new)
            if NON_FINITE in tokens[row]:
                self._cached[row] = None
                output = RequestOutput(active.request_id, new, finish_reason="error", error=_NON_FINITE_ERROR)
            else:
                output = RequestOutput(active.request_id, new, self._finish_reason(row, active, new[-1]))
            outputs.append(output)
            if output.finish_reason:
                self._free(row)
        return outputs

    def _finish_reason(self, row: int, active: _ActiveRequest, last_token: int) -> Literal["", "stop", "length"]:
        if self._state.remaining[row]:
            return ""
        return "stop" if last_token in active.request.stop_ids else "length"

    def _free(self, row: int) -> None:
        self._active[row] = None
        self._state.remaining[row] = 0


def num_slots(config: ModelConfig, context: int) -> int:
    """Cache slots per row: all positions, or the window plus the longest chunk, which must not overwrite the window."""
    windows = [kind.window or context for kind in config.layer_kinds]
    needed = min(context, max(windows) + PREFILL_CHUNKS[-1])
    return -(-needed // _SLOT_MULTIPLE) * _SLOT_MULTIPLE


def cache_bytes(model: AbstractModel, batch_size: int, context: int) -> int:
    """Bytes of the keys and values of all rows."""
    config = model.config
    elements = 2 * config.num_layers * batch_size * config.num_kv_heads * num_slots(config, context) * config.head_dim
    return elements * jnp.dtype(model.compute.dtype).itemsize
