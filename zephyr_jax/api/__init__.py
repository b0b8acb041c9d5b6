"""The public Python API: what `import zephyr_jax as zj` offers, see docs/python-api.md."""
