"""What a run needs of its disk, and runs that keep only their final weights."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from tests.conftest import write_rows
from tests.methods.small import sft_config
from zephyr_jax.checkpoint import disk_space
from zephyr_jax.checkpoint.disk_space import check_disk_space
from zephyr_jax.checkpoint.steps import list_steps, read_progress
from zephyr_jax.cli import main
from zephyr_jax.config.training_sections import ScheduleOptions
from zephyr_jax.demo.corpus import conversations
from zephyr_jax.errors import InputError, Stopped
from zephyr_jax.train import fit as training
from zephyr_jax.train_command import train

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


def shapes(count: int, dtype: str = "float32") -> dict[str, jax.ShapeDtypeStruct]:
    return {"w": jax.ShapeDtypeStruct((count,), np.dtype(dtype))}


MISTRAL = 7_241_732_096
CASES = [
    ({}, True, 4),
    ({}, False, 3),
    ({"keep_best": 3}, True, 6),
    ({"keep_last": 5, "keep_best": 0}, True, 6),
    ({"save_every": 0}, True, 1),
    ({"max_steps": 150}, True, 2),
    ({"max_steps": 250, "keep_best": 0}, True, 3),
    ({"save": "weights"}, True, 1 / 6),
]


@pytest.mark.parametrize(("settings", "evaluates", "copies"), CASES)
def test_space_is_that_of_the_kept_copies_and_one_more(
    settings: dict, evaluates: bool, copies: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 weights and two moments, 12 bytes a parameter; bfloat16 weights alone take 2."""
    parameters = shapes(MISTRAL)
    state = {"parameters": parameters, "mu": shapes(MISTRAL), "nu": shapes(MISTRAL)}
    needed = round(copies * 12 * MISTRAL)
    schedule = ScheduleOptions(**settings)
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path, free=free: Usage(10**15, 0, free))
        run = epath.Path(tmp_path / "new" / "run")
        if fits:
            check_disk_space(run, schedule, state, parameters, evaluates)
            continue
        with pytest.raises(InputError) as error:
            check_disk_space(run, schedule, state, parameters, evaluates)
        message = str(error.value)
        assert f"expected {needed / GIB:,.1f} GiB" in message and f"got {free / GIB:,.1f} GiB" in message
        assert ("schedule.keep_last" in message) is (schedule.save == "state")
    check_disk_space(epath.Path("gs://bucket/run"), schedule, state, parameters, evaluates)


def test_saved_steps_take_no_more_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: Usage(100, 0, 9))
    run = epath.Path(tmp_path)
    check_disk_space(run, ScheduleOptions(), shapes(2), shapes(2), evaluates=False, num_saved=2)
    with pytest.raises(InputError, match=r"\(1 x "):
        check_disk_space(run, ScheduleOptions(), shapes(3), shapes(3), evaluates=False, num_saved=2)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "chats.jsonl", list(conversations(0, 48, "train")))


def test_a_full_disk_ends_a_run_before_it_begins(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before rows are read, and nothing is written."""
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: Usage(10**9, 0, 10**6))
    config = sft_config(tiny_model, rows.with_name("missing.jsonl"), tmp_path / "run")
    with pytest.raises(
        InputError,
        match=r"checkpoints of .*/run: expected [\d.]+ MiB of free disk space \(3 x .* lower schedule.keep_last",
    ):
        train(config)
    assert not (tmp_path / "run").exists()


def saving_weights(model: Path, rows: Path, run: Path, **schedule: int):
    config = sft_config(model, rows, run, epochs=1)
    return replace(config, schedule=replace(config.schedule, save="weights", **schedule))


@pytest.fixture(scope="module")
def both(tiny_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training twice: `state` keeps everything, `weights` only the final weights."""
    out = tmp_path_factory.mktemp("saving")
    train(sft_config(tiny_model, rows, out / "state", epochs=1))
    train(saving_weights(tiny_model, rows, out / "weights"))
    return out


def test_only_the_final_weights_are_kept(both: Path) -> None:
    """`save: weights` keeps bfloat16, a sixth of the bytes before compression, with the same curve."""
    (last,) = list_steps(epath.Path(both / "weights"))
    assert last == list_steps(epath.Path(both / "state"))[-1]
    losses = [
        [json.loads(line)["loss"] for line in (both / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("state", "weights")
    ]
    assert losses[0] == losses[1]
    sizes = [
        sum(file.stat().st_size for file in (both / name / "checkpoints" / str(last)).rglob("*") if file.is_file())
        for name in ("state", "weights")
    ]
    assert sizes[1] < sizes[0] / 4
    assert not (both / "weights" / "checkpoints" / str(last) / "optimizer").exists()


def test_everything_but_resuming_works_with_them(
    both: Path, tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The export in bfloat16 is that of the full state to the bit; the same command reports that the run is finished."""
    for name in ("state", "weights"):
        main(f"export --model.path {both}/{name} --output {tmp_path}/{name}".split())
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("state", "weights")]
    assert files[0] == files[1]
    main(f"evaluate --model {both}/weights --data.path {rows} --data.max_length 256".split())
    main(f"generate --model.path {both}/weights --prompts Hi --max_new_tokens 2".split())
    before = sorted(path.stat().st_mtime_ns for path in (both / "weights").rglob("*"))
    capsys.readouterr()
    train(saving_weights(tiny_model, rows, both / "weights"))
    assert "is finished at step" in (said := capsys.readouterr().err) and "no optimizer state" in said
    assert sorted(path.stat().st_mtime_ns for path in (both / "weights").rglob("*")) == before
    other = saving_weights(tiny_model, rows, both / "weights", max_steps=1)
    with pytest.raises(InputError, match="was started with other settings"):
        train(other)
    assert (
        read_progress(epath.Path(both / "weights"), list_steps(epath.Path(both / "weights"))[-1])["saved"] == "weights"
    )
    on = replace(saving_weights(both / "weights", rows, tmp_path / "on"), seed=1)
    train(on)  # another stage starts from them
    shutil.rmtree(tmp_path / "on")


def test_an_interrupted_run_saves_nothing(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Request:
        def __init__(self, grace: float) -> None: ...
        def __enter__(self) -> "Request":
            return self

        def __exit__(self, *_: object) -> None: ...
        def reached(self, done: int) -> bool:
            return done == 1

    monkeypatch.setattr(training, "StopRequest", Request)
    with pytest.raises(Stopped, match="stopped at step 1 of .* the same command starts over"):
        train(saving_weights(tiny_model, rows, tmp_path / "run"))
    assert not list_steps(epath.Path(tmp_path / "run"))
    monkeypatch.undo()
    train(saving_weights(tiny_model, rows, tmp_path / "run"))
    assert len(list_steps(epath.Path(tmp_path / "run"))) == 1


BEYOND = [(50, 1, "max_steps is 50, but 1 epoch of"), (50, 2, "2 epochs of"), (1, 1, "")]


@pytest.mark.parametrize(("most", "epochs", "said"), BEYOND)
def test_max_steps_beyond_the_data_are_reported(
    most: int, epochs: int, said: str, tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate ends at zero with the data."""
    config = saving_weights(tiny_model, rows, tmp_path / "run", max_steps=most, epochs=epochs)
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    err = capsys.readouterr().err
    assert ("the only step of the run has learning rate 0" in err) == (len(lines) == 1)
    if said:
        assert said in err and f"give {len(lines)} steps: the run and its learning rate schedule end" in err
        assert lines[-1]["step"] == len(lines) < most
    else:
        assert "learning rate schedule end" not in err and len(lines) == 1
