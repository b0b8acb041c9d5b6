"""MFU arithmetic, the step line and durations."""

import pytest

from zephyr_jax.plan.shape import MISTRAL_7B
from zephyr_jax.train.metrics import step_line
from zephyr_jax.train.throughput import flops_per_token, format_duration, mfu, peak_flops

VALUES = {
    "loss": 10.4231,
    "learning_rate": 2e-5,
    "grad_norm": 1.312,
    "padding": 0.018,
    "tokens_per_second": 8 * 53_266.0,
    "targets_per_second": 8 * 30_167.0,
    "step_time": 0.61,
    "mfu": 0.343,
    "peak_memory_gib": 22.12,
}


def test_the_step_line_has_rates_per_device_and_units() -> None:
    assert step_line(1, 416, VALUES, num_devices=8) == (
        "step 1/416 loss 10.42 lr 2.0e-05 grad_norm 1.31 step 0.61s tok/s 53,266 (targets 30,167) mfu 34.3% mem 22.1GiB pad 1.8% "
        "eta 4m13s"
    )

    assert step_line(1, 416, VALUES, num_devices=8, estimate=False).endswith("pad 1.8%")


def test_the_step_line_has_the_headline_metrics_of_the_method() -> None:
    values = {**VALUES, "rewards/margins": 0.25, "kl": 1.5}
    assert "loss 10.42 kl 1.5 lr" in step_line(1, 416, values, num_devices=8, headline=("kl", "absent"))


def test_unknown_metrics_are_left_out() -> None:
    known = {name: value for name, value in VALUES.items() if name not in ("mfu", "peak_memory_gib")}
    line = step_line(2, 2, known, num_devices=1)
    assert "mfu" not in line and "mem" not in line and line.endswith("eta 0s")


@pytest.mark.parametrize(("seconds", "text"), [(45.4, "45s"), (253, "4m13s"), (3720, "1h02m"), (float("inf"), "?")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_flops_are_six_per_multiplied_weight_plus_attention() -> None:
    """Mistral-7B: 7.24e9 weights, 0.13e9 of them the embedding; attention over 1,024 keys on average at 2,048 tokens."""
    weights = 6 * (MISTRAL_7B.num_parameters - 32_000 * 4096)
    assert flops_per_token(MISTRAL_7B, 2048) == weights + 12 * 32 * 4096 * 1024
    assert flops_per_token(MISTRAL_7B, 2048) / weights == pytest.approx(1.038, abs=1e-3)


def test_frozen_weights_cost_four_operations() -> None:
    """No gradient of their own, 2 operations less each; an adapter's weights cost 6, and attention what it did."""
    multiplied, full = MISTRAL_7B.num_parameters - 32_000 * 4096, flops_per_token(MISTRAL_7B, 2048)
    assert flops_per_token(MISTRAL_7B, 2048, 1_000_000) == full - 2 * multiplied + 6_000_000
    assert flops_per_token(MISTRAL_7B, 2048, has_backward=False) == full / 3


def test_mfu_is_the_share_of_the_peak() -> None:
    assert mfu(1000.0, 197e9 / 2, "TPU v5 lite") == pytest.approx(0.5)
    assert mfu(1000.0, 1e9, "cpu") is None


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("cpu", None),
    ],
)
def test_the_longest_known_prefix_names_the_chip(kind: str, peak: float | None) -> None:
    assert peak_flops(kind) == peak
