"""Times TRL's own DPOTrainer and SFTTrainer loops on torch CPU; speaks the protocol of ``benchmarks.peers``.

The default variant is the fastest found of TRL's public settings on this CPU (``benchmarks/peers.md`` has the
trials); the others exist to repeat those trials. Timing runs from the end of the first step to the end of the last,
so collation, forward, backward, clipping, the optimizer and TRL's metrics count, and the precomputed reference
log-probabilities of DPO, which the trainer's constructor takes, do not.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import trl.trainer.utils as trl_utils
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks import workload as w

VARIANTS = {
    "default": {},
    "eager": {"attention": "eager"},
    "compile": {"config": {"torch_compile": True}},
    "padding_free": {"config": {"padding_free": True, "max_length": None}},
    "packing": {"config": {"packing": True, "max_length": w.MAX_LENGTH}},
    "padding_free_eager": {"attention": "eager", "config": {"padding_free": True, "max_length": None}},
    "eager_compile": {"attention": "eager", "config": {"torch_compile": True}},
    "compact_head": {"compact_head": True},
}


class TokenisedDPOTrainer(DPOTrainer):
    """DPOTrainer fed with token ids: TRL 1.16 has no switch that skips its tokenisation for DPO."""

    def _prepare_dataset(self, dataset: Dataset, *unused: Any) -> Dataset:
        return dataset


class StepClock(TrainerCallback):
    """Notes the clocks and the number of collated batches after every optimizer step."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append(w.clocks())


class CountingCollator:
    """Passes batches through and notes (slots, tokens that are not padding, target tokens) of each."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.counts: list[tuple[int, int, int]] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        slots = batch["input_ids"].numel()
        nonpad = int(batch["attention_mask"].sum()) if "attention_mask" in batch else slots
        scored = batch["completion_mask"] if "completion_mask" in batch else batch["labels"] != -100
        self.counts.append((slots, nonpad, int(scored.sum())))
        return batch


def make_model(attention: str) -> MistralForCausalLM:
    """The benchmark's model with random float32 weights."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=w.VOCAB, hidden_size=w.DIM, intermediate_size=w.FFN, num_hidden_layers=w.LAYERS,
        num_attention_heads=w.HEADS, num_key_value_heads=w.KV_HEADS, head_dim=w.HEAD_DIM, rms_norm_eps=w.NORM_EPS,
        sliding_window=4096, max_position_embeddings=4096, tie_word_embeddings=False, use_cache=False,
        attn_implementation=attention, dtype="float32", pad_token_id=w.PAD, bos_token_id=w.BOS, eos_token_id=w.EOS,
    )
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
    return Dataset.from_list([
        {"input_ids": pair.prompt + pair.chosen, "completion_mask": [0] * len(pair.prompt) + [1] * len(pair.chosen)}
        for pair in pairs
    ])


def make_trainer(mode: str, pairs: list[w.Pair], steps: int, folder: str, variant: dict[str, Any]) -> Any:
    """The TRL trainer, with one step more than ``steps`` for warm-up."""
    options = dict(
        output_dir=folder, per_device_train_batch_size=w.BATCH[mode], max_steps=steps + 1,
        learning_rate=w.LEARNING_RATE, max_length=w.MAX_LENGTH, use_cpu=True, bf16=False, gradient_checkpointing=False,
        train_sampling_strategy="sequential", dataloader_pin_memory=False, optim="adamw_torch_fused", report_to=[],
        save_strategy="no", disable_tqdm=True, logging_strategy="no", seed=0,
    )
    options.update(variant.get("config", {}))
    model, dataset, tokenizer = make_model(variant.get("attention", "sdpa")), make_dataset(pairs, mode), make_tokenizer()
    if mode == "dpo":
        config = DPOConfig(**options, precompute_ref_log_probs=True)
        return TokenisedDPOTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    config = SFTConfig(**options, completion_only_loss=True)
    return SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)


def measure(mode: str, steps: int, seed: int, variant_name: str) -> w.Result:
    """Train ``steps`` timed steps after a warm-up step."""
    variant = VARIANTS[variant_name]
    if variant.get("compact_head"):
        trl_utils._use_triton = lambda device: True
    batches = w.make_batches(mode, steps, seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(mode, sum(batches, []), steps, folder, variant)
        collator = trainer.data_collator = CountingCollator(trainer.data_collator)
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
    slots, nonpad, targets = (sum(column) for column in zip(*collator.counts[1:steps + 1]))
    if variant_name != "packing":
        w.check_targets("TRL", targets, sum(batches[1:], []), mode)
    (cpu, wall), (cpu_end, wall_end) = clock.marks[0], clock.marks[-1]
    note = f"trl {trl_utils_version()}, {variant_name}"
    return w.Result("trl", mode, targets, cpu_end - cpu, wall_end - wall, slots, nonpad, note)


def trl_utils_version() -> str:
    """Versions for the result line."""
    import transformers
    import trl

    return f"{trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=w.MODES, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", choices=VARIANTS, default="default")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    measure(args.mode, args.steps, args.seed, args.variant).emit()


if __name__ == "__main__":
    main()
