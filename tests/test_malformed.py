"""Hundreds of spoilt files: each is refused in one paragraph, at once, and nothing is touched.

What cannot be reported from sound content is not here: a byte turned over inside a tensor, or inside text that stays text.
"""

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from types import FrameType
from typing import Any

import datasets
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

from tests.malformed import cards, records, rows, tables, tensors
from tests.settings import setting_names
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.hf.peft_config import read_adapter_base, read_adapter_config
from zephyr_jax.checkpoint.hf.weight_files import TensorFiles
from zephyr_jax.checkpoint.provenance import read_record
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.models import LineageConfig
from zephyr_jax.config.sections import DataOptions, ModelOptions
from zephyr_jax.config.training import DpoConfig
from zephyr_jax.config.validation import validate
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.data.examples import load_examples
from zephyr_jax.data.segments import CONVERSATION, PREFERENCE
from zephyr_jax.demo.remake import CONFIG
from zephyr_jax.errors import InputError
from zephyr_jax.export.lineage import lineage
from zephyr_jax.export.model_card import model_card
from zephyr_jax.model.families.registry import config_from_hf
from zephyr_jax.reference.table import ReferenceTable, require_complete
from zephyr_jax.report.run_record import read_run

CONFIGS = tensors.configs(CONFIG)
ADAPTERS = tensors.adapter_configs()
ROWS = {
    **{("rows.jsonl", name): raw for name, raw in (rows.LINES | rows.MESSAGES | rows.PAIRS).items()},
    **{("rows.parquet", name): raw for name, raw in rows.PARQUET.items()},
    **{("rows.json", name): raw for name, raw in rows.OBJECTS.items()},
}
OPTIONS = DataOptions(max_length=64, max_prompt_length=32, row_length=128, on_bad_row="error")
REMEDIES = (
    r"opy it again|Fix|fix|Take|ake |Delete|Pass|Give|Set |set |keep one|Did you mean|Known here|needs? |must |should be|"
    r"hoose|Look at|Write it|Save it|A split is|To compute|move it back|Remove|too deep|take that out|Exactly one|expected"
)
"""Words of which one shows what to do."""
SECONDS, LONGEST = 20, 1500


@contextmanager
def in_time() -> Iterator[None]:
    """Whatever hangs is interrupted."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it hangs: nothing after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(folder: Path, attempt: Callable[[], object], *named: str) -> str:
    """The one paragraph of an InputError that names what was given; nothing in `folder` is new, changed or gone."""
    before = contents(folder)
    with in_time(), pytest.raises(InputError) as refused:
        attempt()
    message = str(refused.value)
    assert type(refused.value) is InputError
    assert message.isprintable(), "more than one line, or control characters of a file's"
    assert len(message) < LONGEST
    assert any(name in message for name in named)
    assert re.search(REMEDIES, message)
    assert contents(folder) == before
    return message


def test_there_are_enough_of_them() -> None:
    """Law: hundreds of cases, some dozens of each kind."""
    kinds = {
        "cards": len(cards.CARDS),
        "tables": len(tables.SHARDS) + 2 * len(tables.MANIFESTS),
        "tensors": len(tensors.FILES) + len(tensors.INDEX) + len(CONFIGS),
        "rows": len(ROWS),
    }
    assert min(kinds.values()) >= 50
    assert sum(kinds.values()) >= 200


# ---- cards ----


@pytest.mark.parametrize("name", cards.CARDS)
def test_a_card(name: str, tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_bytes(cards.CARDS[name])
    refusal(tmp_path, lambda: validate(load_card(DpoConfig, path)), "card.yaml", *setting_names(DpoConfig))


def test_the_sound_card_is_sound(tmp_path: Path) -> None:
    """Law: what the cards above were made of is no reason to refuse them."""
    path = tmp_path / "card.yaml"
    path.write_text(cards.SOUND + "report: {wandb_project: &name tiny}\n")
    validate(load_card(DpoConfig, path))


def test_an_alias_of_a_value_is_read(tmp_path: Path) -> None:
    """Law: a value may be repeated by its name; only whole sections may not."""
    path = tmp_path / "card.yaml"
    path.write_text("schedule: {save_every: &often 7, evaluate_every: *often}\n")
    assert load_card(DpoConfig, path).schedule.evaluate_every == 7


# ---- reference tables ----


def complete(root: Path) -> None:
    table = ReferenceTable(root, tables.IDENTITY)
    ids = [str(index) for index in range(len(tables.KEYS))]
    require_complete(root, table, tables.KEYS, ids, "zephyr-jax reference --config card.yaml")


@pytest.mark.parametrize("name", tables.SHARDS)
def test_a_shard_of_a_reference_table(name: str, tmp_path: Path) -> None:
    """Other content is refused for its digest, and with a valid digest for what it holds."""
    (shard,) = tables.sound(tmp_path).folder.glob("shard-*.parquet")
    complete(tmp_path)
    spoilt = tables.SHARDS[name]
    content = spoilt if isinstance(spoilt, bytes) else spoilt(shard.read_bytes())
    shard.write_bytes(content)
    message = refusal(tmp_path, lambda: complete(tmp_path), str(shard))
    assert "zephyr-jax reference" in message
    shard.unlink()
    valid = shard.parent / f"shard-0-{blake2b(content, digest_size=16).hexdigest()}.parquet"
    valid.write_bytes(content)
    refusal(tmp_path, lambda: complete(tmp_path), str(valid), f"The reference table in {tmp_path} lacks")


@pytest.mark.parametrize("name", tables.MANIFESTS)
def test_the_manifest_of_a_reference_table(name: str, tmp_path: Path) -> None:
    manifest = tables.sound(tmp_path).folder / "manifest.json"
    manifest.write_bytes(tables.MANIFESTS[name])
    message = refusal(tmp_path, lambda: complete(tmp_path), str(manifest))
    assert "zephyr-jax reference" in message


@pytest.mark.parametrize("name", tables.MANIFESTS)
def test_the_manifest_of_another_reference_table(name: str, tmp_path: Path) -> None:
    """The manifests of other tables are read to say why pairs are missing; an unreadable one does not hide that they are."""
    manifest = tables.sound(tmp_path, tables.OTHER).folder / "manifest.json"
    manifest.write_bytes(tables.MANIFESTS[name])
    refusal(tmp_path, lambda: complete(tmp_path), "lacks 40 of 40 pairs", "does not belong to this run")


# ---- checkpoints ----


@pytest.mark.parametrize("name", tensors.FILES)
def test_a_safetensors_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(tensors.FILES[name])
    refusal(tmp_path, lambda: TensorFiles(epath.Path(tmp_path)).close(), str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", tensors.FILES)
def test_the_weights_of_an_adapter(name: str, tmp_path: Path) -> None:
    """Also those that are sound safetensors of other names: they are no adapter."""
    (tmp_path / "adapter_model.safetensors").write_bytes(tensors.FILES[name])
    (tmp_path / "adapter_config.json").write_text(json.dumps(tensors.ADAPTER))
    path = epath.Path(tmp_path)
    refusal(
        tmp_path, lambda: read_adapter_config(path, config_from_hf(CONFIG)), str(tmp_path / "adapter_model.safetensors")
    )


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_config(name: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(tensors.file())
    (tmp_path / "adapter_config.json").write_bytes(ADAPTERS[name])
    refusal(tmp_path, lambda: read_adapter_base(epath.Path(tmp_path)), str(tmp_path / "adapter_config.json"))


@pytest.mark.parametrize("name", tensors.INDEX)
def test_an_index_of_safetensors_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(tensors.file())
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_bytes(tensors.INDEX[name])
    refusal(tmp_path, lambda: TensorFiles(epath.Path(tmp_path)).close(), f"{tmp_path}/")


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (tmp_path / name).write_bytes(tensors.file())
    refusal(tmp_path, lambda: TensorFiles(epath.Path(tmp_path)).close(), "both in")


def test_the_sound_file_is_sound(tmp_path: Path) -> None:
    """Law: what the files above were made of is no reason to refuse them."""
    (tmp_path / "model.safetensors").write_bytes(tensors.file())
    files = TensorFiles(epath.Path(tmp_path))
    files.close()
    assert files.names == {"x", "y"}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_of_a_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIGS[name])
    refusal(tmp_path, lambda: find_model(ModelOptions(path=str(tmp_path))), str(tmp_path))


# ---- provenance records ----


RECORDS = {
    "run": lambda base: records.run(base, adapter=False),
    "run with an adapter": lambda base: records.run(base, adapter=True),
    "export": lambda base: records.export(base, adapter=False),
    "export of an adapter": lambda base: records.export(base, adapter=True),
}


def provenance(kind: str, tiny_model: Path, folder: Path) -> dict[str, Any]:
    """A sound record and the folder of its kind, without weights."""
    run, adapter = kind.startswith("run"), kind == "export of an adapter"
    if adapter:
        (folder / "adapter_config.json").write_text(
            json.dumps(tensors.ADAPTER | {"base_model_name_or_path": str(tiny_model)})
        )
        layers = {
            f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{name}.weight": np.ones(sizes, np.float32)
            for layer in range(CONFIG["num_hidden_layers"])
            for name, sizes in {"A": (4, CONFIG["hidden_size"]), "B": (CONFIG["hidden_size"], 4)}.items()
        }
        save_file(layers, folder / "adapter_model.safetensors")
    else:
        shutil.copytree(tiny_model, folder / "model" if run else folder, dirs_exist_ok=True)
    return RECORDS[kind](str(tiny_model))


@pytest.mark.parametrize("kind", RECORDS)
def test_every_field_of_a_provenance_record(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """A value of another type is refused by its name, or is one that the field may have and every reader takes."""
    record = provenance(kind, tiny_model, tmp_path)
    path, refused = tmp_path / "provenance.json", 0
    readers = (
        lambda: find_model(ModelOptions(path=str(tmp_path))).record,
        lambda: lineage(LineageConfig(path=str(tmp_path))),
        lambda: model_card("lab/x", read_record(epath.Path(tmp_path)) | {"versions": {}}, {"loss": 1.0}),
        lambda: read_run(epath.Path(tmp_path)) if kind.startswith("run") else None,
    )
    path.write_text(json.dumps(record))
    for read in readers:
        read()
    for name, content in records.spoilt(record):
        path.write_text(json.dumps(content))
        try:
            read_record(epath.Path(tmp_path))
        except InputError as error:
            assert f"{path}: `{name}" in str(error) and ": expected " in str(error) and "Restore the file" in str(error)
            refused += 1
            continue
        for read in readers:
            try:
                read()
            except InputError as error:
                assert str(error).isprintable() and re.search(REMEDIES, str(error))
    assert refused >= 100


WRONG_RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"parent": "sft"}, "`parent`: expected an object, got 'sft'. Restore"),
    ({"parent": []}, "`parent`: expected an object, got []"),
    ({"parent": {"parent": 3}}, "`parent.parent`: expected an object, got 3"),
    ({"made_by": []}, "`made_by`: expected a valid string, got []"),
    ({"adapter": None}, "`adapter`: expected an object, got None"),
    ({"adapter": {"rank": 4}}, "`adapter.alpha`: expected a value, got none"),
    ({"adapter": records.ADAPTER | {"rank": 0}}, "`adapter.rank`: expected greater than or equal to 1, got 0"),
    ({"adapter": records.ADAPTER | {"targets": ["x"]}}, "`adapter.targets`: expected names of attention.query, "),
    ({"config": {"model": 3}}, "`config.model`: expected an object, got 3"),
    (
        {"config": {"model": {"path": ""}}},
        "`config.model.path`: expected the model that the run was started from, got ''",
    ),
    ({"config": {}}, "`config.model.path`: expected the model that the run was started from, got None"),
    (
        {"config": {"model": {"compute_dtype": 3}}},
        "`config.model.compute_dtype`: expected 'bfloat16' or 'float32', got 3",
    ),
    ({"config": {"optimizer": {"learning_rate": "1"}}}, "`config.optimizer.learning_rate`: expected 1.0, got '1'"),
]
"""Fields of the record of a run with an adapter, and the message."""


@pytest.mark.parametrize(("fields", "message"), WRONG_RECORDS, ids=str)
def test_a_provenance_record(fields: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path) -> None:
    record = provenance("run with an adapter", tiny_model, tmp_path)
    (tmp_path / "provenance.json").write_text(json.dumps(record | fields))
    text = refusal(tmp_path, lambda: find_model(ModelOptions(path=str(tmp_path))), f"{tmp_path}/provenance.json: ")
    assert message in text


# ---- rows ----


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    tokenizer = load_tokenizer(str(tiny_model))
    return ChatTokenizer(tokenizer, load_template("zephyr", tokenizer))


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own for every test, and no hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize(("file", "name"), ROWS)
@pytest.mark.usefixtures("cache")
def test_a_file_of_rows(file: str, name: str, tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    path = tmp_path / file
    path.write_bytes(ROWS[file, name])
    kind = PREFERENCE if name.startswith("pair ") else CONVERSATION
    refusal(tmp_path, lambda: load_examples(kind, OPTIONS, tokenizer, str(path), "train"), str(path))


SPOILT = ("empty", "cut", "a list", "a null", "ones", "gone")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("spoilt", [b"", b"{", b"[]", b"null", b"\xff" * 40, None], ids=SPOILT)
@pytest.mark.usefixtures("cache")
def test_a_saved_folder_of_rows(name: str, spoilt: bytes | None, tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    datasets.Dataset.from_list([json.loads(rows.GOOD)]).save_to_disk(tmp_path / "saved")
    file = tmp_path / "saved" / name
    if spoilt is None:
        file.unlink()
    else:
        file.write_bytes(spoilt)
    refusal(
        tmp_path, lambda: load_examples(CONVERSATION, OPTIONS, tokenizer, str(tmp_path / "saved"), "train"), "saved"
    )
