"""Throughput of a step: model FLOPs utilization (MFU), device memory, and durations as text."""

import math

import jax

from zephyr_jax.model.config import ModelConfig

PEAK_FLOPS = {
    # Dense bfloat16 FLOP/s of one JAX device, by prefix of its `device_kind`.
    # TPUs: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm (one page per version)
    "TPU v2": 23e12,  # a device is one of two cores
    "TPU v3": 61.5e12,  # a core
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6 lite": 918e12,  # Trillium
    "TPU v6e": 918e12,
    # GPUs: NVIDIA's data sheets, without sparsity
    "NVIDIA A100": 312e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
}
_GIB = 2**30


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a device; None for an unknown one."""
    known = [prefix for prefix in PEAK_FLOPS if device_kind.startswith(prefix)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def flops_per_token(config: ModelConfig, length: int, adapter_weights: int = 0, *, has_backward: bool = True) -> float:
    """Matmul FLOPs of the forward and backward pass per token, without recomputation (as MFU is defined).

    6 per trainable weight that is multiplied (the input embedding is a lookup): 2 forward, 2 for the gradient of its input and 2
    for its own. A frozen weight has no gradient, so 4. And 12 * layers * heads * head_dim per attended key.

    Args:
        config: The model.
        length: Tokens of a segment.
        adapter_weights: Trainable weights of a model that is frozen otherwise; 0: all weights train.
        has_backward: False for a forward pass alone: 2 per weight, and a third of attention's.
    """
    lookup = 0 if config.tie_embeddings else config.vocab_size * config.d_model
    weights = config.num_parameters - lookup
    attention = 2 * config.num_layers * config.num_heads * config.head_dim * keys_seen(config, length)
    if not has_backward:
        return 2 * (weights + adapter_weights + attention)
    return (4 if adapter_weights else 6) * weights + 6 * adapter_weights + 6 * attention


def keys_seen(config: ModelConfig, length: int) -> float:
    """Keys that a query of a segment of `length` tokens attends to, on average over queries and layers.

    Half of them, or less with a sliding window.
    """
    windows = [min(kind.window or length, length) for kind in config.layer_kinds]
    return sum(window - window**2 / (2 * length) for window in windows) / len(windows)


def mfu(tokens_per_second: float, flops: float, device_kind: str) -> float | None:
    """Model FLOPs utilization from 0 to 1; None for an unknown device.

    Args:
        tokens_per_second: Per device.
        flops: Of `flops_per_token`.
        device_kind: Of a JAX device.
    """
    peak = peak_flops(device_kind)
    return None if peak is None else tokens_per_second * flops / peak


def peak_memory_gib() -> float | None:
    """Largest peak memory of this process's devices in GiB; None where the backend does not report it (CPU)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [device_stats["peak_bytes_in_use"] for device_stats in stats if "peak_bytes_in_use" in device_stats]
    return max(peaks) / _GIB if peaks else None


def format_duration(seconds: float) -> str:
    """`45s`, `4m13s` or `1h02m`."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
