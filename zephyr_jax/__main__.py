"""`python -m zephyr_jax` is `zephyr-jax`."""

from zephyr_jax.cli import main

if __name__ == "__main__":
    main()
