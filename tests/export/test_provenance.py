"""Records of where weights come from: in runs and exports, as a chain, and as the page that the hub shows."""

import io
import json
import shlex
import subprocess
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from tests.conftest import write_rows
from zephyr_jax.cli import main
from zephyr_jax.demo.corpus import conversations, preferences

SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "GOOGLE_AUTH_TOKEN_FOR_TESTING")
CARDS = Path(__file__).parents[2] / "configs" / "tiny"


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SFT, then DPO, then export, two steps each; the run folders are beside the export."""
    folder = tmp_path_factory.mktemp("lineage")
    chats = write_rows(folder / "chats.jsonl", list(conversations(0, 16, "train")))
    pairs = write_rows(folder / "pairs.jsonl", list(preferences(0, 12, "train")))
    common = shlex.split(
        "--mesh.emulated_devices 8 --report.no_progress_bar --report.num_samples 0 --batch.microbatch_rows 8 "
        "--schedule.epochs 1 --schedule.max_steps 2 --schedule.evaluate_every 0 --data.max_length 256"
    )
    sft = f"sft --config {CARDS}/sft.yaml --model.path {tiny_model} --data.path {chats} --output {folder}/sft --seed 7".split()
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRETS:
            patch.setenv(name, f"secret-{name}")
        make(folder, pairs, [*sft, "--batch.rows", "None", "--batch.examples", "8", "--data.row_length", "256"], common)
    return folder / "hf"


def make(folder: Path, pairs: Path, sft: list[str], common: list[str]) -> None:
    main([*sft, *common])
    dpo = (
        f"--config {CARDS}/dpo.yaml --model.path {folder}/sft --data.path {pairs} --data.eval_path {pairs} --output {folder}/dpo "
        f"--reference {folder}/reference --batch.rows None --batch.examples 6 --data.row_length 512 --data.max_prompt_length 64"
    ).split()
    main(["reference", *dpo, *common])
    main(["dpo", *dpo, *common])
    main(f"export --model.path {folder}/dpo --output {folder}/hf".split())


def test_no_key_is_in_any_file(exported: Path) -> None:
    """Law: what the environment holds of keys and tokens is in no run, table, record or export."""
    files = [path for path in exported.parent.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if b"secret-" in path.read_bytes()]


def record(folder: Path) -> dict:
    return json.loads((folder / "provenance.json").read_text())


def test_an_export_holds_the_whole_chain(exported: Path, tiny_model: Path) -> None:
    """export <- dpo <- sft <- base, each with what it was made of; no file outside the export is needed."""
    export = record(exported)
    dpo, sft = export["parent"], export["parent"]["parent"]
    assert [each["made_by"] for each in (export, dpo, sft)] == ["export", "dpo", "sft"]
    assert sft["parent"] == {"path": str(tiny_model), "revision": None, "architecture": "mistral"}
    assert (sft["config"]["seed"], dpo["config"]["dpo"]["beta"]) == (7, 0.1)
    assert sft["data"].startswith("16 examples, content ")
    assert dpo["reference"].startswith("weights ")
    assert (sft["steps"], dpo["steps"]) == (2, 2)
    assert export["versions"]["jax"] == metadata.version("jax")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=CARDS, check=True
    ).stdout.strip()
    assert export["commit"].removesuffix("+") == commit


def test_every_checkpoint_carries_the_record(exported: Path) -> None:
    saved = list((exported.parent / "dpo" / "checkpoints").glob("*/progress/metadata"))
    assert saved
    for each in saved:
        assert json.loads(each.read_text())["provenance"]["parent"]["made_by"] == "sft"


def test_lineage_shows_the_chain_oldest_first(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["lineage", "--path", str(exported)])
    said = capsys.readouterr().out
    places = [said.index(each) for each in ("base: ", "└─ sft: ", "└─ dpo: ", "└─ export: ")]
    assert places == sorted(places)
    assert "chats.jsonl (train)" in said
    assert "seed: 7" in said
    assert "data.max_prompt_length: 64" in said


def test_lineage_of_foreign_weights_is_refused(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["lineage", "--path", str(tiny_model)])
    assert stopped.value.code == 2
    assert "has no provenance.json" in capsys.readouterr().err


def test_the_page_is_what_the_hub_shows(exported: Path) -> None:
    """YAML on top that parses, then settings of each stage, the last evaluation, and versions."""
    _, front, text = (exported / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["library_name"] == "transformers"
    assert head["tags"] == ["zephyr-jax", "alignment", "sft", "dpo"]
    assert "base_model" not in head  # a folder is no hub id
    for expected in (
        "| beta | 0.1 |",
        "| seed | 7 |",
        "## Held-out metrics",
        "| rewards/accuracies | ",
        'from_pretrained("hf")',
    ):
        assert expected in text


def test_the_same_export_again_does_nothing_and_another_is_refused(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So a job may be run again from its first line; float32 in the place of bfloat16 is something else."""
    before = {path.name: path.stat().st_mtime_ns for path in exported.iterdir()}
    words = f"export --model.path {exported.parent}/dpo --output {exported}".split()
    main(words)
    assert {path.name: path.stat().st_mtime_ns for path in exported.iterdir()} == before
    with pytest.raises(SystemExit):
        main([*words, "--dtype", "float32"])
    assert "already exists" in capsys.readouterr().err


def test_what_was_exported_goes_on_with_its_history(exported: Path, tmp_path: Path) -> None:
    """Weights that are exported once more keep the links behind them."""
    main(f"export --model.path {exported} --output {tmp_path}/again".split())
    assert record(tmp_path / "again")["parent"]["parent"]["made_by"] == "dpo"


def test_an_archive_of_the_project_knows_its_commit(tmp_path: Path) -> None:
    """What `launch/tpu_vm.sh install` sends to hosts has no .git."""
    root = CARDS.parents[1]
    if not (root / ".git").exists():
        pytest.skip("this is no checkout")
    archive = subprocess.run(
        ["git", "archive", "HEAD", "launch/commit"], capture_output=True, cwd=root, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(tmp_path, filter="data")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=root, check=True).stdout
    assert (tmp_path / "launch" / "commit").read_text() == head
