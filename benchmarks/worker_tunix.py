"""Times Tunix's DPOTrainer and PeftTrainer loops on JAX CPU; speaks the protocol of ``benchmarks.peers``.

Tunix pads to fixed lengths: DPO to ``MAX_PROMPT_LENGTH`` (left) plus ``RESPONSE_LENGTH`` (right), SFT to
``MAX_LENGTH``. Its DPO runs the reference model inside the loop and cannot precompute it; ``--variant
no_reference`` leaves the reference out (a different loss) to bound what precomputing could save. Timing runs
from the end of the first step, compilation included, to the end of the last.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.sft import peft_trainer, utils
from tunix.sft.dpo import dpo_trainer

from benchmarks import workload as w

VARIANTS = ("default", "no_reference")
RESPONSE_LENGTH = w.MAX_LENGTH - w.MAX_PROMPT_LENGTH


def make_model() -> llama.Llama3:
    """The benchmark's model, float32 and random; Tunix's Llama 3 at this shape is Mistral's arithmetic."""
    d = w.DIMS["58m"]
    config = llama.ModelConfig(
        num_layers=d.layers,
        vocab_size=w.VOCAB,
        embed_dim=d.model,
        hidden_dim=d.mlp,
        num_heads=d.heads,
        head_dim=d.head_dim,
        num_kv_heads=d.kv_heads,
        rope_theta=w.ROPE_THETA,
        norm_eps=w.NORM_EPS,
    )
    return llama.Llama3(config, rngs=nnx.Rngs(0))


def pad(tokens: list[int], length: int, left: bool = False) -> list[int]:
    """``tokens`` with padding up to ``length``."""
    filler = [w.PAD] * (length - len(tokens))
    return filler + tokens if left else tokens + filler


def dpo_batch(pairs: list[w.Pair]) -> dpo_trainer.TrainingInput:
    """A batch as Tunix's ``process_dpo_record`` lays it out."""
    fields: dict[str, np.ndarray] = {}
    for name in ("prompt", "chosen", "rejected"):
        length = w.MAX_PROMPT_LENGTH if name == "prompt" else RESPONSE_LENGTH
        ids = np.array([pad(getattr(pair, name), length, left=name == "prompt") for pair in pairs], np.int32)
        fields[f"{name}_ids"], fields[f"{name}_mask"] = ids, (ids != w.PAD).astype(np.int32)
    return dpo_trainer.TrainingInput(**fields)


def sft_batch(pairs: list[w.Pair]) -> peft_trainer.TrainingInput:
    """Right-padded rows; the mask marks the tokens to score."""
    ids = [pad(pair.prompt + pair.chosen, w.MAX_LENGTH) for pair in pairs]
    mask = [pad([0] * len(pair.prompt) + [1] * len(pair.chosen), w.MAX_LENGTH) for pair in pairs]
    return peft_trainer.TrainingInput(input_tokens=np.array(ids, np.int32), input_mask=np.array(mask, np.int32))


def sft_inputs(batch: peft_trainer.TrainingInput) -> dict[str, jax.Array]:
    """The model inputs, as Tunix's SFT examples build them."""
    real = batch.input_tokens != w.PAD
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": utils.build_positions_from_mask(real),
        "attention_mask": utils.make_causal_attn_mask(real),
    }


def make_trainer(mode: str, steps: int, variant: str) -> peft_trainer.PeftTrainer:
    """The Tunix trainer, with one step more than ``steps`` for warm-up."""
    options = {"eval_every_n_steps": 10 * steps + 10, "max_steps": steps + 1}
    optimizer = optax.adamw(w.LEARNING_RATE)
    if mode == "dpo":
        reference = None if variant == "no_reference" else make_model()
        config = dpo_trainer.DPOTrainingConfig(**options)
        return dpo_trainer.DPOTrainer(make_model(), reference, optimizer, config)
    trainer = peft_trainer.PeftTrainer(make_model(), optimizer, peft_trainer.TrainingConfig(**options))
    return trainer.with_gen_model_input_fn(sft_inputs)


def count(batch: Any, mode: str) -> tuple[int, int, int]:
    """(slots, tokens that are not padding, target tokens) of a padded batch."""
    if mode == "sft":
        return batch.input_tokens.size, int((batch.input_tokens != w.PAD).sum()), int(batch.input_mask.sum())
    responses = int(batch.chosen_mask.sum() + batch.rejected_mask.sum())
    slots = 2 * batch.prompt_ids.size + batch.chosen_ids.size + batch.rejected_ids.size
    return slots, 2 * int(batch.prompt_mask.sum()) + responses, responses


def measure(mode: str, steps: int, seed: int, variant: str) -> w.Result:
    """Train ``steps`` timed steps after a warm-up step."""
    batches = w.make_batches(mode, steps, seed)
    build: Callable[[list[w.Pair]], Any] = dpo_batch if mode == "dpo" else sft_batch
    trainer = make_trainer(mode, steps, variant)
    counts: list[tuple[int, int, int]] = []
    marks: list[tuple[float, float]] = []

    def feed() -> Iterator[Any]:
        for index, pairs in enumerate(batches):
            if index == 1:
                jax.block_until_ready(nnx.state(trainer.model))
                marks.append(w.clocks())
            batch = build(pairs)
            counts.append(count(batch, mode))
            yield batch

    trainer.train(feed())
    jax.block_until_ready(nnx.state(trainer.model))
    marks.append(w.clocks())
    slots, nonpad, targets = (sum(column) for column in zip(*counts[1:], strict=True))
    w.check_targets("Tunix", targets, sum(batches[1:], []), mode)
    (cpu, wall), (cpu_end, wall_end) = marks
    note = f"google-tunix {version('google-tunix')}, jax {jax.__version__}, {variant}"
    return w.Result("tunix", mode, targets, cpu_end - cpu, wall_end - wall, slots, nonpad, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=w.MODES, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", choices=VARIANTS, default="default")
    args = parser.parse_args()
    measure(args.mode, args.steps, args.seed, args.variant).emit()


if __name__ == "__main__":
    main()
