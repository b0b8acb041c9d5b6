"""Names of the models whose samples a report compares."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from etils import epath

from tests.checkpoint.adapters import query_adapter
from tests.methods.small import sft_config
from zephyr_jax.checkpoint.opened import inference_format
from zephyr_jax.checkpoint.provenance import write_record
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.checkpoint.run_adapter import adapter_record
from zephyr_jax.config.sections import BaseFormat
from zephyr_jax.model.lora import LoraSpec
from zephyr_jax.report.run_record import RunRecord
from zephyr_jax.report.samples import _earlier_models, _inference_options


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


@pytest.mark.parametrize(("base_format", "name"), [("bfloat16", "bfloat16"), ("nf4", "nf4-64")])
def test_samples_store_weights_as_the_run_did(
    base_format: BaseFormat, name: str, tiny_model: Path, tmp_path: Path
) -> None:
    """The block size of the run is a setting only where its base format has blocks."""
    config = sft_config(tiny_model, tmp_path / "rows.jsonl", tmp_path / "run")
    shutil.copytree(tiny_model, tmp_path / "run" / "model")
    facts = adapter_record(LoraSpec(rank=4, alpha=8, targets=("attention.query",)), base_format, 64, "new")
    record = {"made_by": "sft", "config": {"model": {"path": str(tiny_model)}}, "adapter": facts}
    write_record(epath.Path(tmp_path / "run"), record)
    for path in (config.output, str(tiny_model)):
        options = _inference_options(config, replace(config.model, path=path))
        assert inference_format(find_model(options), options).name == name
