"""Upload of an export to the Hugging Face hub.

The token is the hub client's: HF_TOKEN, or the file that `hf auth login` writes. It is not a setting, and no message holds it.
"""

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as LocalPath

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.utils.tqdm import disable_progress_bars

from zephyr_jax.checkpoint.hf.card import CARD
from zephyr_jax.checkpoint.hf.folder import TOKENIZER_FILES
from zephyr_jax.checkpoint.provenance import Record, read_record
from zephyr_jax.errors import InputError
from zephyr_jax.export.names import rename_model, stage_name
from zephyr_jax.storage.api_key import redact
from zephyr_jax.storage.files import open_path, write_atomic

logger = logging.getLogger(__name__)

_HIDDEN = (".*", "*/.*")
"""Files that are not uploaded, such as `.env`."""
_REPLACED = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    *TOKENIZER_FILES,
)
"""Files of an earlier upload that are deleted where the export has no file of that name: loaders would read both."""
_LOGIN = "Create a token with write access at https://huggingface.co/settings/tokens, then run `hf auth login` or set HF_TOKEN."
_PROBLEMS = {
    401: ("expected a valid token, got one that the hub rejects", _LOGIN),
    403: (
        "the hub denies write access",
        "The token needs write access to that owner's repositories, and the owner free storage; or choose another `push_to`.",
    ),
    404: (
        "the repository is missing, or hidden from this token",
        "Check the spelling, and that the token has access to that owner's repositories.",
    ),
    429: ("too many requests", "Wait some minutes."),
}
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2")


def check_push() -> None:
    """Raise InputError where the hub client has no token or is offline; sends no request."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise InputError("push_to needs the network, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set. Unset it.")
    if not _read_token():
        raise InputError(f"push_to: expected a token of the Hugging Face hub, got none. {_LOGIN}")


def _read_token() -> str | None:
    """The token that the hub client uses. Raises InputError where it fails to read one."""
    try:
        return huggingface_hub.get_token()
    except Exception as error:  # an exchange of tokens over the network, or an unreadable file
        raise InputError(
            f"push_to: the hub client cannot read its token: {_describe_error(error)}. {_LOGIN}"
        ) from error


def push(folder: str, repository: str, *, public: bool = False) -> str:
    """Upload an export as one commit, or more for a large folder. Content that the hub has already is not sent again.

    Args:
        folder: A complete export. The code in its model card is changed to load `repository`.
        repository: OWNER/NAME; created if missing.
        public: Create it as public, and allow a repository that is public; otherwise it must be private.

    Returns:
        Address of the commit.

    Raises:
        InputError: `folder` is not an export, the token is missing, or the hub refuses or cannot be reached.
    """
    check_push()
    record = _read_export(folder, repository)
    if not sys.stderr.isatty():
        disable_progress_bars()
    token = _read_token()
    api = HfApi(token=token, library_name="zephyr-jax")
    with _translate_hub_errors(folder, repository, token):
        api.create_repo(repository, private=not public, exist_ok=True)
        _check_visibility(repository, bool(api.model_info(repository).private), public)
        _rewrite_card(folder, repository)
        logger.info("uploading %s to %s/%s (%s)", folder, api.endpoint, repository, _describe_size(folder))
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=commit_message(record),
            ignore_patterns=list(_HIDDEN),
            delete_patterns=list(_REPLACED),
        )
    logger.info("uploaded %s: %s", folder, commit.commit_url)
    return str(commit.commit_url)


def commit_message(record: Record) -> str:
    """`Export of my-run (dpo, step 478)`, from the record of an export; the path or hub id of weights from elsewhere."""
    source = record
    while source.get("made_by") == "export":
        source = source.get("parent") or {}
    facts = [source.get("made_by"), f"step {source['step']}" if source.get("step") is not None else None]
    known = ", ".join(str(fact) for fact in facts if fact)
    return f"Export of {stage_name(source)}" + (f" ({known})" if known else "")


def _read_export(folder: str, repository: str) -> Record:
    """The provenance record of a local export. Raises InputError."""
    path = open_path(folder)
    record = read_record(path) if path.is_dir() else None
    if record is None or record.get("made_by") != "export":
        got = "a folder without the provenance.json of an export" if path.is_dir() else "no such folder"
        raise InputError(
            f"expected a complete export in {folder}, got {got}. Write it with `zephyr-jax export --model.path MODEL --output "
            f"{shlex.quote(folder)} --push_to {repository}`."
        )
    return record


def _check_visibility(repository: str, private: bool, public: bool) -> None:
    """Raise InputError for a public repository without `public`; warn of a private one with it."""
    if not private and not public:
        raise InputError(
            f"push_to: expected a private repository, got {repository}, which is public. Pass `--public` to upload to it, or "
            "make it private in its settings on the hub."
        )
    if private and public:
        logger.warning("%s stays private, as it existed before; change that in its settings on the hub", repository)


def _rewrite_card(folder: str, repository: str) -> None:
    """Let the code in the model card load the repository."""
    path = open_path(folder) / CARD
    if path.exists():
        card = path.read_text()
        renamed = rename_model(card, repository)
        if renamed != card:
            write_atomic(path, renamed)


def _describe_size(folder: str) -> str:
    sizes = [path.stat().st_size for path in LocalPath(folder).rglob("*") if path.is_file() and path.name[0] != "."]
    return f"{len(sizes)} files, {sum(sizes) / 2**30:.2f} GiB"


@contextmanager
def _translate_hub_errors(folder: str, repository: str, token: str | None) -> Iterator[None]:
    """Turn errors of the hub client into InputError with the command that continues."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the hub client raises many types; after each one the same command continues
        problem, fix = _explain(error)
        reason = re.sub(r"(https?://[^\s?]+)\?\S*", r"\1", redact(_describe_error(error), token))[:300]
        command = f"zephyr-jax export --output {shlex.quote(os.fspath(folder))} --push_to {repository}"
        raise InputError(
            f"Could not upload to {repository}: {problem} ({reason}). {fix} The export in {folder} is "
            f"complete; `{command}` continues the upload."
        ) from error


def _describe_error(error: BaseException) -> str:
    """The text of an error, followed by that of its cause where the text only names the file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text} {_describe_error(error.__cause__)}" if type(error) is RuntimeError and error.__cause__ else text


def _explain(error: BaseException) -> tuple[str, str]:
    """Problem and fix of an error of the hub client, by its HTTP status or its origin."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    statuses = [getattr(getattr(cause, "response", None), "status_code", None) for cause in causes]
    status = next((status for status in statuses if isinstance(status, int)), None)
    if status in _PROBLEMS:
        return _PROBLEMS[status]
    if status is not None:
        problem = "the hub failed" if status >= 500 else "the hub rejected the request"
        return f"{problem}, status {status}", "Try again later." if status >= 500 else "Fix the cause it names."
    if any(_is_network_error(cause) for cause in causes):
        return f"cannot reach {huggingface_hub.constants.ENDPOINT}", "Check the network."
    return "the upload failed", "Fix the cause it names."


def _is_network_error(error: BaseException) -> bool:
    return (
        isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES
    )
