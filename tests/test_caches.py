"""Every cache of docs/caches.md notices a file that was replaced under the same size and modification time."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import jax
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from safetensors.numpy import load_file, save_file

from tests.checkpoint.adapters import build, write
from tests.conftest import write_rows
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.fingerprint_cache import cache_fingerprint, find_fingerprint, weights_key
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.cli import main
from zephyr_jax.clients.local import LocalClient
from zephyr_jax.config.sections import DataOptions, MeshOptions, ModelOptions
from zephyr_jax.data.examples import load_examples
from zephyr_jax.data.segments import CONVERSATION
from zephyr_jax.data.sources import open_rows
from zephyr_jax.errors import InputError
from zephyr_jax.generate.load import open_text_model
from zephyr_jax.model.families.registry import config_from_hf
from zephyr_jax.model.weight_format import PLAIN, WeightFormat
from zephyr_jax.prepare.raw import raw_rows
from zephyr_jax.report.sample_files import SAMPLES, SampleSet, read_samples, write_samples
from zephyr_jax.report.samples import is_current
from zephyr_jax.storage.files import cached_copy, write_atomic
from zephyr_jax.storage.journal import Journal

DATE = 1704067200  # 2024-01-01
WORDS = ("OLD", "NEW")


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches for every test."""
    home = tmp_path_factory.mktemp("caches")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home / "datasets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hub"))


def date_all(path: Path) -> list[tuple[str, int]]:
    """Date everything under a path 2024-01-01; names and sizes."""
    files = [path, *path.rglob("*")]
    for file in files:
        os.utime(file, (DATE, DATE))
    return sorted((str(file.relative_to(path)), file.stat().st_size) for file in files if file.is_file())


def rows_of(word: str) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": word}]} for n in range(3)
    ]


def write_parts(path: Path, word: str) -> None:
    path.mkdir(exist_ok=True)
    write_rows(path / "train-1.jsonl", rows_of("same"))
    write_rows(path / "train-2.jsonl", rows_of(word))


def save_to_disk(path: Path, rows: Dataset | DatasetDict) -> None:
    """As another program would: nothing is left of what was there, but every file's name and size."""
    shutil.rmtree(path, ignore_errors=True)
    rows.save_to_disk(path)
    for state in path.rglob("state.json"):
        content = json.loads(state.read_text())
        state.write_text(json.dumps({**content, "_fingerprint": "0123456789abcdef"}))


FORMS: dict[str, tuple[str, Callable[[Path, str], object]]] = {
    "jsonl": ("c.jsonl", lambda path, word: write_rows(path, rows_of(word))),
    "json": ("c.json", lambda path, word: path.write_text(json.dumps(rows_of(word)))),
    "parquet": ("c.parquet", lambda path, word: Dataset.from_list(rows_of(word)).to_parquet(path)),
    "one of several parts": ("parts", write_parts),
    "save_to_disk": ("saved", lambda path, word: save_to_disk(path, Dataset.from_list(rows_of(word)))),
    "save_to_disk of splits": (
        "splits",
        lambda path, word: save_to_disk(path, DatasetDict(train=Dataset.from_list(rows_of(word)))),
    ),
}


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    loaded = load_tokenizer(str(tiny_model))
    return ChatTokenizer(loaded, load_template("zephyr", loaded))


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_tokens(form: str, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """In every form that rows are read from; an unchanged file is neither read nor tokenized twice."""
    name, write = FORMS[form]
    path, sizes, keys, answers = tmp_path / name, [], [], []
    for word in WORDS:
        write(path, word)
        sizes.append(date_all(path))
        answers.append(open_rows(str(path), "train")[-1]["messages"][-1]["content"])
        keys.append(load_examples(CONVERSATION, DataOptions(), tokenizer, str(path), "train").keys().ravel().tolist())
    assert answers == list(WORDS)
    assert sizes[0] == sizes[1]
    assert keys[0] != keys[1]
    again = load_examples(CONVERSATION, DataOptions(), tokenizer, str(path), "train")
    tables = [file["filename"] for file in again.rows.cache_files]
    written = [os.stat(table).st_mtime_ns for table in tables]
    once_more = load_examples(CONVERSATION, DataOptions(), tokenizer, str(path), "train")
    assert [file["filename"] for file in once_more.rows.cache_files] == tables
    assert [os.stat(table).st_mtime_ns for table in tables] == written


def test_raw_rows_of_prepare(tmp_path: Path) -> None:
    """`prepare` keeps nothing between runs: raw files are read each time, compressed or not."""
    for word in WORDS:
        write_rows(tmp_path / "raw.jsonl", rows_of(word))
        save_to_disk(tmp_path / "saved", Dataset.from_list(rows_of(word)))
        date_all(tmp_path)
        for path, split in ((tmp_path / "raw.jsonl", None), (tmp_path / "saved", "train")):
            rows = list(raw_rows(str(path), split, None))
            assert [row.content["messages"][-1]["content"] for row in rows] == [word] * 3


def replace_weights(folder: Path, name: str = "model.safetensors") -> None:
    """Negate one tensor, under the same size and date."""
    file = folder / name
    tensors = load_file(file)
    first = sorted(tensors)[0]
    save_file({**tensors, first: -tensors[first]}, file)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "model")
    replace_weights(tmp_path / "model")  # written as the replacement will be
    date_all(tmp_path / "model")
    return tmp_path / "model"


def test_fingerprints_of_weights(model: Path) -> None:
    source = find_model(ModelOptions(path=str(model)))
    state = weights_key(source)
    cache_fingerprint(source, state, PLAIN, "first")
    assert find_fingerprint(source, weights_key(source), PLAIN) == "first"
    before = date_all(model)
    replace_weights(model)
    assert date_all(model) == before
    assert find_fingerprint(source, weights_key(source), PLAIN) is None
    cache_fingerprint(source, state, PLAIN, "second")  # as if they had been replaced while they were loaded
    assert find_fingerprint(source, state, PLAIN) == "first"
    assert find_fingerprint(source, weights_key(source), PLAIN) is None


def test_fingerprints_depend_on_the_format_of_storage(model: Path) -> None:
    """Rounded weights are other weights; so are those of another block size."""
    source = find_model(ModelOptions(path=str(model)))
    formats = [PLAIN, WeightFormat(base_format="nf4"), WeightFormat(base_format="nf4", block_size=32)]
    for weight_format in formats:
        cache_fingerprint(source, weights_key(source), weight_format, weight_format.name)
    assert [find_fingerprint(source, weights_key(source), each) for each in formats] == ["float32", "nf4-64", "nf4-32"]


def test_the_key_of_an_adapter_has_that_of_its_base(model: Path, tmp_path: Path) -> None:
    config = config_from_hf(json.loads((model / "config.json").read_text()))
    adapter = write(build(config, base=str(model)), tmp_path / "adapter")
    replace_weights(adapter, "adapter_model.safetensors")  # written as the replacement will be
    alone, beside = (
        find_model(ModelOptions(**options))
        for options in ({"path": str(adapter)}, {"path": str(model), "adapter": str(adapter)})
    )
    states = [weights_key(alone)]
    assert weights_key(beside) == states[0] != weights_key(alone.adapter.base)
    for folder, name in ((model, "model.safetensors"), (adapter, "adapter_model.safetensors")):
        before = date_all(folder)
        replace_weights(folder, name)
        assert date_all(folder) == before
        states.append(weights_key(alone))
    assert len(set(states)) == 3


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("shards", [False, True])
def test_weights_on_cloud_storage(shards: bool, model: Path) -> None:
    """By the objects' generation: every write is another state."""
    write_atomic("gs://bucket/model/config.json", (model / "config.json").read_bytes())
    for name in ("model-1.safetensors", "model-2.safetensors") if shards else ("model.safetensors",):
        write_atomic(f"gs://bucket/model/{name}", b"old")
    source = find_model(ModelOptions(path=str(model)))
    remote = type(source)(**{**vars(source), "weights": epath.Path("gs://bucket/model")})
    before = weights_key(remote)
    assert weights_key(remote) == before
    write_atomic(f"gs://bucket/model/{name}", b"new")
    assert weights_key(remote) != before


@pytest.mark.usefixtures("bucket")
def test_copies_from_cloud_storage() -> None:
    for word in WORDS:
        write_atomic("gs://bucket/rows/c.jsonl", word)
        copy = cached_copy("gs://bucket/rows/c.jsonl")
        os.utime(copy, (DATE, DATE))
        assert copy.read_text() == word


def test_tokenizer_and_model_files_are_read_each_time(model: Path) -> None:
    fingerprints = []
    for word in ("AB", "CD"):
        content = json.loads((model / "tokenizer.json").read_text())
        content["added_tokens"].append({**content["added_tokens"][-1], "id": 1023, "content": f"<{word}>"})
        (model / "tokenizer.json").write_text(json.dumps(content))
        date_all(model)
        loaded = load_tokenizer(str(model))
        fingerprints.append(ChatTokenizer(loaded, load_template("zephyr", loaded)).fingerprint)
        content["added_tokens"].pop()
        (model / "tokenizer.json").write_text(json.dumps(content))
    assert fingerprints[0] != fingerprints[1]
    config = (model / "config.json").read_text()
    theta = find_model(ModelOptions(path=str(model))).hf_config["rms_norm_eps"]
    (model / "config.json").write_text(config.replace(json.dumps(theta), "1e-03".ljust(len(json.dumps(theta)))))
    date_all(model)
    assert find_model(ModelOptions(path=str(model))).hf_config["rms_norm_eps"] == 1e-3


def test_journals_of_answers_by_a_checkpoint(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`generate`, benchmarks and feedback refuse to mix answers of two models of one name."""
    words = f"generate --model.path {model} --prompts Hello! --max_new_tokens 2 --output {tmp_path}/a.jsonl".split()
    found = open_text_model("test", ModelOptions(path=str(model)), MeshOptions(), 8)
    identity = dict(found.identity)
    Journal(tmp_path / "a.jsonl.part", {**_header(words), **identity}).add({"index": 0, "tokens": [5]})
    chat = found.chat_tokenizer("zephyr")
    own = {**identity, "tokenizer": chat.fingerprint, "context": 64}
    Journal(tmp_path / "own.journal", own).add({"request": "1", "text": "Hi", "cut": False})
    LocalClient(found, chat, 64, tmp_path / "own.journal", keep=False)
    replace_weights(model)
    date_all(model)
    again = open_text_model("test", ModelOptions(path=str(model)), MeshOptions(), 8)
    assert again.identity["weights"] != identity["weights"]
    with pytest.raises(InputError, match="belongs to other work: weights was"):
        LocalClient(again, chat, 64, tmp_path / "own.journal", keep=False)
    with pytest.raises(SystemExit):
        main(words)
    assert "weights was" in capsys.readouterr().err


def _header(words: list[str]) -> dict[str, Any]:
    """The header that `generate` gives a journal, all but the model's part."""
    how = {"max_new_tokens": 2, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 0}
    return {"model": words[2], **how, "prompts": "0"}


def test_samples_of_a_report(model: Path, tmp_path: Path) -> None:
    """Samples of other weights under the same name are stale; samples from files always count as current."""
    assert read_samples(epath.Path(tmp_path)) == SampleSet()
    write_samples(epath.Path(tmp_path), SampleSet(weights="state"))
    assert read_samples(epath.Path(tmp_path)).weights == "state"
    content = json.loads((tmp_path / SAMPLES).read_text())
    del content["weights"]
    (tmp_path / SAMPLES).write_text(json.dumps(content))
    assert read_samples(epath.Path(tmp_path)).weights == ""
    assert is_current(SampleSet(weights=""), ModelOptions(path=str(model)))
    state = weights_key(find_model(ModelOptions(path=str(model))))
    assert is_current(SampleSet(weights=state), ModelOptions(path=str(model)))
    replace_weights(model)
    date_all(model)
    assert not is_current(SampleSet(weights=state), ModelOptions(path=str(model)))


def test_compiled_programs(tmp_path: Path) -> None:
    """JAX finds a program by its text, constants and all: the same source line with another number is another program."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        found = []
        for factor in (2.0, 3.0, 2.0):
            jax.clear_caches()
            found.append(float(jax.jit(lambda x, factor=factor: x * factor)(np.float32(7))))
        assert found == [14.0, 21.0, 14.0]
        assert len([name for name in os.listdir(tmp_path) if name.endswith("-cache")]) >= 2
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_the_case_of_a_replaced_file(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`preview` before and after, as in the report: one row becomes two."""
    for word, count in (("OLD", 1), ("NEW", 2)):
        write_rows(tmp_path / "c.jsonl", rows_of(word)[:count])
        date_all(tmp_path)
        main(["preview", "--model.path", str(tiny_model), "--data.path", str(tmp_path / "c.jsonl")])
        out = capsys.readouterr().out
        assert word in out and f"{count} examples" in out


def test_what_datasets_itself_would_have_read(tmp_path: Path) -> None:
    """The law has a reason: by path and date `datasets` gives the old rows of a replaced file, and a folder's own word."""
    path = tmp_path / "c.jsonl"
    found = []
    for word in WORDS:
        write_rows(path, rows_of(word))
        save_to_disk(tmp_path / "saved", Dataset.from_list(rows_of(word)))
        date_all(tmp_path)
        rows = datasets.load_dataset("json", data_files=str(path), split="train")
        found.append((rows[0]["messages"][-1]["content"], load_from_disk(tmp_path / "saved")._fingerprint))
    assert found[0] == found[1]


def test_an_export_that_is_there(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same export once more does nothing; one with another tokenizer is refused, not taken for the same."""
    words = f"export --model.path {model} --output {tmp_path}/hf --dtype float32".split()
    main(words)
    main(words)
    settings = (model / "tokenizer_config.json").read_text()
    (model / "tokenizer_config.json").write_text(settings.replace("<s>", "</s>", 1))
    with pytest.raises(SystemExit):
        main(words)
    assert "already exists" in capsys.readouterr().err
