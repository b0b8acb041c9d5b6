"""Prefill and decode against transformers' `generate` (torch): tokens per CPU-second, in processes that take turns.

    uv run python -m benchmarks.generation --torch-python TORCH_PYTHON [--rounds 3] [--rows 8]

TORCH_PYTHON has torch and transformers. Both sides have random weights of the 58M shape (or --small: 0.26M, as stories260k),
float32, the same prompts, no stop token. Decoding is the CPU time of 65 new tokens less that of one, prefill that of one.
Without --torch-python only our side runs, at prompts of several lengths in one context, of 2,048 and the new tokens: the
cost of a token should not grow with them.
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import median

NEW = 64
SHAPES = {
    "58M": {"vocab": 32000, "model": 512, "mlp": 1536, "layers": 8, "heads": 8, "kv_heads": 4, "head_dim": 64},
    "0.26M": {"vocab": 512, "model": 64, "mlp": 172, "layers": 5, "heads": 8, "kv_heads": 4, "head_dim": 8},
}


def prompts_of(rows: int, length: int, vocab: int) -> list[list[int]]:
    """Prompts of one length, by arithmetic, so that both sides have the same without sharing code."""
    return [
        [1, *((7919 * (row + 1) * (index + 3)) % (vocab - 3) + 3 for index in range(length - 1))] for row in range(rows)
    ]


def ours(shape: dict[str, int], rows: int, length: int, context: int) -> tuple[float, float]:
    """CPU seconds of prefill with one token, and of NEW more tokens."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from zephyr_jax.checkpoint.opened import AbstractModel
    from zephyr_jax.config.sections import MeshOptions
    from zephyr_jax.generate.engine import Engine, GenerationRequest
    from zephyr_jax.model.config import ModelConfig
    from zephyr_jax.model.decoder import Compute, Decoder, abstract_model
    from zephyr_jax.model.weight_format import PLAIN, stored_weights
    from zephyr_jax.parallel.mesh import make_mesh
    from zephyr_jax.parallel.sharding import ShardingRules, parameter_shardings

    rules = ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1]))
    sizes = ModelConfig(
        model_type="llama",
        vocab_size=shape["vocab"],
        d_model=shape["model"],
        d_ff=shape["mlp"],
        num_layers=shape["layers"],
        num_heads=shape["heads"],
        num_kv_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        norm_eps=1e-5,
        rope_theta=1e4,
        sliding_window=None,
        tie_embeddings=False,
        max_positions=4096,
    )
    compute = Compute(dtype=jnp.dtype("float32"), placement=rules)
    definition, abstract = abstract_model(sizes, compute)
    weights = nnx.to_pure_dict(nnx.split(Decoder(sizes, compute, nnx.Rngs(0)), nnx.Param)[1])
    model = AbstractModel(
        definition=definition,
        parameters=nnx.to_pure_dict(abstract),
        shardings=parameter_shardings(stored_weights(sizes, abstract, PLAIN), rules),
        config=sizes,
        compute=compute,
    )
    engine = Engine(model, weights, rules, batch_size=rows, context=context, decode_steps=32)

    def run(max_new: int) -> float:
        for prompt in prompts_of(rows, length, shape["vocab"]):
            engine.submit(GenerationRequest(np.array(prompt, np.int32), max_new))
        begun = time.process_time()
        made = sum(len(piece.tokens) for piece in engine.run())
        assert made == rows * max_new
        return time.process_time() - begun

    run(1), run(NEW + 1)
    first = median(run(1) for _ in range(3))
    return first, median(run(NEW + 1) for _ in range(3)) - first


def torchs(shape: dict[str, int], rows: int, length: int, _: int) -> tuple[float, float]:
    """The same by transformers, whose cache grows."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=shape["vocab"], hidden_size=shape["model"], intermediate_size=shape["mlp"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"], sliding_window=None, max_position_embeddings=4096, eos_token_id=None,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    tokens = torch.tensor(prompts_of(rows, length, shape["vocab"]))
    mask = torch.ones_like(tokens)

    def run(max_new: int) -> float:
        begun = time.process_time()
        with torch.inference_mode():
            out = model.generate(tokens, attention_mask=mask, max_new_tokens=max_new, do_sample=False, pad_token_id=0)
        assert out.shape == (rows, length + max_new)
        return time.process_time() - begun

    run(1), run(NEW + 1)
    first = median(run(1) for _ in range(3))
    return first, median(run(NEW + 1) for _ in range(3)) - first


def measure(python: str, side: str, size: str, rows: int, length: int, longest: int = 0) -> tuple[float, float]:
    """Prefill and decode of one side in a separate process, tokens per CPU-second."""
    command = [python, __file__ if side == "torch" else "-m", *(["benchmarks.generation"] if side == "ours" else [])]
    context = max(length, longest) + NEW + 1
    command += [
        "--worker",
        side,
        "--size",
        size,
        "--rows",
        str(rows),
        "--length",
        str(length),
        "--context",
        str(context),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    first, rest = json.loads(done.stdout.splitlines()[-1])
    return rows * length / first, rows * NEW / rest


def main() -> None:
    """Print a line a round, and the medians of the rounds' ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python")
    parser.add_argument("--size", choices=SHAPES, default="58M")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--worker", choices=("ours", "torch"))
    options = parser.parse_args()
    size, rows = options.size, options.rows
    if options.worker:
        run = ours if options.worker == "ours" else torchs
        print(json.dumps(run(SHAPES[size], rows, options.length, options.context)))
        return
    if not options.torch_python:
        for length in (64, 256, 1024, 2048):
            prefill, decode = measure(sys.executable, "ours", size, rows, length, 2048)
            print(
                f"{size}, {rows} rows, prompts of {length}: prefill {prefill:,.0f}, decode {decode:,.0f} tokens/CPU-s"
            )
        return
    ratios = []
    for number in range(options.rounds):
        our_rates = measure(sys.executable, "ours", size, rows, options.length)
        peer_rates = measure(options.torch_python, "torch", size, rows, options.length)
        ratios.append((our_rates[0] / peer_rates[0], our_rates[1] / peer_rates[1]))
        print(
            f"round {number + 1}: prefill {our_rates[0]:,.0f} against {peer_rates[0]:,.0f}, decode {our_rates[1]:,.0f} against "
            f"{peer_rates[1]:,.0f} tokens/CPU-s"
        )
    prefill, decode = (median(pair[index] for pair in ratios) for index in (0, 1))
    print(f"{size}, {rows} rows, prompts of {options.length}: prefill {prefill:.2f}x, decode {decode:.2f}x")


if __name__ == "__main__":
    main()
