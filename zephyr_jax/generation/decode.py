"""Batched decoding: prompts are padded on the left, so that every row's next token takes the same cache slot.

Letters: B rows, P prompt slots, T new tokens, S = P + T cache slots, Y layers, K kv heads, H head dim, V vocab.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from zephyr_jax.generation.sampling import next_token
from zephyr_jax.model.attention import Where
from zephyr_jax.model.mistral import KVCache, Mistral
from zephyr_jax.objective.logprob import Parameters


class _Loop(NamedTuple):
    made: Array
    """Tokens made so far."""
    token_B: Array
    done_B: Array
    out_BT: Array
    cache: KVCache


@partial(jax.jit, static_argnames=("definition", "new_tokens", "temperature", "top_p"))
def decode(
    definition: nnx.GraphDef,
    parameters: Parameters,
    prompt_BP: Array,
    length_B: Array,
    key_B: Array,
    stop_ids: Array,
    *,
    new_tokens: int,
    temperature: float,
    top_p: float,
) -> Array:
    """int32 [B, T] new tokens after prompts of `length_B` tokens that end at the right edge of `prompt_BP`.

    A row ends with the first of `stop_ids` that it makes (kept in the output); -1 fills what comes after. The loop ends
    when every row has. `key_B` is one PRNG key a row; row r's t-th token is drawn with fold_in(key_B[r], t).
    """
    model = nnx.merge(definition, parameters)
    B, P = prompt_BP.shape
    position_BP = jnp.arange(P) - (P - length_B)[:, None]
    where = Where((position_BP >= 0).astype(jnp.int32), jnp.maximum(position_BP, 0).astype(jnp.int32))
    hidden_BPD, cache = model.extend(prompt_BP, where, _empty_cache(model, B, P + new_tokens), jnp.int32(0))

    def draw(hidden_B1D: Array, count: Array) -> Array:
        keys_B = jax.vmap(lambda key: jax.random.fold_in(key, count))(key_B)
        return next_token(model.logits(hidden_B1D)[:, 0], keys_B, temperature, top_p)

    def step(loop: _Loop) -> _Loop:
        out_BT = jax.lax.dynamic_update_slice(
            loop.out_BT, jnp.where(loop.done_B, -1, loop.token_B)[:, None], (0, loop.made)
        )
        done_B = loop.done_B | jnp.isin(loop.token_B, stop_ids)
        here = Where(jnp.ones((B, 1), jnp.int32), (length_B + loop.made)[:, None])
        hidden_B1D, cache = model.extend(loop.token_B[:, None], here, loop.cache, P + loop.made)
        token_B = draw(hidden_B1D, loop.made + 1)
        return _Loop(loop.made + 1, token_B, done_B, out_BT, cache)

    first_B = draw(hidden_BPD[:, -1:], jnp.int32(0))
    empty_BT = jnp.full((B, new_tokens), -1, jnp.int32)
    start = _Loop(jnp.int32(0), first_B, jnp.zeros(B, jnp.bool_), empty_BT, cache)
    return jax.lax.while_loop(lambda loop: (loop.made < new_tokens) & ~jnp.all(loop.done_B), step, start).out_BT


def _empty_cache(model: Mistral, rows: int, slots: int) -> KVCache:
    shape, compute = model.shape, model.compute
    sizes = (shape.layers, rows, slots, shape.kv_heads, shape.head_dim)
    axes = ("layers", "batch", "length", "kv_heads", "head_dim")
    keys, values = (compute.placement.constrain(jnp.zeros(sizes, compute.dtype), *axes) for _ in range(2))
    return KVCache(keys, values, Where(*(jnp.zeros((rows, slots), jnp.int32) for _ in range(2))))


def pad_left(prompts: list[np.ndarray], rows: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [rows, slots], int32 [rows]) prompts against the right edge and their lengths; spare rows repeat the last."""
    filled = [*prompts, *[prompts[-1]] * (rows - len(prompts))]
    tokens = np.zeros((rows, slots), np.int32)
    for row, prompt in enumerate(filled):
        tokens[row, slots - len(prompt) :] = prompt
    return tokens, np.array([len(prompt) for prompt in filled], np.int32)
