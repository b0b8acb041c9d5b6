"""Times this project's own SFT and DPO step, packed; speaks the protocol of ``benchmarks.peers``.

Batches come from the project's planner and loader, as in training with ``batch.examples``: an update takes exactly the pairs
(conversations) that it takes in the peers, packed into rows; the padding of the last rows counts. The reference's log-probs
stand in for a filled table, as in the peers. Pairs share their prompts unless ``--copy-prompts`` is given; tokens that are not
padding are counted as they are in rows. With ``--rank`` all seven projections get LoRA adapters, and ``--base-format`` is how
the frozen weights are stored.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import workload as w
from zephyr_jax import __version__
from zephyr_jax.batch import SharedTokenBatch
from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.checkpoint.convert import convert_parameters
from zephyr_jax.checkpoint.new_adapter import initial_adapter
from zephyr_jax.checkpoint.weights import Layout
from zephyr_jax.config.sections import BaseFormat, DataOptions, MeshOptions, Remat
from zephyr_jax.config.training_sections import AnomalyOptions, BatchOptions, DpoOptions, OptimizerOptions
from zephyr_jax.data.loader import BatchSource
from zephyr_jax.data.pack import PackingPlan, plan_training
from zephyr_jax.data.shared_prompt import UnsharedRows, packed_lengths
from zephyr_jax.methods.registry import METHODS
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, Decoder, abstract_model
from zephyr_jax.model.families.targets import projections_of
from zephyr_jax.model.lora import LoraSpec, attach_adapter, is_adapter, only_adapter
from zephyr_jax.model.weight_format import PLAIN, WeightFormat
from zephyr_jax.objective.dpo import dpo_loss
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.place import place_batch
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.train.anomalies import StepLimits
from zephyr_jax.train.optimizer import learning_rate, make_optimizer
from zephyr_jax.train.state import initial_state, state_shardings
from zephyr_jax.train.step import make_step

COMPUTE = Compute(dtype=jnp.dtype("float32"), remat=Remat.NONE, save_logits=True)
ROW_LENGTH = {"dpo": 2048, "sft": 1024}
ROWS = 4
"""Of a step of `make_batches`, for the benchmarks that need no peer."""
MICROBATCH_ROWS = 1
"""Of an update of `update_batches`: so no row is empty that another update needs not."""
CHUNK = 512


@dataclass(frozen=True)
class InMemory:
    """Stands where tokenised rows on disk stand in training."""

    examples: list[list[Segment]]
    segments_per_example: int
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> list[Segment]:
        return self.examples[index]


def segments_of(pair: w.Pair, mode: str) -> list[Segment]:
    """The pair's sequences with their targets."""
    made = []
    for prompt, response in pair.sequences(mode):
        tokens = np.array([*prompt, *response], np.int32)
        made.append(Segment(tokens, np.arange(len(tokens)) >= len(prompt)))
    return made


def shape_of(dims: w.Dims) -> ModelConfig:
    """Of the benchmark's models."""
    return ModelConfig(
        model_type="llama",
        vocab_size=w.VOCAB,
        d_model=dims.model,
        d_ff=dims.mlp,
        num_layers=dims.layers,
        num_heads=dims.heads,
        num_kv_heads=dims.kv_heads,
        head_dim=dims.head_dim,
        norm_eps=w.NORM_EPS,
        rope_theta=w.ROPE_THETA,
        sliding_window=None,
        tie_embeddings=False,
        max_positions=4096,
    )


@dataclass(frozen=True)
class PackedPairs:
    """Tokenized pairs with what each takes of a row."""

    examples: InMemory
    data: DataOptions
    lengths: np.ndarray
    unshared: UnsharedRows | None

    @classmethod
    def of(cls, pairs: list[w.Pair], mode: str, row_length: int, share_prompts: bool) -> PackedPairs:
        """The sequences of `pairs` that `mode` trains on."""
        examples = InMemory([segments_of(pair, mode) for pair in pairs], 2 if mode == "dpo" else 1)
        total = np.array([sum(map(len, segments)) for segments in examples.examples])
        prompts = np.array([len(pair.prompt) for pair in pairs])
        data = DataOptions(max_length=w.MAX_LENGTH, row_length=row_length, share_prompts=share_prompts)
        return cls(examples, data, *packed_lengths(total, prompts, examples.segments_per_example, data))

    def plan(self, batch: BatchOptions, steps: int, seed: int, group: slice = slice(None)) -> PackingPlan:
        """At most `steps` steps of the pairs of `group`, by the planner."""
        unshared = self.unshared and replace(self.unshared, lengths=self.unshared.lengths[group])
        return plan_training(self.lengths[group], self.data, batch, 1, steps, seed, unshared)

    def source(self, plan: PackingPlan, mode: str) -> BatchSource[Any]:
        """The batches of a plan."""
        method = METHODS[mode]
        columns = method.reference_columns(None, len(self.examples))
        return BatchSource(self.examples, plan, slice(0, plan.microbatch_rows), method.batch, columns)


def make_batches(
    mode: str, steps: int, seed: int, row_length: int, batch: BatchOptions
) -> tuple[BatchSource[Any], PackingPlan]:
    """`steps` batches of full rows, from as many examples of the workload as that takes."""
    rows = batch.rows or 1
    packed = PackedPairs.of(w.make_pairs(rows * row_length // 200 * steps, seed), mode, row_length, True)
    plan = packed.plan(batch, steps, seed)
    if any(len(step) < rows for step in plan.steps) or len(plan.steps) < steps:
        raise RuntimeError(f"{len(packed.examples)} examples do not fill {steps} steps of {rows} rows: draw more")
    return packed.source(plan, mode), plan


def update_batches(
    mode: str, batches: list[list[w.Pair]], seed: int, share_prompts: bool
) -> tuple[BatchSource[Any], PackingPlan]:
    """One batch for each of `batches`: exactly its pairs, packed. All have the shape of the largest, as in training."""
    packed = PackedPairs.of(sum(batches, []), mode, ROW_LENGTH[mode], share_prompts)
    plans, steps, start = [], [], 0
    for pairs in batches:
        options = BatchOptions(examples=len(pairs), microbatch_rows=MICROBATCH_ROWS)
        plans.append(packed.plan(options, 1, seed, slice(start, start + len(pairs))))
        steps += [tuple(tuple(start + index for index in row) for row in step) for step in plans[-1].steps]
        start += len(pairs)
    plan = replace(
        plans[0],
        steps=tuple(steps),
        microbatches=max(plan.microbatches for plan in plans),
        examples_per_row=max(plan.examples_per_row for plan in plans),
    )
    return packed.source(plan, mode), plan


def sequences_of(rows: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(token ids [T], is target [T]) of every segment of packed rows [A, B, ...], as attention and the loss read them."""
    if isinstance(rows, SharedTokenBatch):
        segments, columns = rows.unshared_segments, rows.unshared_columns
    else:
        segments, columns = rows.segments, np.broadcast_to(np.arange(rows.tokens.shape[-1]), rows.tokens.shape)
    for line in np.ndindex(rows.tokens.shape[:-1]):
        for number in range(1, segments[line].max() + 1):
            own = columns[line][segments[line] == number]
            yield rows.tokens[line][own], rows.targets[line][own]


def lora_format(shape: ModelConfig, rank: int, base_format: BaseFormat) -> WeightFormat:
    """Adapters of all seven projections, scaled by 1, over a frozen base; `PLAIN` for rank 0."""
    if not rank:
        return PLAIN
    return WeightFormat(
        base_format=base_format, lora=LoraSpec(rank=rank, alpha=rank, targets=tuple(projections_of(shape)))
    )


def random_weights(shape: ModelConfig, layout: Layout) -> Any:
    """Random weights in the format of the layout; an adapter's B is zero."""
    plain = Layout.of(shape, PLAIN, layout.rules)

    def init() -> Any:
        return nnx.to_pure_dict(nnx.split(Decoder(shape, Compute(), nnx.Rngs(0)), nnx.Param)[1])

    weights = jax.jit(init, out_shardings=plain.shardings)()
    lora = layout.weight_format.lora
    if lora is None:
        return weights
    base = convert_parameters(weights, shape, layout.shapes, layout.shardings, ())
    return attach_adapter(base, initial_adapter(0, only_adapter(layout.shapes)), lora.scale)


def make_trainer(
    mode: str,
    plan: PackingPlan,
    rules: ShardingRules,
    shape: ModelConfig,
    compute: Compute,
    chunk: int,
    weight_format: WeightFormat = PLAIN,
) -> tuple[Any, Any]:
    """The project's step and its first state."""
    definition, _ = abstract_model(shape, replace(compute, placement=rules))
    layout = Layout.of(shape, weight_format, rules)
    options = OptimizerOptions(learning_rate=w.LEARNING_RATE, lr_schedule="constant", warmup_ratio=0)
    optimizer = make_optimizer(options, 100)
    is_trainable = is_adapter if weight_format.lora else lambda _: True
    state_at = state_shardings(layout.shapes, layout.shardings, optimizer, rules, is_trainable=is_trainable)
    state = initial_state(random_weights(shape, layout), optimizer, state_at)
    if mode == "dpo":
        objective: Any = make_objective(
            dpo_loss, definition, DpoOptions(beta=0.1), segments=2 * plan.examples_per_row, chunk=chunk
        )
    else:
        objective = make_objective(sft_loss, definition, None, segments=plan.examples_per_row, chunk=chunk)
    return make_step(objective, optimizer, learning_rate(options, 100), state_at, AnomalyOptions()), state


def measure(options: argparse.Namespace) -> w.Result:
    """Train `options.steps` timed updates after an update that compiles."""
    rules = ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1]))
    mode = options.mode
    updates = w.make_batches(mode, options.steps, options.seed)[1:]
    # The update that compiles repeats the first timed one: batches have the shape of the largest, and another could be larger.
    source, plan = update_batches(mode, [updates[0], *updates], options.seed, not options.copy_prompts)
    shape = shape_of(w.DIMS["58m"])
    weight_format = lora_format(shape, options.rank, options.base_format)
    step, state = make_trainer(mode, plan, rules, shape, COMPUTE, CHUNK, weight_format)
    made, targets = [], []
    limits = StepLimits(np.float32(np.inf), np.bool_(False))
    for index in range(len(source)):
        if index == 1:
            jax.block_until_ready(state)
            cpu, wall = w.clocks()
        made.append(source[index])
        state, metrics, _ = step(state, place_batch(rules, made[-1], plan.microbatch_rows), limits)
        targets.append(metrics["targets"].sum)
    jax.block_until_ready(state)
    end_cpu, end_wall = w.clocks()
    note = f"zephyr-jax {__version__}, rows of {plan.row_length}"
    if plan.unshared_length:
        note += ", shared prompts"
    if weight_format.lora:
        note += f", rank {options.rank}, {options.base_format}"
    timed = [batch.rows for batch in made[1:]]
    num_targets = int(sum(map(float, targets[1:])))
    w.check_targets("ours", num_targets, sum(updates, []), mode)
    return w.Result(
        "ours",
        mode,
        num_targets,
        end_cpu - cpu,
        end_wall - wall,
        slots=sum(rows.tokens.size for rows in timed),
        nonpad=sum(int((rows.segments > 0).sum()) for rows in timed),
        note=note,
        digests=[w.digest(w.hash_sequence(*sequence) for sequence in sequences_of(rows)) for rows in timed],
    )


def main() -> None:
    """Print the protocol's line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=w.MODES, required=True)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0, help="of LoRA adapters; 0: all weights train")
    parser.add_argument("--base-format", choices=get_args(BaseFormat), default="float32")
    parser.add_argument("--copy-prompts", action="store_true", help="a copy of the prompt before each answer of a pair")
    options = parser.parse_args()
    measure(options).emit()


if __name__ == "__main__":
    main()
