"""Log-probs of exported folders by llama.cpp: `python check_llama_cpp.py LLAMA_CPP FOLDERS OUT.npz`.

LLAMA_CPP is a folder with convert_hf_to_gguf.py, such as vendor/llama.cpp of the source distribution of llama-cpp-python.
FOLDERS has a folder with float32 weights and `tokens.npy` per model; OUT has, under the names of the folders, log-probs of the
vocabulary at COLUMNS, or a message where the folder is refused. Needs torch, transformers, gguf, sentencepiece,
pytest and xllamacpp, which brings llama.cpp.

A folder without a tokenizer gets one with a token per row of the embedding, which the converter does not know: it is converted as
GPT-2's, and that decides only how text would be split.
"""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import xllamacpp
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

COLUMNS = range(8, 128, 7)
"""Tokens whose log-probs are compared."""
PIECES = ("<unk>", "<s>", "</s>", "a", "b", "ab", "<|endoftext|>")
"""The first of the made-up tokenizer: three special ones, its only merge, and what llama.cpp looks up for a model called phi3."""


def add_tokenizer(folder: Path) -> None:
    """Made-up tokenizer files in the two forms that the converter reads."""
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    pieces = [*PIECES, *(f"t{number}" for number in range(len(PIECES), size))]
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = proto.SentencePiece
    for number, piece in enumerate(pieces):
        kind = kinds.NORMAL if number > 2 else kinds.CONTROL if number else kinds.UNKNOWN
        proto.pieces.add(piece=piece, score=-float(number), type=kind)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    made = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [("a", "b")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(list(PIECES[:3]))
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def convert(llama_cpp: Path, folder: Path, out: Path) -> str:
    """Write `out`; the converter's message where it refuses the folder, else an empty string."""
    with pytest.MonkeyPatch.context() as patch:
        if not (folder / "tokenizer.json").exists():
            add_tokenizer(folder)
            patch.setattr("conversion.base.TextModel.get_vocab_base_pre", lambda self, tokenizer: "gpt-2")
        patch.setattr(sys, "argv", ["", str(folder), "--outtype", "f32", "--outfile", str(out)])
        try:
            runpy.run_path(str(llama_cpp / "convert_hf_to_gguf.py"), run_name="__main__")
        except Exception as error:  # of any kind: it is the result
            return f"{type(error).__name__}: {error}"
    return ""


def log_probs(file: Path, tokens: np.ndarray) -> np.ndarray:
    """float32 [B, COLUMNS, V] of a GGUF file; with a float32 cache and no flash attention."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server, size = xllamacpp.Server(params), json.loads((file.parent / "config.json").read_text())["vocab_size"]
    values = np.full((len(tokens), len(COLUMNS), size), np.nan, np.float32)
    for row, line in enumerate(tokens.tolist()):
        for index, column in enumerate(COLUMNS):
            request = {"prompt": line[:column], "max_tokens": 1, "logprobs": size, "temperature": 0}
            answer = server.handle_completions(request)["choices"][0]["logprobs"]["content"][0]
            for one in answer["top_logprobs"]:
                values[row, index, one["id"]] = one["logprob"]
    return values


def main(llama_cpp: Path, folders: Path, out: str) -> None:
    """All folders."""
    sys.path.insert(0, str(llama_cpp))
    results = {}
    for folder in sorted(folders.iterdir()):
        file = folder / "model.gguf"
        problem = convert(llama_cpp, folder, file)
        try:
            results[folder.name] = np.array(problem) if problem else log_probs(file, np.load(folder / "tokens.npy"))
        except RuntimeError as error:
            results[folder.name] = np.array(f"not loaded: {error}")
    np.savez(out, **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
