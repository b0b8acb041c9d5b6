"""Names of the models whose samples a report compares."""

from dataclasses import replace
from pathlib import Path

from etils import epath

from tests.checkpoint.adapters import query_adapter
from tests.methods.small import sft_config
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.report.run_record import RunRecord
from zephyr_jax.report.samples import _earlier_models


def earlier(model: Path, adapter: Path | None, folder: Path) -> dict[str, tuple[str, str | None]]:
    """Path and adapter of the models before a run that was started from these."""
    config = sft_config(model, folder / "rows.jsonl", folder / "run")
    config = replace(config, model=replace(config.model, adapter=adapter and str(adapter)))
    run = RunRecord({"made_by": "sft", "output": config.output, "parent": find_model(config.model).record})
    models = _earlier_models(config, run, epath.Path(folder / "run"))
    return {name: (options.path, options.adapter) for name, options in models.items()}


def test_an_adapter_is_in_the_name_of_what_a_run_started_from(tiny_model: Path, tmp_path: Path) -> None:
    """The samples under the name of the base are those of the base alone, however the adapter is given."""
    adapter = query_adapter(tiny_model, tmp_path / "ad")
    base, together = f"base ({tiny_model.name})", f"base ({tiny_model.name}) + ad"
    alone = (str(tiny_model), None)
    assert earlier(tiny_model, None, tmp_path) == {base: alone}
    assert earlier(tiny_model, adapter, tmp_path) == {base: alone, together: (str(tiny_model), str(adapter))}
    assert earlier(adapter, None, tmp_path) == {base: alone, together: (str(adapter), None)}
    second = query_adapter(tiny_model, tmp_path / "two")
    stacked = (str(adapter), str(second))
    assert earlier(adapter, second, tmp_path) == {base: alone, f"{together} + two": stacked}
