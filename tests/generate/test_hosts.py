"""Several real processes over loopback answer what one answers, bit for bit, and go on where others stopped."""

import json
import logging
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from tests.conftest import write_rows
from tests.gcs import Gcs
from tests.methods.hosts import PATIENCE, processes, run_all, sft_words
from zephyr_jax.cli import main
from zephyr_jax.demo.corpus import conversations
from zephyr_jax.errors import InputError
from zephyr_jax.generate.host_answers import divide
from zephyr_jax.storage.journal import Journal

COUNT = 13
"""Prompts; no number of processes below divides them."""


def words(model: Any, output: Any, max_new_tokens: int = 12) -> list[str]:
    """Sampled answers to prompts of several lengths, two of which are the same."""
    prompts = [
        "Name a fruit.",
        *("Say " + "hello and goodbye, " * index for index in range(COUNT - 2)),
        "Name a fruit.",
    ]
    return [
        *f"generate --model.path {model} --output {output} --max_new_tokens {max_new_tokens}".split(),
        *["--temperature", "0.9", "--top_p", "0.95", "--seed", "3", "--batch_size", "4", "--prompts"],
        *prompts,
    ]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, count: int, command: list[str]) -> None:
    """Run a command in this process, and Ctrl-C after `count` answers."""
    add, added = Journal.add, []

    def add_some(self: Journal, line: dict[str, Any]) -> None:
        if len(added) == count:
            raise KeyboardInterrupt
        added.append(line)
        add(self, line)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Journal, "add", add_some)
        main(command)


@pytest.fixture(scope="module")
def by_one(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The output of one process."""
    output = tmp_path_factory.mktemp("one") / "answers.jsonl"
    main(words(tiny_model, output))
    return output.read_bytes()


def test_two_processes_finish_what_one_began(
    tiny_model: Path, tmp_path: Path, by_one: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of one process; an answer of the first start is not generated again; process 0 alone prints."""
    output = tmp_path / "out" / "answers.jsonl"
    output.parent.mkdir()
    interrupt_after(monkeypatch, 4, words(tiny_model, output))
    assert [file.name for file in output.parent.iterdir()] == ["answers.jsonl.part"]
    with processes(2, [words(tiny_model, output)] * 2, tmp_path) as started:
        results = [process.communicate(timeout=PATIENCE) for process in started]
        assert [process.returncode for process in started] == [0, 0], results
    assert output.read_bytes() == by_one
    assert [file.name for file in output.parent.iterdir()] == ["answers.jsonl"]
    assert [int(re.findall(r"generated (\d+) samples", log)[0]) for _, log in results] == [5, 4]
    assert [printed.count("> Say hello") for printed, _ in results] == [COUNT - 3, 0]


def test_one_process_finishes_what_several_left(
    tiny_model: Path, tmp_path: Path, by_one: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Journals of processes that are gone count, also where two have one answer; those of other work are refused."""
    output = tmp_path / "answers.jsonl"
    interrupt_after(monkeypatch, 8, words(tiny_model, output))
    header, *lines = Path(f"{output}.part").read_text().splitlines(keepends=True)
    for name, part in {"": lines[:2], "-1": lines[2:5], "-3": lines[4:]}.items():
        Path(f"{output}.part{name}").write_text("".join([header, *part]))
    other = Path(f"{output}.part-12")
    other.write_text("".join([json.dumps({**json.loads(header), "seed": 4}) + "\n", lines[0]]))
    with pytest.raises(SystemExit):
        main(words(tiny_model, output))
    other.unlink()
    with caplog.at_level(logging.INFO):
        main(words(tiny_model, output))
    assert output.read_bytes() == by_one
    assert re.findall(r"generated (\d+) samples", caplog.text) == [str(COUNT - 8)]
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


def work(finished: list[int], count: int, **header: Any) -> bytes:
    """What a process sends before it starts."""
    mask = np.zeros(count, bool)
    mask[finished] = True
    return json.dumps({"header": header, "finished": np.packbits(mask).tobytes().hex()}).encode()


def test_every_answer_has_one_owner() -> None:
    """One that has it; what is missing is dealt out evenly, along the prompts."""
    parts = [work([0, 9], 10, seed=1), work([], 10, seed=1), work([0, 4], 10, seed=1)]
    assert divide(parts, 10).tolist() == [0, 0, 1, 2, 2, 0, 1, 2, 0, 0]
    assert divide([work([], 9, seed=1)], 9).tolist() == [0] * 9


def test_hosts_with_other_work_are_refused() -> None:
    parts = [work([], 4, seed=1, prompts="a"), work([], 4, seed=1, prompts="a"), work([], 9, seed=1, prompts="b")]
    with pytest.raises(InputError, match="on hosts 0 and 2: prompts 'a' and 'b'. Start the same command on every host"):
        divide(parts, 4)


@pytest.mark.parametrize(("process", "sent"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGTERM)])
def test_a_process_that_is_stopped_ends_the_other_and_a_restart_goes_on(
    tiny_model: Path, tmp_path: Path, process: int, sent: signal.Signals
) -> None:
    """In the middle of generating; both journals are used."""
    output = tmp_path / "answers.jsonl"
    command = words(tiny_model, output, max_new_tokens=300)
    journals = [Path(f"{output}.part"), Path(f"{output}.part-1")]
    with processes(2, [command] * 2, tmp_path) as started:
        end = time.monotonic() + PATIENCE
        while not all(file.exists() and file.read_text().count("\n") > 2 for file in journals):
            assert time.monotonic() < end
            time.sleep(0.02)
        started[process].send_signal(sent)
        for one in started:
            one.communicate(timeout=60)
        assert started[process].returncode == (130 if sent == signal.SIGTERM else -sent)
        assert started[1 - process].returncode != 0
    assert not output.exists()
    left = sum(file.read_text().count("\n") - 1 for file in journals)
    with processes(2, [command] * 2, tmp_path) as started:
        logs = [one.communicate(timeout=PATIENCE)[1] for one in started]
    assert sum(int(count) for log in logs for count in re.findall(r"generated (\d+) samples", log)) == COUNT - left
    main(words(tiny_model, tmp_path / "one.jsonl", max_new_tokens=300))
    assert output.read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_hosts_without_a_shared_disk(tiny_model: Path, tmp_path: Path, by_one: bytes) -> None:
    """Each process has its own model and output folder: the answers come together in that of process 0."""
    folders = [tmp_path / "host-0", tmp_path / "host-1"]
    for folder in folders:
        folder.mkdir()
    with processes(2, [words(tiny_model, folder / "answers.jsonl") for folder in folders], tmp_path) as started:
        logs = [process.communicate(timeout=PATIENCE)[1] for process in started]
        assert [process.returncode for process in started] == [0, 0], logs
    assert [[file.name for file in folder.iterdir()] for folder in folders] == [["answers.jsonl"], []]
    assert (folders[0] / "answers.jsonl").read_bytes() == by_one


def test_two_processes_share_nothing_but_a_bucket(bucket: Gcs, tiny_model: Path, tmp_path: Path) -> None:
    """A run's checkpoint is read by every process onto its own devices; rows, journals and output are on gs://."""
    cloud = epath.Path("gs://bucket")
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 37, "train")))
    (cloud / rows.name).write_bytes(rows.read_bytes())
    main([*sft_words(tiny_model, rows, cloud / "run", steps=1), "--mesh.emulated_devices", "8"])
    command = f"generate --model {cloud}/run --data {cloud}/chats.jsonl --max_new_tokens 8 --output {cloud}".split()
    run_all(2, [*command[:-1], f"{cloud}/two.jsonl"], tmp_path)
    main([*command[:-1], f"{cloud}/one.jsonl"])
    assert (cloud / "two.jsonl").read_bytes() == (cloud / "one.jsonl").read_bytes()
    assert not [name for name in bucket.names("bucket") if "part" in name]
