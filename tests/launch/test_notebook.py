"""The notebook runs from top to bottom on a CPU, and the committed one shows what such a run shows."""

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from safetensors.numpy import load_file

from zephyr_jax.cli import parse
from zephyr_jax.config.tables import ReferenceConfig
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.plan.topology import CHIPS

NOTEBOOK = Path(__file__).parents[2] / "launch" / "colab.ipynb"
CONFIGS = NOTEBOOK.parents[1] / "configs"
SMALL = "CHATS, PREFERENCES, PLAN = 240, 320, False"
PATIENCE = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of the notebook leaves, with less data; a cell that fails raises here."""
    work = tmp_path_factory.mktemp("notebook")
    notebook = read()
    parameters(notebook).source += f"\n{SMALL}"
    execute(notebook, work)
    made = work / "zephyr-notebook"
    nbformat.write(notebook, made / "executed.ipynb")
    return made


def execute(notebook: NotebookNode, work: Path) -> None:
    """Run all cells in a folder, with a kernel that keeps its own files there too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # a dozen processes import the same packages
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "HF_HOME"):
            patch.setenv(name, str(work / name.lower()))
        patch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]), prepend=os.pathsep)
        resources = {"metadata": {"path": str(work)}}
        NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources=resources).execute()


def read(path: Path = NOTEBOOK) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def parameters(notebook: NotebookNode) -> NotebookNode:
    """The cell with the settings."""
    return tagged(notebook, "parameters")


def tagged(notebook: NotebookNode, tag: str) -> NotebookNode:
    """The only cell with a tag."""
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def choice() -> dict[str, Any]:
    """The names that the cell with the table of chips defines."""
    names: dict[str, Any] = {}
    exec(tagged(read(), "choice").source, names)
    return names


def codes(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in codes(notebook) for output in cell.outputs]


def pictures(notebook: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def printed(notebook: NotebookNode) -> str:
    """All text that a reader sees in the outputs."""
    shown = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs(notebook)]
    return "\n".join(shown)


def held_out(run: Path) -> list[dict[str, Any]]:
    """A run's evaluations, in order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval/loss" in line]


def test_sft_learns(folder: Path) -> None:
    before, *_, after = held_out(folder / "runs" / "first" / "sft")
    assert before["step"] == 0
    assert after["eval/loss"] < 0.5 * before["eval/loss"]


def test_dpo_starts_at_ln_2_and_learns(folder: Path) -> None:
    before, *_, after = held_out(folder / "runs" / "first" / "dpo")
    assert before["step"] == 0
    assert before["eval/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert after["eval/loss"] < before["eval/loss"] - 0.02
    assert after["eval/rewards/margins"] > 0.05
    assert after["eval/rewards/accuracies"] > 0.6


def test_more_held_out_pairs_are_right_afterwards(folder: Path) -> None:
    base, sft, dpo = json.loads((folder / "results.json").read_text()).values()
    assert dpo["accuracy"] > base["accuracy"] + 0.05
    assert dpo["margin"] > sft["margin"] + 1
    assert base["pairs"] == sft["pairs"] == dpo["pairs"] == 128


def test_all_models_answer_the_same_requests(folder: Path) -> None:
    base, sft, dpo = (result["answers"] for result in json.loads((folder / "results.json").read_text()).values())
    prompts = [answer["prompt"] for answer in base]
    assert len(prompts) == 64
    assert prompts == [answer["prompt"] for answer in sft] == [answer["prompt"] for answer in dpo]
    assert sum(answer["ended"] for answer in sft) > 32


def test_the_export_is_an_adapter_with_its_base(folder: Path) -> None:
    """Two trained matrices of rank 8 for each of seven projections of four layers; the config names the base."""
    exported = folder / "runs" / "first" / "export"
    assert {"adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in exported.iterdir()
    }
    weights = load_file(exported / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 4
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    first, second = weights[f"{prefix}.lora_A.weight"], weights[f"{prefix}.lora_B.weight"]
    assert (first.shape, second.shape) == ((8, 128), (352, 8))
    assert abs(second).max() > 1e-3
    config = json.loads((exported / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (8, str(folder / "tiny"))


def test_a_run_shows_tables_pictures_and_no_progress_bars(folder: Path) -> None:
    notebook = read(folder / "executed.ipynb")
    assert pictures(notebook) == 2
    tables = [
        output["data"]["text/markdown"] for output in outputs(notebook) if "text/markdown" in output.get("data", {})
    ]
    assert len(tables) == 2
    assert all(f"| {name} |" in table for name in ("base", "dSFT", "dSFT + dDPO") for table in tables)
    assert not re.search(r"\x1b\[(\?25|2K|1A)", printed(notebook))


RUNTIMES = {
    ("cpu", "cpu", 1): ("tiny/qlora", None, ["--mesh.emulated_devices", "2"]),
    ("tpu", "TPU v5 lite", 1): ("colab/v5e-1", "v5e:1x1", []),
    ("tpu", "TPU v5e", 1): ("colab/v5e-1", "v5e:1x1", []),
    ("tpu", "TPU v6 lite", 1): ("colab/v6e-1", "v6e:1x1", []),
    ("tpu", "TPU v5 lite", 8): ("colab/v5e-8", "v5e:2x4", []),
    ("tpu", "TPU v2", 8): ("colab/v2-8", "v2:2x2", []),
    ("tpu", "TPU v3", 8): ("colab/v2-8", "v3:2x2", []),
    ("tpu", "TPU v4", 4): ("colab/v5e-8", None, []),
    ("tpu", "TPU v5", 1): ("colab/v5e-1", None, ["--batch.microbatch_rows", "1"]),
    ("gpu", "NVIDIA L4", 1): ("colab/v5e-1", None, ["--batch.microbatch_rows", "1"]),
    ("gpu", "Tesla T4", 2): (
        "colab/v5e-1",
        None,
        ["--model.compute_dtype", "float32", "--batch.microbatch_rows", "2"],
    ),
    ("tpu", "TPU v5 lite", 1, "SmolLM2-135M"): ("colab/smollm2-135m", None, []),
    ("tpu", "TPU v3", 8, "SmolLM2-135M"): ("colab/smollm2-135m", None, ["--model.compute_dtype", "float32"]),
    ("tpu", "TPU v6 lite", 1, "tiny"): ("tiny/qlora", None, []),
}
"""Platform, kind and number of devices, chosen model -> card, topology of `plan`, options."""


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda runtime: "-".join(map(str, runtime)))
def test_a_runtime_gets_the_card_of_its_chip(runtime: tuple[Any, ...]) -> None:
    """Law: the default is Mistral-7B on a TPU or GPU and `tiny` on a CPU; every stage reads card and options."""
    card, topology, options = chosen = choice()["choose"](*runtime)
    assert chosen == RUNTIMES[runtime]
    assert topology is None or topology.partition(":")[0] in CHIPS
    sft, dpo = (["--config", str(CONFIGS / f"{card}-{stage}.yaml"), *options] for stage in ("sft", "dpo"))
    parsed = parse(SftConfig, "sft", sft), parse(ReferenceConfig, "reference", dpo), parse(DpoConfig, "dpo", dpo)
    assert not [config for config in parsed if config.batch.rows_per_forward % runtime[2]]


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (("cpu", "cpu", 1, "Mistral-7B QLoRA"), "a TPU or GPU"),
        (("tpu", "TPU v4", 16), "got 16"),
        (("gpu", "NVIDIA L4", 3), "got 3"),
    ],
)
def test_a_runtime_that_cannot_train_the_model_is_refused(runtime: tuple[Any, ...], message: str) -> None:
    """Law: before anything is downloaded."""
    with pytest.raises(ValueError, match=message):
        choice()["choose"](*runtime)


def test_the_choice_offers_the_models_that_it_knows() -> None:
    """Law: the form's models are those of the table; `by runtime` is the default."""
    offered = re.search(r'MODEL = "(.*)"  # @param \[(.*)\]', parameters(read()).source)
    assert offered is not None and offered[1] == "by runtime"
    models = json.loads(f"[{offered[2]}]")
    cards = {model: choice()["choose"]("tpu", "TPU v5 lite", 1, model)[0] for model in models}
    assert cards == {
        "by runtime": "colab/v5e-1",
        "tiny": "tiny/qlora",
        "SmolLM2-135M": "colab/smollm2-135m",
        "Mistral-7B QLoRA": "colab/v5e-1",
    }


def test_a_command_that_fails_stops_the_notebook(tmp_path: Path) -> None:
    """The command says why, and the helper raises."""
    notebook = read()
    notebook.cells = [*codes(notebook)[:4], new_code_cell('zephyr("sft", "--model.pth", "tiny")')]
    with pytest.raises(CellExecutionError, match="ended with code 2"):
        execute(notebook, tmp_path)
    assert "model.path" in printed(notebook)


def test_the_committed_notebook_has_run() -> None:
    """Every cell, in order, without an error, and with pictures."""
    notebook = read()
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in codes(notebook)] == list(range(1, len(codes(notebook)) + 1))
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    assert pictures(notebook) == 2
    assert "evaluation: loss 0.6931" in printed(notebook)
    assert not re.search(r"\x1b\[(\?25|2K|1A)|Traceback|[Ww]arning", printed(notebook))
    assert NOTEBOOK.stat().st_size < 600_000


def test_colab_opens_it_on_a_tpu() -> None:
    metadata = read().metadata
    assert metadata.accelerator == "TPU"
    assert metadata.colab.name
    assert metadata.kernelspec.name == "python3"
    assert SMALL.split(",")[0] in parameters(read()).source  # the names that a test may set


def test_the_committed_notebook_names_no_machine() -> None:
    """No path, address or registry of where it ran."""
    text = NOTEBOOK.read_text()
    home = {str(Path.home()), str(NOTEBOOK.parents[1]), sys.prefix}
    assert not [path for path in home if len(path) > 1 and path in text]
    hosts = set(re.findall(r"https?://([^/\s\"\\)]+)", text))
    assert hosts <= {"arxiv.org"}
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp|usr|Users)/", text)
