"""`zephyr-jax evaluate table`: the paper's tables with measured results."""

from zephyr_jax.config.benchmarks import TableConfig
from zephyr_jax.evaluate.paper_table import as_csv, markdown, measured, published, scores_picture
from zephyr_jax.storage.files import open_path, write_atomic


def table(config: TableConfig) -> str:
    """The tables as Markdown; with an `output`, also files. Raises InputError."""
    results = [*published(), *(measured(config.results) if config.results else [])]
    text = markdown(results)
    if config.output:
        out = open_path(config.output)
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "table.md", text + "\n")
        write_atomic(out / "table.csv", as_csv(results))
        write_atomic(out / "table.svg", scores_picture(results))
    return text


def main(config: TableConfig, command: str) -> str:
    """`zephyr-jax evaluate table`."""
    return table(config)
