"""Every setting: frozen dataclasses for sections and commands, their checks, and YAML in and out. Never imports jax."""
