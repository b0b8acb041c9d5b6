"""What cannot be planned is refused in one paragraph: what was got, what is needed, what to do. In one process, no compile."""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from zephyr_jax.cli import main

CARDS = Path(__file__).parents[2] / "configs" / "tiny"
SMALL = "--topology v5e:2x2 --batch.microbatch_rows 4 --data.row_length 512 --data.max_length 256"

ANYWHERE = {
    "v9z:2x2": (f"{SMALL} --topology v9z:2x2", r"expected a TPU topology.*v4, v5e, v5p.*v6e.*got 'v9z:2x2'"),
    "no grid": (f"{SMALL} --topology 2x2", r"such as v5e:2x4.*got '2x2'"),
    "no slice": (f"{SMALL} --num_slices 0", r"`num_slices`.* greater than 0, got 0"),
    "microbatch": (f"{SMALL} --batch.rows 6 --batch.examples None", r"batch\.microbatch_rows.*batch\.rows \(6\), got 4"),
    "two batches": (f"{SMALL} --batch.rows 8", r"batch\.rows is 8 and batch\.examples 16"),
    "gradients": (f"{SMALL} --optimizer.grad_dtype bfloat16", r"grad_dtype is bfloat16 and model\.compute_dtype float32"),
    "long sequence": (f"{SMALL} --data.max_length 1024", r"data\.row_length.*data\.max_length \(1024\), got 512"),
    "fit what": (f"{SMALL} --step reference --fit", r"`fit`.*reference step"),
    "chunk": (f"{SMALL} --model.logprob_chunk 0", r"`model\.logprob_chunk`.* greater than 0"),
}  # fmt: skip
WITH_COMPILER = {
    "grid": (f"{SMALL} --topology v5e:3x5", r"'v5e:3x5'.*Check the grid"),
    "batch": (f"{SMALL} --batch.microbatch_rows 6", r"microbatch_rows \(or batch\.rows\): expected a multiple of \d+, got 6"),
    "mesh": (f"{SMALL} --mesh.fsdp 3", r"product is 4, .* got .*fsdp 3"),
    "two free": (f"{SMALL} --mesh.data -1", r"at most one -1"),
    "heads": (f"{SMALL} --mesh.tensor 4", r"`kv_heads` of weight .*: expected a multiple of 4, got 1"),
    "row": (f"{SMALL} --data.row_length 500 --data.no_share_prompts", r"row length that is a multiple of 128 .*got 500"),
    "context": (f"{SMALL} --mesh.context 4", r"data\.row_length: expected a multiple of 1024 .*mesh\.context.*got 512"),
    "split cache": (f"{SMALL} --step generate --mesh.context 2", r"mesh\.context: expected 1, got 2: generation"),
    "slices": (f"{SMALL} --num_slices 2", r"microbatch_rows \(or batch\.rows\): expected a multiple of 8, got 4"),
}  # fmt: skip


def refused(words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it refuses."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--config", f"{CARDS}/dpo.yaml", "--model.path", str(folder), *words.split()])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("case", ANYWHERE)
def test_settings_that_cannot_hold_are_refused(case: str, shape_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = ANYWHERE[case]
    assert re.search(expected, refused(words, shape_only, capsys), re.DOTALL)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed: uv run --extra tpu pytest")
@pytest.mark.parametrize("case", WITH_COMPILER)
def test_what_no_topology_can_hold_is_refused(case: str, shape_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = WITH_COMPILER[case]
    assert re.search(expected, refused(words, shape_only, capsys), re.DOTALL)


def test_without_the_compiler_it_says_how_to_get_it(
    shape_only: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)  # so Python finds no such package, installed or not
    assert "uv run --extra tpu zephyr-jax plan" in refused(SMALL, shape_only, capsys)


@pytest.mark.parametrize("content", ["", "[]", '{"model_type": "gpt2"}', '{"model_type": "mistral"}'])
def test_a_folder_that_is_no_model_is_refused(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is named, and what it lacks."""
    if find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    (tmp_path / "config.json").write_text(content)
    assert "config.json" in refused(SMALL, tmp_path, capsys)


def test_an_old_name_is_answered_with_the_known_ones(shape_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the parser of the command line, before anything runs."""
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--config", f"{CARDS}/dpo.yaml", "--model.remat", "dots"])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "full_offload" in said.out + said.err
