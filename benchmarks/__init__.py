"""Benchmarks of zephyr_jax against other trainers. Start with ``python -m benchmarks.peers --help``."""
