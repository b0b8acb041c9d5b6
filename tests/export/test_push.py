"""Upload of an export to the hub: a real HTTP server on loopback stands in for it."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub import READER, WRITER, Hub
from zephyr_jax.checkpoint.hf.folder import open_folder
from zephyr_jax.cli import main
from zephyr_jax.errors import InputError
from zephyr_jax.export.model_card import model_card
from zephyr_jax.export.push import commit_message, push

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # huggingface_hub's own call
REPOSITORY = "lab/my-zephyr"
PUSH = """
import sys
from zephyr_jax import log
from zephyr_jax.export.push import push
log.configure()
push(sys.argv[1], sys.argv[2])
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `export` leaves it: record, model card, and weights (random bytes, which the hub does not read)."""
    folder = tmp_path_factory.mktemp("push") / "hf"
    folder.mkdir()
    record = {"made_by": "export", "output": "hf", "versions": {}, "parent": {"path": "base"}}
    (folder / "provenance.json").write_text(json.dumps(record))
    (folder / "README.md").write_text(model_card("hf", record, {}))
    for index in range(1, 5):
        (folder / f"model-0000{index}-of-00004.safetensors").write_bytes(os.urandom(10_000))
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of the export for one test."""
    return Path(shutil.copytree(exported, tmp_path / "hf"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_export_with_push_to_uploads_the_folder(
    hub: Hub, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The repository is private, holds the files of the folder, and its model card loads the repository."""
    main(["export", "--model.path", str(tiny_model), "--output", str(tmp_path / "hf"), "--push_to", REPOSITORY])
    repository = hub.state.repositories[REPOSITORY]
    assert repository.private
    assert repository.files == contents(tmp_path / "hf")
    assert repository.commits == ["Export of model"]
    card = repository.files["README.md"].decode()
    assert f'from_pretrained("{REPOSITORY}")' in card
    assert f"zephyr-jax chat  --model.path {REPOSITORY}\n" in card
    assert f"{hub.url}/{REPOSITORY}/commit/" in capsys.readouterr().err


def test_a_repository_downloads_as_the_folder(
    hub: Hub, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, tokenizer, template and provenance: a model by its hub id is the model by its folder."""
    main(["export", "--model.path", str(tiny_model), "--output", str(tmp_path / "hf"), "--push_to", REPOSITORY])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    downloaded = Path(str(open_folder(REPOSITORY)))
    assert downloaded.is_relative_to(tmp_path / "cache")
    assert contents(downloaded) == contents(tmp_path / "hf")


def test_only_changes_are_sent_again(hub: Hub, folder: Path) -> None:
    """A second upload of the same export is no commit; a changed file is one commit, without the weights."""
    push(str(folder), REPOSITORY)
    sent = hub.uploads()
    assert sorted(sent) == sorted(set(sent))
    push(str(folder), REPOSITORY)
    assert len(hub.state.repositories[REPOSITORY].commits) == 1
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMore.\n")
    push(str(folder), REPOSITORY)
    assert len(hub.state.repositories[REPOSITORY].commits) == 2
    assert hub.state.repositories[REPOSITORY].files == contents(folder)
    assert hub.uploads() == sent


def test_stale_weights_are_deleted_and_hidden_files_stay_here(hub: Hub, folder: Path) -> None:
    """Loaders would read the weights of an earlier upload, too; a file that the export does not write stays."""
    push(str(folder), REPOSITORY)
    files = hub.state.repositories[REPOSITORY].files
    files["model-00009-of-00009.safetensors"] = files["chart.png"] = b"old"
    (folder / ".env").write_text("secret")
    push(str(folder), REPOSITORY)
    after = hub.state.repositories[REPOSITORY].files
    assert after.keys() - contents(folder).keys() == {"chart.png"}
    assert ".env" not in after


def test_a_killed_upload_continues_with_the_missing_files(
    hub: Hub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: the same command sends only what the hub lacks. The token is in no output, file or request body."""
    first, release = threading.Lock(), threading.Event()

    def hang_after_one(method: str, path: str) -> int | None:
        if method != "PUT" or first.acquire(blocking=False):
            return None
        release.wait(60)
        return 503

    hub.state.fault = hang_after_one
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": WRITER,
    }
    command = [sys.executable, "-c", PUSH, str(folder), REPOSITORY]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until(lambda: len(hub.state.objects) == 1)
        finally:
            process.kill()
            process.wait()
            release.set()
    (done,) = hub.state.objects
    hub.state.fault = None
    main(["export", "--output", str(folder), "--push_to", REPOSITORY])
    assert hub.uploads().count(done) == 1
    assert hub.state.repositories[REPOSITORY].files == contents(folder)
    captured = capsys.readouterr()
    assert "uploading" in (tmp_path / "log").read_text() and "uploaded" in captured.err
    written = [captured.out, captured.err, *(data.decode(errors="replace") for data in contents(tmp_path).values())]
    assert not [text for text in written if WRITER in text]
    assert not [body for body in hub.state.bodies if WRITER.encode() in body]


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_public_is_asked_for(hub: Hub, folder: Path) -> None:
    """`public` creates a public repository; without it, one that is public is refused before anything is sent."""
    push(str(folder), REPOSITORY, public=True)
    assert not hub.state.repositories[REPOSITORY].private
    (folder / "README.md").write_text("changed")
    with pytest.raises(
        InputError, match="expected a private repository, got lab/my-zephyr, which is public. Pass `--public`"
    ):
        push(str(folder), REPOSITORY)
    assert len(hub.state.repositories[REPOSITORY].commits) == 1


def test_public_does_not_change_a_private_repository(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(str(folder), REPOSITORY)
    push(str(folder), REPOSITORY, public=True)
    assert hub.state.repositories[REPOSITORY].private
    assert "stays private" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "repository", "expected"),
    [
        ("hf_unknown", REPOSITORY, "expected a valid token, got one that the hub rejects"),
        (READER, REPOSITORY, "the hub denies write access"),
        (WRITER, "others/my-zephyr", "the hub denies write access"),
    ],
    ids=["unknown token", "read token", "foreign owner"],
)
def test_refusals_name_the_fix(
    token: str, repository: str, expected: str, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Problem, fix and the command that continues; the token is not in the message."""
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=expected) as refused:
        push(str(folder), repository)
    assert f"`zephyr-jax export --output {folder} --push_to {repository}` continues" in str(refused.value)
    assert token not in str(refused.value)


def test_a_refused_commit_keeps_the_export(hub: Hub, folder: Path) -> None:
    """The hub rejects the commit: the folder stays, and the next upload sends no weights again."""
    hub.state.fault = lambda method, path: 400 if "/commit/" in path else None
    with pytest.raises(InputError, match="the hub rejected the request, status 400 .*by the test"):
        push(str(folder), REPOSITORY)
    sent, hub.state.fault = hub.uploads(), None
    push(str(folder), REPOSITORY)
    assert hub.uploads() == sent
    assert hub.state.repositories[REPOSITORY].files == contents(folder)


def test_no_network(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.__exit__()
    before = contents(folder)
    with pytest.raises(InputError, match=f"cannot reach {hub.url}.* Check the network"):
        push(str(folder), REPOSITORY)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--output", "{}", "--push_to", "my-zephyr"], "expected OWNER/NAME of a hub repository"),
        (["--output", "{}", "--push_to", "lab/my/zephyr"], "expected OWNER/NAME of a hub repository"),
        (["--output", "{}", "--push_to", "lab/my--zephyr"], "expected OWNER/NAME of a hub repository"),
        (["--output", "{}", "--push_to", "lab/zephyr.git"], "expected OWNER/NAME of a hub repository"),
        (["--output", "gs://bucket/hf", "--push_to", REPOSITORY], "gcloud storage cp -r gs://bucket/hf FOLDER"),
        (["--output", "{}/none", "--push_to", REPOSITORY], "got no such folder. Write it with `zephyr-jax export"),
        (["--output", "{}/..", "--push_to", REPOSITORY], "got a folder without the provenance.json of an export"),
        (["--output", "{}"], "`model.path` is not set"),
        (["--output", "{}", "--model.path", "base", "--public"], "public is set without `push_to`"),
        (["--output", "{}", "--license", "mit", "--push_to", REPOSITORY], "license is set without `model.path`"),
        (["--output", "{}", "--model.path", "base", "--license", "MIT License"], "expected a license id"),
    ],
)
def test_settings_that_cannot_work(
    words: list[str], expected: str, hub: Hub, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is refused before a request is sent."""
    with pytest.raises(SystemExit) as stopped:
        main(["export", *(word.format(exported) for word in words)])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err
    assert not hub.state.requests


def test_no_token_and_offline_are_refused_before_the_weights_are_read(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model does not even exist."""
    words = ["export", "--model.path", "missing", "--output", str(tmp_path / "out"), "--push_to", REPOSITORY]
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SystemExit):
        main(words)
    assert "expected a token of the Hugging Face hub, got none" in capsys.readouterr().err
    Path(constants.HF_TOKEN_PATH).parent.mkdir()
    Path(constants.HF_TOKEN_PATH).write_text(WRITER)  # as `hf auth login` does
    with pytest.raises(SystemExit):
        main(words)
    assert "'missing' is not a local folder" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit):
        main(words)
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err


def test_commit_message_names_run_and_step() -> None:
    base = {"path": "/models/base"}
    run = {"made_by": "dpo", "output": "runs/my-dpo", "step": 478, "parent": base}
    export = {"made_by": "export", "output": "hf", "parent": run}
    assert commit_message(export) == "Export of my-dpo (dpo, step 478)"
    assert commit_message({"made_by": "export", "parent": export}) == "Export of my-dpo (dpo, step 478)"
    assert commit_message({"made_by": "export", "parent": {"path": "lab/base"}}) == "Export of lab/base"


def test_the_record_of_an_upload_is_the_export(hub: Hub, folder: Path) -> None:
    push(str(folder), REPOSITORY)
    record = json.loads(hub.state.repositories[REPOSITORY].files["provenance.json"])
    assert record["made_by"] == "export"
