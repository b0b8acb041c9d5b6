"""Times TRL's own DPOTrainer and SFTTrainer loops on torch; speaks the protocol of ``benchmarks.peers``.

On a CPU it takes the 58M model in float32. With ``--shape 1.1b --device gpu`` it takes the model of ``benchmarks.throughput``,
float32 weights under bfloat16 autocast, with ``--micro`` sequences (SFT) or pairs (DPO) in a forward and ``--batch`` in an
update.

The variant ``best`` stands for the fastest of TRL's public settings found on CPU (``benchmarks/peers.md`` has
the trials); the others exist to repeat those trials. Timing runs from the end of the last warm-up step to the
end of the last step, so collation, forward, backward, clipping, the optimizer and TRL's metrics count. DPO's
reference log-probabilities do not: the trainer's constructor precomputes them.

With ``--rank`` peft's LoRA adapters stand at all seven projections of each layer, scaled by 1, without dropout.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import trl.trainer.utils as trl_utils
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks import workload as w

# "attention", "compact_head" and "grouped" are for this file, everything else goes into the trainer's config.
FLAT = {"padding_free": True, "max_length": None}  # TRL wants None; the workload is short enough as it is
VARIANTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "padded_eager": {"attention": "eager"},
    "padded_compile": {"torch_compile": True},
    "padding_free": FLAT,
    "padding_free_eager": {**FLAT, "attention": "eager"},
    "packing": {"packing": True},
    "length_grouped": {"grouped": True},
    "micro1": {"per_device_train_batch_size": 1},
    "micro2": {"per_device_train_batch_size": 2},
    "micro2_padding_free": {**FLAT, "per_device_train_batch_size": 2},
    "compact_head": {"compact_head": True},
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BEST = {"dpo": "micro1", "sft": "micro1"}


@dataclass(frozen=True)
class Job:
    """What to measure."""

    mode: str
    steps: int
    seed: int
    variant: str
    warmup: int
    shape: str
    device: str
    batch: int
    """Sequences or pairs of an optimizer update."""
    micro: int
    """Sequences or pairs of one forward pass, unless the variant sets it."""
    rank: int
    """Of LoRA adapters; 0: all weights train."""


class TokenisedDPOTrainer(DPOTrainer):
    """DPOTrainer fed with token ids: TRL 1.16 has no switch that skips its tokenisation for DPO."""

    def _prepare_dataset(self, dataset: Dataset, *unused: Any) -> Dataset:
        return dataset


class StepClock(TrainerCallback):
    """Notes the clocks after every optimizer step."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(w.clocks())


def scored_positions(batch: dict[str, Any]) -> torch.Tensor:
    """bool [B, T]: the positions of a collated batch whose tokens are targets."""
    scored = batch["completion_mask"] if "completion_mask" in batch else batch["labels"] != -100
    return scored.bool()


def sequences_of(batch: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(token ids [T], is target [T]) of every sequence of a collated batch."""
    tokens, scored = batch["input_ids"].numpy(), scored_positions(batch).numpy()
    if "attention_mask" in batch:
        for line, real in enumerate(batch["attention_mask"].bool().numpy()):
            yield tokens[line][real], scored[line][real]
        return
    # Without padding the sequences lie side by side in one row, and positions restart at each.
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    for start, end in zip(starts, [*starts[1:], tokens.shape[1]], strict=True):
        yield tokens[0, start:end], scored[0, start:end]


class CountingCollator:
    """Passes batches through and notes (slots, tokens that are not padding, target tokens) and the hashes of each."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.counts: list[tuple[int, int, int]] = []
        self.hashes: list[list[int]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        slots = batch["input_ids"].numel()
        nonpad = int(batch["attention_mask"].sum()) if "attention_mask" in batch else slots
        self.counts.append((slots, nonpad, int(scored_positions(batch).sum())))
        self.hashes.append([w.hash_sequence(*sequence) for sequence in sequences_of(batch)])
        return batch


def make_model(attention: str, dims: w.Dims) -> MistralForCausalLM:
    """The benchmark's model with random float32 weights."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": w.VOCAB,
        "hidden_size": dims.model,
        "intermediate_size": dims.mlp,
        "num_hidden_layers": dims.layers,
        "num_attention_heads": dims.heads,
        "num_key_value_heads": dims.kv_heads,
        "head_dim": dims.head_dim,
    }
    tokens: dict[str, Any] = {"pad_token_id": w.PAD, "bos_token_id": w.BOS, "eos_token_id": w.EOS}
    config = MistralConfig(**shape, **tokens, tie_word_embeddings=False, rms_norm_eps=w.NORM_EPS)
    config._attn_implementation = attention
    return MistralForCausalLM(config).float()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A stand-in that carries the special tokens the trainers ask for; it never tokenises."""
    words = Tokenizer(WordLevel({"<unk>": w.PAD, "<s>": w.BOS, "</s>": w.EOS}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def make_dataset(pairs: list[w.Pair], mode: str) -> Dataset:
    """Token ids under the column names that TRL's collators read."""
    if mode == "dpo":
        columns = ("prompt", "chosen", "rejected")
        return Dataset.from_list([{f"{name}_ids": getattr(pair, name) for name in columns} for pair in pairs])
    rows = [(pair.prompt + pair.chosen, [0] * len(pair.prompt) + [1] * len(pair.chosen)) for pair in pairs]
    return Dataset.from_list([{"input_ids": ids, "completion_mask": mask} for ids, mask in rows])


def options(job: Job, folder: str) -> dict[str, Any]:
    """The settings that all variants share."""
    gpu = job.device == "gpu"
    return {
        "output_dir": folder,
        "per_device_train_batch_size": job.micro,
        "max_steps": job.steps + job.warmup,
        "learning_rate": w.LEARNING_RATE,
        "max_length": w.MAX_LENGTH,
        "use_cpu": not gpu,
        "bf16": gpu,
        "gradient_checkpointing": False,
        "optim": "adamw_torch_fused",
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": gpu,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }


def make_trainer(job: Job, pairs: list[w.Pair], folder: str) -> Any:
    """The TRL trainer of the job, ready to train."""
    settings = {**options(job, folder), **VARIANTS[job.variant]}
    settings["gradient_accumulation_steps"] = job.batch // settings["per_device_train_batch_size"]
    compact, attention = settings.pop("compact_head", False), settings.pop("attention", "sdpa")
    settings.pop("grouped", None)
    if compact:  # the path TRL takes on GPUs: only scored positions reach the output layer
        trl_utils._use_triton = lambda device: True
    parts: dict[str, Any] = {"model": make_model(attention, w.DIMS[job.shape]), "processing_class": make_tokenizer()}
    if job.rank:
        parts["peft_config"] = LoraConfig(
            r=job.rank, lora_alpha=job.rank, target_modules=PROJECTIONS, task_type="CAUSAL_LM"
        )
    dataset = make_dataset(pairs, job.mode)
    if job.mode == "dpo":
        config = DPOConfig(**settings, precompute_ref_log_probs=True)
        return TokenisedDPOTrainer(args=config, train_dataset=dataset, **parts)
    return SFTTrainer(args=SFTConfig(**settings, completion_only_loss=True), train_dataset=dataset, **parts)


def grouped_batches(mode: str, count: int, seed: int) -> list[list[w.Pair]]:
    """``count`` batches, evenly spread over the lengths, of what TRL's ``group_by_length`` makes of the workload.

    That sampler sorts every 50 batches by length. It reorders the examples, so this is not the peers' workload.
    """
    size = w.BATCH[mode]
    pairs = w.make_pairs(50 * size, seed)
    pairs.sort(key=lambda pair: max(len(prompt) + len(response) for prompt, response in pair.sequences(mode)))
    starts = [size * int(50 * (index + 0.5) / count) for index in range(count)]
    return [pairs[start : start + size] for start in starts]


def measure(job: Job) -> w.Result:
    """Train ``steps`` timed steps after ``warmup`` others."""
    warmup, steps = job.warmup, job.steps
    if VARIANTS[job.variant].get("grouped"):
        spread = grouped_batches(job.mode, steps, job.seed)
        batches = [spread[-1]] * warmup + spread
    else:
        batches = w.make_batches(job.mode, steps + warmup - 1, job.seed, job.batch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(job, sum(batches, []), folder)
        collator = trainer.data_collator = CountingCollator(trainer.data_collator)
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
    accumulation = trainer.args.gradient_accumulation_steps
    updates = [
        slice(index * accumulation, (index + 1) * accumulation) for index in range(warmup, warmup + steps)
    ]  # of the collated batches: each update accumulates several
    timed = [count for update in updates for count in collator.counts[update]]
    slots, nonpad, targets = (sum(column) for column in zip(*timed, strict=True))
    digests = [w.digest(sum(collator.hashes[update], [])) for update in updates]
    if job.variant != "packing":
        w.check_targets("TRL", targets, sum(batches[warmup:], []), job.mode)
    (cpu, wall), (cpu_end, wall_end) = clock.marks[warmup - 1], clock.marks[-1]
    names = ["trl", "transformers", "torch", *(["peft"] if job.rank else [])]
    versions = [f"{name} {version(name)}" for name in names]
    note = ", ".join([*versions, job.variant, f"{trainer.args.per_device_train_batch_size} of {job.batch} at a time"])
    if job.rank:
        note += f", rank {job.rank}"
    if torch.cuda.is_available():
        note += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return w.Result("trl", job.mode, targets, cpu_end - cpu, wall_end - wall, slots, nonpad, note, digests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=w.MODES, required=True)
    parser.add_argument("--steps", type=int, default=1, help="timed optimizer updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", choices=("best", *VARIANTS), default="best")
    parser.add_argument("--warmup", type=int, default=1, help="steps before the timed ones; more for compile")
    parser.add_argument("--shape", choices=w.DIMS, default="58m")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--batch", type=int, help="sequences (SFT) or pairs (DPO) of an update")
    parser.add_argument(
        "--micro", type=int, help="how many of them in a forward, unless the variant decides; default: 8 or 4"
    )
    parser.add_argument("--rank", type=int, default=0, help="of LoRA adapters; 0: all weights train")
    args = parser.parse_args()
    torch.set_num_threads(2)
    batch = args.batch or w.BATCH[args.mode]
    variant = BEST[args.mode] if args.variant == "best" else args.variant
    job = Job(
        mode=args.mode,
        steps=args.steps,
        seed=args.seed,
        variant=variant,
        warmup=args.warmup,
        shape=args.shape,
        device=args.device,
        batch=batch,
        micro=args.micro or min(batch, w.PADDED[args.mode]),
        rank=args.rank,
    )
    measure(job).emit()


if __name__ == "__main__":
    main()
