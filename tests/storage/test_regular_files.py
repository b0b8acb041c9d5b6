"""Pipes and devices where a file should be: each entrance refuses them, as reading one may never end."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from zephyr_jax.cli import main
from zephyr_jax.errors import InputError
from zephyr_jax.evaluate.alpaca_eval.format import read_json_rows
from zephyr_jax.evaluate.alpaca_eval.pairwise import read_judge_prompt
from zephyr_jax.evaluate.mt_bench.format import read_benchmark
from zephyr_jax.storage.files import check_regular

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    return path


def test_what_is_regular(tmp_path: Path, fifo: Path) -> None:
    """Files, folders, links to them and paths that are not there pass."""
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "to_pipe").symlink_to(fifo)
    for path in (file, tmp_path, tmp_path / "link", tmp_path / "nowhere", "gs://bucket/x", "\0"):
        check_regular(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        for path in (fifo, tmp_path / "to_pipe", tmp_path / "s", "/dev/null", "/dev/zero"):
            with pytest.raises(InputError, match="is not a regular file"):
                check_regular(path)


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "sft data": lambda model, pipe: [
        "sft",
        "--model",
        str(model),
        "--data.path",
        str(pipe),
        "--batch.rows",
        "8",
        "--output",
        str(pipe.parent / "o"),
    ],
    "sft card": lambda model, pipe: ["sft", "--config", str(pipe)],
    "preview": lambda model, pipe: ["preview", "--model", str(model), "--data", str(pipe)],
    "generate": lambda model, pipe: ["generate", "--model", str(model), "--data", str(pipe)],
    "template": lambda model, pipe: ["generate", "--model", str(model), "--prompts", "a", "--chat_template", str(pipe)],
    "prepare": lambda model, pipe: ["prepare", "ultrachat", "--data", str(pipe), "--output", str(pipe.parent / "out")],
    "replay": lambda model, pipe: [
        "evaluate",
        "mt-bench",
        "--judgments",
        str(pipe),
        "--output",
        str(pipe.parent / "out"),
    ],
    "device": lambda model, pipe: ["generate", "--model", str(model), "--data", "/dev/zero"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_commands_refuse_pipes(
    tiny_model: Path, fifo: Path, capsys: pytest.CaptureFixture[str], command: Callable[[Path, Path], list[str]]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command(tiny_model, fifo))
    assert ended.value.code == 2
    assert "is not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_checkpoints_with_pipes_are_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", str(folder), "--prompts", "a"])
    assert ended.value.code == 2
    assert f"{name} is not a regular file" in capsys.readouterr().err


def test_folders_of_rows_and_benchmarks_with_pipes_are_refused(tmp_path: Path, fifo: Path) -> None:
    """Answers, questions and a judge's prompt."""
    os.mkfifo(tmp_path / "question.jsonl")
    readers: list[Callable[[], object]] = [
        lambda: read_json_rows(fifo, "answers"), lambda: read_benchmark(str(tmp_path)), lambda: read_judge_prompt(str(fifo), 1),
    ]  # fmt: skip
    for read in readers:
        with pytest.raises(InputError, match="is not a regular file"):
            read()


def test_a_split_that_is_a_pipe_is_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "test.jsonl").write_text(json.dumps(ROW) + "\n")
    os.mkfifo(folder / "train.jsonl")
    with pytest.raises(SystemExit):
        main(["preview", "--model", str(tiny_model), "--data", str(folder)])
    assert "is not a regular file" in capsys.readouterr().err
