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

NOTEBOOK = Path(__file__).parents[2] / "launch" / "colab.ipynb"
SMALL = "CHATS, PREFERENCES, PLAN = 240, 320, 'none'"
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
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


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
    before, *_, after = held_out(folder / "runs" / "first-sft")
    assert before["step"] == 0
    assert after["eval/loss"] < 0.5 * before["eval/loss"]


def test_dpo_starts_at_ln_2_and_learns(folder: Path) -> None:
    before, *_, after = held_out(folder / "runs" / "first-dpo")
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


def test_the_export_is_a_model_of_its_own(folder: Path) -> None:
    """Weights and tokenizer are there, and the weights are not the base's."""
    exported = folder / "first"
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= {path.name for path in exported.iterdir()}
    weights, base = (load_file(each / "model.safetensors") for each in (exported, folder / "tiny"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert weights[name].shape == base[name].shape
    assert abs(weights[name] - base[name].astype("float32")).max() > 1e-3


def test_a_run_shows_tables_pictures_and_no_progress_bars(folder: Path) -> None:
    notebook = read(folder / "executed.ipynb")
    assert pictures(notebook) == 2
    tables = [
        output["data"]["text/markdown"] for output in outputs(notebook) if "text/markdown" in output.get("data", {})
    ]
    assert len(tables) == 2
    assert all(f"| {name} |" in table for name in ("base", "dSFT", "dSFT + dDPO") for table in tables)
    assert not re.search(r"\x1b\[(\?25|2K|1A)", printed(notebook))


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
