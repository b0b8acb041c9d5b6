"""Eight emulated CPU devices for every test, and the folders that tests read."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests compile the same small programs often.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# And each runs for a moment, while LLVM's optimizations are a third of the time of compiling it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import fsspec  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from tyro import _unsafe_cache  # noqa: E402

from tests.adapter_runs import Runs  # noqa: E402
from tests.gcs import Gcs  # noqa: E402
from tests.hub import WRITER, Hub  # noqa: E402
from tests.thorough import THOROUGH  # noqa: E402
from zephyr_jax import log  # noqa: E402
from zephyr_jax.demo.remake import write_untrained  # noqa: E402
from zephyr_jax.parallel.mesh import emulate_devices  # noqa: E402
from zephyr_jax.report import report as report_module  # noqa: E402
from zephyr_jax.storage import cloud  # noqa: E402

emulate_devices(8)
HERE = Path(__file__).parent
LONGEST = (
    "benchmarks/test_chaos.py",
    "plan/test_search.py",
    "methods/test_hosts_end.py",
    "launch/test_notebook.py",
    "methods/test_hosts.py",
    "plan/test_adapters.py",
    "plan/test_estimates.py",
    "plan/test_plan.py",
    "model/test_family_golden.py",
    "model/test_family_folders.py",
    "export/test_round_trip.py",
    "export/test_adapter_acceptance.py",
    "demo/test_demo.py",
    "methods/test_family_cards.py",
)
"""Files of about a minute or more, the longest first."""
FULLY_OPTIMIZED = ("benchmarks", "demo", "launch", "plan")
"""Packages whose tests train for minutes, or count what the TPU compiler makes of a step."""


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by mark
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark THOROUGH; the longest files first, so that workers end at about the same time: xdist assigns files in this order."""
    files, marked = set(), set()
    for item in items:
        file = item.path.relative_to(HERE).as_posix()
        function = item.name.partition("[")[0]
        entries = {file, f"{file}::{function}", f"{file}::{item.name}"}.intersection(THOROUGH)
        files.add(file)
        marked |= entries
        if entries:
            item.add_marker(pytest.mark.thorough)
    missing = [entry for entry in THOROUGH if entry not in marked and entry.partition("::")[0] in files]
    if missing and not any("::" in argument for argument in config.args):
        raise pytest.UsageError(f"tests/thorough.py: expected names of tests, got {missing}")
    ranks = {HERE / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def compiler_effort(request: pytest.FixtureRequest) -> Iterator[None]:
    """For FULLY_OPTIMIZED the compiler's defaults, here and in processes that the tests start."""
    before = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in FULLY_OPTIMIZED:
            patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
            jax.config.update("jax_disable_most_optimizations", False)
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session", autouse=True)
def logging_to_stderr() -> None:
    """As the command line configures it; after pytest has installed its own hooks."""
    log.configure()


@pytest.fixture(scope="session", autouse=True)
def no_random_checks_of_tyro() -> Iterator[None]:
    """Under pytest tyro compares a random tenth of its cached types, and 256 as unset and as given number share a key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_unsafe_cache, "sys", SimpleNamespace(modules={}))
        yield


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numbers that torch computed; `make_golden.py` there remakes them."""
    return HERE / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real checkpoints, tokenizers and rows that lie beside the project on its developers' machines only."""
    folder = HERE.parents[1] / "shared"
    if not folder.is_dir():
        pytest.skip("the shared reference data is not here")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: random Mistral with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    write_untrained(folder)
    return folder


@pytest.fixture(scope="session")
def gcs() -> Iterator[Gcs]:
    """Cloud Storage on loopback with an empty bucket named `bucket`; every client of this process is led there."""
    with Gcs() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf.setdefault("gcs", {}), "token", "anon")
        server.state.buckets["bucket"] = {}
        cloud.configure_clients()
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub; the client of this process uses it with the token WRITER."""
    with Hub() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield server
        server.state.fault = None


@pytest.fixture(autouse=True)
def report_failures_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that cannot be written is only logged in production; in tests it is an error."""

    def fail(error: Exception, problem: str, remedy: str) -> None:
        raise AssertionError(problem) from error

    monkeypatch.setattr(report_module, "log_failure", fail)


@pytest.fixture
def bucket(gcs: Gcs) -> Iterator[Gcs]:
    """The same, emptied for one test."""
    gcs.state.buckets = {"bucket": {}}
    gcs.state.requests.clear()
    yield gcs
    gcs.state.fault = None


def flip_last_byte(file: Path) -> None:
    """Change a file's content and nothing else: same size, same dates."""
    content, times = file.read_bytes(), file.stat()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def write_rows(path: Path, rows: list[dict]) -> Path:
    """A JSONL file of rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def adapter_runs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs with LoRA adapters on a float32 base: SFT, and DPO that continues its adapter or merges it."""
    runs = Runs(tmp_path_factory.mktemp("adapters"), shared / "models" / "stories260k", "float32")
    runs.sft()
    runs.dpo()
    runs.dpo("merged-dpo", f"--adapter.start merge --adapter.rank 2 {runs.storage}")
    return runs
