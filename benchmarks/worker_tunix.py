"""Times Tunix's DPOTrainer and PeftTrainer loops on JAX CPU; speaks the protocol of ``benchmarks.peers``.

Tunix pads to fixed lengths: DPO to ``MAX_PROMPT_LENGTH`` (left) plus ``RESPONSE_LENGTH`` (right), SFT to
``MAX_LENGTH``. Its DPO runs the reference model inside the loop and cannot precompute it; ``--variant
no_reference`` leaves the reference out (a different loss) to bound what precomputing could save. Timing runs
from the end of the first update, compilation included, to the end of the last.

An update accumulates the gradients of ``--micro`` pairs (DPO) or conversations (SFT) at a time; the default, one, is the fastest
on CPU. With ``--rank`` qwix's LoRA adapters stand at all seven projections of each layer, scaled by 1, as in Tunix's examples.
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
import qwix
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.sft import peft_trainer, utils
from tunix.sft.dpo import dpo_trainer

from benchmarks import workload as w

VARIANTS = ("default", "no_reference")
RESPONSE_LENGTH = w.MAX_LENGTH - w.MAX_PROMPT_LENGTH
PROJECTIONS = ".*q_proj|.*k_proj|.*v_proj|.*o_proj|.*gate_proj|.*up_proj|.*down_proj"


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


def add_adapters(model: nnx.Module, rank: int) -> nnx.Module:
    """The model with LoRA adapters, which are then all that Tunix trains."""
    provider = qwix.LoraProvider(module_path=PROJECTIONS, rank=rank, alpha=float(rank))
    adapted = qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(0), **model.get_model_input())
    count = len(jax.tree.leaves(nnx.state(adapted, nnx.LoRAParam)))
    expected = 2 * 7 * w.DIMS["58m"].layers
    if count != expected:
        raise RuntimeError(
            f"expected {expected} matrices of adapters, qwix {version('qwix')} made {count}: compare PROJECTIONS with the "
            "modules of tunix.models.llama3"
        )
    return adapted


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


def make_trainer(mode: str, steps: int, variant: str, accumulation: int, rank: int) -> peft_trainer.PeftTrainer:
    """The Tunix trainer, with one update more than ``steps`` for warm-up."""
    options = {"eval_every_n_steps": 10 * steps + 10, "max_steps": steps + 1}
    options["gradient_accumulation_steps"] = accumulation
    optimizer = optax.adamw(w.LEARNING_RATE)
    model = make_model()
    if rank:
        model = add_adapters(model, rank)
    if mode == "dpo":
        reference = None if variant == "no_reference" else make_model()
        config = dpo_trainer.DPOTrainingConfig(**options)
        return dpo_trainer.DPOTrainer(model, reference, optimizer, config)
    trainer = peft_trainer.PeftTrainer(model, optimizer, peft_trainer.TrainingConfig(**options))
    return trainer.with_gen_model_input_fn(sft_inputs)


def count(batch: Any, mode: str) -> tuple[int, int, int]:
    """(slots, tokens that are not padding, target tokens) of a padded batch."""
    if mode == "sft":
        return batch.input_tokens.size, int((batch.input_tokens != w.PAD).sum()), int(batch.input_mask.sum())
    responses = int(batch.chosen_mask.sum() + batch.rejected_mask.sum())
    slots = 2 * batch.prompt_ids.size + batch.chosen_ids.size + batch.rejected_ids.size
    return slots, 2 * int(batch.prompt_mask.sum()) + responses, responses


def sequences_of(batch: Any, mode: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(token ids [T], is target [T]) of every sequence of a padded batch."""
    if mode == "sft":
        for ids, mask in zip(batch.input_tokens, batch.input_mask, strict=True):
            yield ids[ids != w.PAD], mask[ids != w.PAD]
        return
    for name in ("chosen", "rejected"):
        tokens = np.concatenate([batch.prompt_ids, getattr(batch, f"{name}_ids")], 1)
        real = np.concatenate([batch.prompt_mask, getattr(batch, f"{name}_mask")], 1) > 0
        scored = np.arange(tokens.shape[1]) >= w.MAX_PROMPT_LENGTH
        for line in range(len(tokens)):
            yield tokens[line][real[line]], scored[real[line]]


def measure(options: argparse.Namespace) -> w.Result:
    """Train ``options.steps`` timed updates after an update that compiles."""
    mode, size = options.mode, options.micro
    batches = w.make_batches(mode, options.steps, options.seed)
    accumulation = w.BATCH[mode] // size
    build: Callable[[list[w.Pair]], Any] = dpo_batch if mode == "dpo" else sft_batch
    trainer = make_trainer(mode, options.steps, options.variant, accumulation, options.rank)
    counts: list[tuple[int, int, int]] = []
    hashes: list[list[int]] = []
    marks: list[tuple[float, float]] = []

    def feed() -> Iterator[Any]:
        for index, pairs in enumerate(batches):
            if index == 1:
                jax.block_until_ready(nnx.state(trainer.model))
                marks.append(w.clocks())
            hashes.append([])
            for start in range(0, len(pairs), size):
                batch = build(pairs[start : start + size])
                counts.append(count(batch, mode))
                hashes[-1] += [w.hash_sequence(*sequence) for sequence in sequences_of(batch, mode)]
                yield batch

    trainer.train(feed())
    jax.block_until_ready(nnx.state(trainer.model))
    marks.append(w.clocks())
    slots, nonpad, targets = (sum(column) for column in zip(*counts[accumulation:], strict=True))
    w.check_targets("Tunix", targets, sum(batches[1:], []), mode)
    (cpu, wall), (cpu_end, wall_end) = marks
    note = f"google-tunix {version('google-tunix')}, jax {jax.__version__}, {options.variant}"
    note += f", {size} of {w.BATCH[mode]} at a time"
    if options.rank:
        note += f", qwix {version('qwix')}, rank {options.rank}"
    digests = [w.digest(of_update) for of_update in hashes[1:]]
    return w.Result("tunix", mode, targets, cpu_end - cpu, wall_end - wall, slots, nonpad, note, digests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=w.MODES, required=True)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", choices=VARIANTS, default="default")
    parser.add_argument("--micro", type=int, default=1, help="pairs (DPO) or conversations (SFT) in a forward")
    parser.add_argument("--rank", type=int, default=0, help="of LoRA adapters; 0: all weights train")
    options = parser.parse_args()
    if w.BATCH[options.mode] % options.micro:
        parser.error(f"--micro must divide the {w.BATCH[options.mode]} of an update, got {options.micro}")
    measure(options).emit()


if __name__ == "__main__":
    main()
