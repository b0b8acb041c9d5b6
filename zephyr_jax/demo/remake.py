"""Pretrain the tiny base model that the demo ships: `python -m zephyr_jax.demo.remake --output FOLDER`.

A byte-fallback BPE tokenizer and a Mistral of about a million parameters, both trained on `corpus.documents` alone, with the
`sft` command on plain text. Takes about 15 minutes on two cores.
"""

import argparse
import json
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax.numpy as jnp
from flax import nnx
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from zephyr_jax.checkpoint.hf.export import export_folder
from zephyr_jax.config.models import ExportConfig
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.yaml_file import from_dict
from zephyr_jax.demo.corpus import conversations, documents
from zephyr_jax.export.export import export
from zephyr_jax.model.decoder import Compute, Decoder
from zephyr_jax.model.families.registry import config_from_hf
from zephyr_jax.parallel.mesh import emulate_devices
from zephyr_jax.train_command import train

CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1024,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SPECIALS = ("<unk>", "<s>", "</s>")
_PLAIN_TEXT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)


def train_tokenizer(vocabulary: int) -> Tokenizer:
    """BPE like Mistral's: `▁` for spaces, byte fallback for unseen characters (also newlines)."""
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 256, special_tokens=list(_SPECIALS), show_progress=False)
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    bpe.train_from_iterator(_tokenizer_texts(), trainer)
    learned = json.loads(bpe.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary_ids = {piece: index for index, piece in enumerate([*_SPECIALS, *byte_pieces, *pieces[len(_SPECIALS) :]])}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary_ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = bpe.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in _SPECIALS])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _tokenizer_texts() -> list[str]:
    chats = ["<|system|> <|user|> <|assistant|>"] * 50
    prompts = [row["prompt"] for row in conversations(7, 500, "train")]
    return [line for text in [*documents(7, 5000), *prompts, *chats] for line in text.splitlines()]


def write_untrained(folder: Path) -> None:
    """A Hugging Face folder with random weights and the tokenizer."""
    shape = config_from_hf(CONFIG)
    model = Decoder(shape, Compute(dtype=jnp.dtype("float32")), nnx.Rngs(0))
    parameters = nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
    }
    extras = {"tokenizer.json": train_tokenizer(CONFIG["vocab_size"]).to_str(), "tokenizer_config.json": settings}
    export_folder(folder, parameters, shape, CONFIG, extras, dtype="float32", max_file_bytes=2**30)


def pretrain(scratch: Path, texts: int, seed: int) -> Path:
    """Train on `texts` documents as plain text; returns the run's folder."""
    rows = scratch / "documents.jsonl"
    with rows.open("w") as file:
        for text in islice(documents(seed, texts), texts):
            chat = [{"role": "user", "content": ""}, {"role": "assistant", "content": text}]
            file.write(json.dumps({"messages": chat}) + "\n")
    (scratch / "plain.jinja").write_text(_PLAIN_TEXT)
    settings = {
        "output": str(scratch / "run"),
        "seed": seed,
        "model": {
            "path": str(scratch / "untrained"),
            "compute_dtype": "float32",
            "remat": "none",
            "logprob_chunk": 512,
        },
        "data": {
            "path": str(rows),
            "chat_template": str(scratch / "plain.jinja"),
            "targets": "all",
            "max_length": 256,
            "row_length": 256,
        },
        "batch": {"rows": 32},
        "optimizer": {"learning_rate": 3e-3, "warmup_ratio": 0.05, "b2": 0.98, "weight_decay": 0.05},
        "schedule": {"save_every": 0, "log_every": 20},
    }
    run: Path = train(from_dict(SftConfig, settings, "remake"))
    return run


def main() -> None:
    """Write the base to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "assets" / "base")
    parser.add_argument("--texts", type=int, default=60_000, help="documents to train on")
    options = parser.parse_args()
    emulate_devices(2)
    with TemporaryDirectory() as name:
        scratch = Path(name)
        write_untrained(scratch / "untrained")
        run = pretrain(scratch, options.texts, seed=1)
        settings = {"model": {"path": str(run)}, "output": str(options.output), "dtype": "bfloat16"}
        folder = export(from_dict(ExportConfig, settings, "remake"))
        (folder / "chat_template.jinja").unlink()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        del config["chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(folder)


if __name__ == "__main__":
    main()
