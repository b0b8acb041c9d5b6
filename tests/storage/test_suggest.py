"""Paths that are not there: what is reported at once, and what is suggested."""

from pathlib import Path

import pytest

from zephyr_jax.checkpoint.hf.folder import open_folder
from zephyr_jax.data.sources import open_rows
from zephyr_jax.errors import InputError
from zephyr_jax.storage.suggest import check_hub_id, suggest_path


@pytest.mark.parametrize(
    "path", ["chat.jsonl", "data/chat.jsonl", "./chats", "/no/such", "a/b/c", "~/chats", "", "x" * 5000 + "/"]
)
def test_what_can_be_no_hub_id_is_not_asked_for(path: str) -> None:
    """Law: names that the hub cannot have are refused here, before a network is waited for."""
    with pytest.raises(InputError, match="is not a local file or folder"):
        check_hub_id(path, "file or folder")


@pytest.mark.parametrize("path", ["gpt2", "HuggingFaceH4/ultrachat_200k", "mistralai/Mistral-7B-v0.1", "runs/tiny"])
def test_what_may_be_a_hub_id_is_asked_for(path: str) -> None:
    """Law: every name of the hub's form is passed on."""
    check_hub_id(path, "folder")


def test_rows_that_are_not_there_are_reported_with_the_nearest(tmp_path: Path) -> None:
    """Law: a misspelt file is answered with the one that is beside it."""
    (tmp_path / "chats.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"chat.jsonl' is not a local file or folder. Did you mean `.*/chats.jsonl`\?"):
        open_rows(str(tmp_path / "chat.jsonl"), "train")


def test_a_model_that_is_not_there_is_told_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: so is a misspelt folder, also where the hub might have had it."""
    (tmp_path / "runs" / "tiny-sft").mkdir(parents=True)
    with pytest.raises(InputError, match=r"is not a local folder. Did you mean `.*/tiny-sft`\?"):
        open_folder(str(tmp_path / "runs" / "tiny-stf"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"cannot be downloaded from the hub. Did you mean `runs/tiny-sft`\?"):
        open_folder("runs/tiny-stf")


def test_nothing_near_is_no_suggestion(tmp_path: Path) -> None:
    """Law: a suggestion is near or it is not made; a folder that is not there has none."""
    (tmp_path / "other").mkdir()
    assert suggest_path(str(tmp_path / "chats.jsonl")) == suggest_path(str(tmp_path / "no" / "chats.jsonl")) == ""
