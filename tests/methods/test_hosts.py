"""Several real processes over loopback compute what one computes."""

from pathlib import Path

import jax
import numpy as np
from etils import epath
from safetensors.numpy import load, load_file

from tests.conftest import write_rows
from tests.gcs import Gcs
from tests.methods.hosts import CARDS, curve, run_all, sft_words
from zephyr_jax.checkpoint.provenance import FILE
from zephyr_jax.cli import main
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.reference.index import LogprobIndex, merge
from zephyr_jax.reference.shards import read_shard


def test_two_processes_train_as_one(tiny_model: Path, tmp_path: Path) -> None:
    """Losses, gradient norms and the exported weights equal those of one process with eight devices."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 37, "train")))
    run_all(2, sft_words(tiny_model, rows, tmp_path / "two"), tmp_path)
    main([*sft_words(tiny_model, rows, tmp_path / "one"), "--mesh.emulated_devices", "8"])
    assert len(curve(tmp_path / "one")) == 3
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-5)
    for name in ("one", "two"):
        main(f"export --model.path {tmp_path / name} --output {tmp_path / name}-hf --dtype float32".split())
    one, two = (load_file(tmp_path / f"{name}-hf" / "model.safetensors") for name in ("one", "two"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)


def entries(root: Path) -> LogprobIndex:
    """All entries of the one table below a folder."""
    return merge([read_shard(path) for path in map(epath.Path, sorted(root.glob("*/shard-*.parquet")))])


def test_four_processes_fill_the_table_and_two_align_with_it(tiny_model: Path, tmp_path: Path) -> None:
    """Each process writes its own rows of the reference table; DPO on another number of processes starts at ln 2 and has the
    losses and gradient norms of one process. With adapters on a quantized base."""
    pairs = write_rows(tmp_path / "pairs.jsonl", list(preferences(0, 41, "train")))
    words = (
        f"--config {CARDS}/dpo.yaml --model.path {tiny_model} --data.path {pairs} --output {tmp_path}/dpo "
        f"--reference {tmp_path}/reference --batch.examples 41 --batch.microbatch_rows 8 --schedule.epochs 2 "
        "--schedule.evaluate_every 0 --report.no_progress_bar --adapter.rank 4 --adapter.base_format nf4 --adapter.block_size 16"
    ).split()
    run_all(4, ["reference", *words], tmp_path)
    alone = [*words, "--reference", f"{tmp_path}/alone", "--mesh.emulated_devices", "8"]
    main(["reference", *alone])
    by_four, by_one = (entries(tmp_path / name) for name in ("reference", "alone"))
    np.testing.assert_array_equal(by_four.keys, by_one.keys)
    np.testing.assert_allclose(by_four.sums, by_one.sums, rtol=1e-5)
    run_all(2, ["dpo", *words], tmp_path)
    losses = [loss for _, loss, _ in curve(tmp_path / "dpo")]
    np.testing.assert_allclose(losses[0], np.log(2), atol=5e-6)
    main(["dpo", *alone, "--output", f"{tmp_path}/dpo-alone"])
    np.testing.assert_allclose(curve(tmp_path / "dpo"), curve(tmp_path / "dpo-alone"), rtol=1e-4)
    page = (tmp_path / "dpo" / "report.html").read_text()
    assert "the run used 2 processes" in page and f"zephyr-jax report --run {tmp_path}/dpo --num_samples 10" in page


def test_an_export_by_two_is_the_export_by_one(tiny_model: Path, tmp_path: Path) -> None:
    """Byte for byte, in several files; process 0 alone writes."""
    words = f"export --model.path {tiny_model} --dtype bfloat16 --max_shard_gib 0.001 --output".split()
    run_all(2, [*words, str(tmp_path / "two"), "--mesh.tensor", "2"], tmp_path)
    main([*words, str(tmp_path / "one")])
    two, one = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("two", "one"))
    assert two.keys() == one.keys()
    assert all(two[name] == one[name] for name in one if name not in ("README.md", FILE))  # these name paths
    assert len([name for name in one if name.endswith(".safetensors")]) > 1


def test_two_processes_share_nothing_but_a_bucket(bucket: Gcs, tiny_model: Path, tmp_path: Path) -> None:
    """Model, rows, run, table and export on gs://, each process with a cache of its own: what one process makes there."""
    cloud = epath.Path("gs://bucket")
    for file in tiny_model.iterdir():
        (cloud / "base" / file.name).write_bytes(file.read_bytes())
    for name, rows in (("chats", conversations(0, 37, "train")), ("pairs", preferences(0, 41, "train"))):
        file = write_rows(tmp_path / f"{name}.jsonl", list(rows))
        (cloud / file.name).write_bytes(file.read_bytes())
    pairs = (
        f"--config {CARDS}/dpo.yaml --model.path {cloud}/two --data.path {cloud}/pairs.jsonl --output {cloud}/dpo "
        f"--reference {cloud}/reference --batch.examples 41 --batch.microbatch_rows 8 --schedule.epochs 1 "
        "--schedule.evaluate_every 0 --report.no_progress_bar --report.num_samples 0"
    ).split()
    for name in ("two", "one"):
        train = sft_words(cloud / "base", cloud / "chats.jsonl", cloud / name)  # the program of the first test
        export = f"export --model.path {cloud}/{name} --output {cloud}/{name}-hf --dtype float32".split()
        for words in (train, export, ["reference" if name == "two" else "dpo", *pairs]):
            if name == "two":
                run_all(2, words, tmp_path)
            else:
                main([*words, "--mesh.emulated_devices", "8"])
    np.testing.assert_allclose(curve(cloud / "two"), curve(cloud / "one"), rtol=1e-5)
    np.testing.assert_allclose(curve(cloud / "dpo")[0][1], np.log(2), atol=5e-6)
    assert len([name for name in bucket.names("bucket", "reference/") if "shard-" in name]) == 2
    one, two = (load((cloud / f"{name}-hf" / "model.safetensors").read_bytes()) for name in ("one", "two"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
