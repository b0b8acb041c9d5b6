"""The log-prob head alone by chunk size, compiled for a TPU without hardware: memory, operations and HBM traffic.

    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu uv run --extra tpu python -m benchmarks.logprob_head --chip v5e --model Mistral-7B

A line is `token_logprob` with its gradient for one device. Temporaries are those of 8,192 columns. Operations and bytes are the
compiler's, per target token of one full chunk; their ratio is the arithmetic intensity, and a chip whose peak operations per byte
of HBM (`ridge`) are more than that waits for memory.
"""

from __future__ import annotations

import argparse
from itertools import product

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.attention_tpu import TOPOLOGIES
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.layers import SingleDevice
from zephyr_jax.objective.token_logprob import Chunking, token_logprob
from zephyr_jax.plan.presets import PRESETS, preset
from zephyr_jax.plan.topology import CHIPS, topology_devices

CHUNKS = (128, 256, 512, 1024, 2048, 4096)
COLUMNS = 8192


def compile_head(chip: str, config: ModelConfig, chunk: int, columns: int, trains: bool) -> jax.stages.Compiled:
    """Log-probs of `columns` targets and their gradient by hidden states and, if it trains, by the unembedding."""
    sharding = NamedSharding(Mesh(topology_devices(TOPOLOGIES[chip])[:1], ("device",)), PartitionSpec())
    chunking = Chunking(min(chunk, columns), save_logits=False, placement=SingleDevice())

    def loss(hidden: jax.Array, unembedding: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.sum(token_logprob(hidden, unembedding, tokens, mask, chunking, config))

    def array(*sizes: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=sharding)

    inputs = (
        array(1, columns, config.d_model),
        array(config.d_model, config.vocab_size),
        array(1, columns, dtype="int32"),
        array(1, columns, dtype="bool"),
    )
    gradient = jax.grad(loss, argnums=(0, 1) if trains else 0)
    return jax.jit(gradient).trace(*inputs).lower(lowering_platforms=("tpu",)).compile()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", nargs="+", default=["v5e"], choices=TOPOLOGIES)
    parser.add_argument("--model", nargs="+", default=["Mistral-7B"], choices=PRESETS)
    parser.add_argument("--chunk", nargs="+", type=int, default=CHUNKS)
    parser.add_argument("--frozen", action="store_true", help="adapters: the unembedding has no gradient")
    options = parser.parse_args()
    print(
        "| chip (ridge) | model | unembedding | chunk | temporaries, MiB | MFLOP a target | kB a target | intensity |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for chip, name, chunk in product(options.chip, options.model, options.chunk):
        memory = compile_head(chip, preset(name), chunk, COLUMNS, not options.frozen).memory_analysis()
        cost = compile_head(chip, preset(name), chunk, chunk, not options.frozen).cost_analysis()
        ridge = CHIPS[chip].flops / CHIPS[chip].bandwidth
        print(
            f"| {chip} ({ridge:.0f}) | {name} | {'frozen' if options.frozen else 'trains'} | {chunk:,} | "
            f"{memory.temp_size_in_bytes / 2**20:.0f} | {cost['flops'] / chunk / 1e6:.0f} | "
            f"{cost['bytes accessed'] / chunk / 1e3:.0f} | {cost['flops'] / cost['bytes accessed']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
