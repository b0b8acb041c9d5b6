"""Every way to name a model with an adapter: a run, a PEFT folder or hub id alone, either of them beside a base, and chains."""

import io
import json
import re
import shutil
from hashlib import blake2b
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.adapter_runs import Runs, check_logits, export, logits_of
from tests.conftest import write_rows
from zephyr_jax.api.loading import load_model, load_tokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer as load_hf_tokenizer
from zephyr_jax.checkpoint.fingerprint_cache import weights_key
from zephyr_jax.checkpoint.opened import open_model
from zephyr_jax.checkpoint.resolve import find_model, tokenizer_only
from zephyr_jax.checkpoint.training_format import open_for_training
from zephyr_jax.cli import main
from zephyr_jax.config.adapter import AdapterOptions, EvaluationOptions
from zephyr_jax.config.sections import MeshOptions, ModelOptions, WeightsOptions
from zephyr_jax.errors import InputError
from zephyr_jax.generate.load import open_text_model
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules

PROMPT = [{"role": "user", "content": "Name a color."}]


@pytest.fixture(scope="module")
def adapter(adapter_runs: Runs) -> Path:
    """The adapter of DPO, exported."""
    return export(f"--model.path {adapter_runs.folder}/dpo --format adapter", adapter_runs.folder / "adapter")


def moved(adapter: Path, to: Path, base: str | None, revision: str | None = None) -> Path:
    """A copy of an adapter's folder that names another base."""
    shutil.copytree(adapter, to)
    fields = json.loads((to / "adapter_config.json").read_text())
    fields |= {"base_model_name_or_path": base, "revision": revision}
    (to / "adapter_config.json").write_text(json.dumps(fields))
    return to


def scaled_base(base: Path, to: Path) -> Path:
    """Other weights of the same sizes."""
    shutil.copytree(base, to, copy_function=shutil.copyfile)
    to.chmod(0o755)
    tensors = load_file(to / "model.safetensors")
    save_file({name: value * np.float32(1.5) for name, value in tensors.items()}, to / "model.safetensors")
    return to


def reference_fingerprint(**options: Any) -> str:
    """As `reference` computes it for a DPO that continues the adapter."""
    rules = ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1]))
    opened = open_for_training(ModelOptions(**options), AdapterOptions(), rules, seed=0).as_reference()
    return opened.reference_fingerprint(opened.load_weights())


# ---- one model, named in several ways ----


def test_all_names_of_one_adapter_are_one_model(adapter_runs: Runs, adapter: Path) -> None:
    """Bit for bit: the run, its export alone, either of them beside the base, and a copy of the run whose base is elsewhere."""
    base, run = str(adapter_runs.base), adapter_runs.folder / "dpo"
    expected = logits_of(run)
    assert np.abs(expected - logits_of(base)).max() > 0.1
    assert np.array_equal(logits_of(adapter), expected)
    assert np.array_equal(logits_of(base, adapter=str(adapter)), expected)
    assert np.array_equal(logits_of(base, adapter=str(run)), expected)
    (step,) = [path for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert np.array_equal(logits_of(base, adapter=str(step)), expected)
    for source in (find_model(WeightsOptions(str(adapter))), find_model(WeightsOptions(base, adapter=str(adapter)))):
        assert source.asked == str(adapter)
        assert source.adapter and source.adapter.base.asked == base
        assert source.adapter.base_format == "float32"


def test_the_reference_is_the_same_for_all_names(adapter_runs: Runs, adapter: Path) -> None:
    """So that a table which was filled with one name of the model serves a run that uses another."""
    base = str(adapter_runs.base)
    names = [{"path": str(adapter)}, {"path": base, "adapter": str(adapter)}, {"path": f"{adapter_runs.folder}/dpo"}]
    assert len({reference_fingerprint(**options) for options in names}) == 1
    alone, beside = (find_model(WeightsOptions(**options)) for options in names[:2])
    assert weights_key(alone) == weights_key(beside)


def test_every_command_encodes_prompts_as_the_run(adapter_runs: Runs, adapter: Path) -> None:
    """The template comes with the adapter: the base has none, and a template of the base is not used in its place."""
    base, run = adapter_runs.base, adapter_runs.folder / "dpo"
    expected = load_tokenizer(run).chat.prompt(PROMPT).tolist()
    sources: list[dict[str, Any]] = [
        {"path": str(run)},
        {"path": str(adapter)},
        {"path": str(base), "adapter": str(adapter)},
        {"path": str(base), "adapter": str(run)},
    ]
    for options in sources:
        assert tokenizer_only(WeightsOptions(**options)) is None
        assert load_tokenizer(WeightsOptions(**options)).chat.prompt(PROMPT).tolist() == expected
        model = open_text_model("test", EvaluationOptions(**options), MeshOptions(), 1)
        assert model.chat_tokenizer(None).prompt(PROMPT).tolist() == expected
        assert load_model(EvaluationOptions(**options)).tokenizer.chat.prompt(PROMPT).tolist() == expected


def test_an_adapter_with_a_template_and_no_tokenizer_has_the_tokenizer_of_its_base(
    adapter_runs: Runs, adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapter, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (tmp_path / "bare" / name).unlink()
    base = load_hf_tokenizer(str(adapter_runs.base))
    source = find_model(WeightsOptions(str(tmp_path / "bare")))
    assert load_hf_tokenizer(str(source.folder)).chat_template == base.chat_template
    (tmp_path / "bare" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    source = find_model(WeightsOptions(str(tmp_path / "bare")))
    tokenizer = load_hf_tokenizer(str(source.folder))
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer.get_vocab() == base.get_vocab()


def test_evaluate_reads_all_names(adapter_runs: Runs, adapter: Path, tmp_path: Path) -> None:
    """`evaluate` of the run and of its export gives the same loss; of the base, another."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"messages": [*PROMPT, {"role": "assistant", "content": "Red."}]}] * 8)
    names = (
        f"--model.path {adapter_runs.folder}/dpo",
        f"--model.path {adapter}",
        f"--model.path {adapter_runs.base} --model.adapter {adapter}",
        f"--model.path {adapter_runs.base} --model.compute_dtype float32",
    )
    losses = []
    for number, words in enumerate(names):
        output = tmp_path / f"{number}.json"
        main(f"evaluate {words} --data.path {rows} --data.max_length 128 --output {output}".split())
        losses.append(json.loads(output.read_text())["loss"])
    assert losses[0] == losses[1] == losses[2] != losses[3]


def test_chat_answers_with_the_adapter_of_every_name(
    adapter_runs: Runs, adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same text for the run, its export, and the export beside the base; another for the base alone."""
    names = (
        f"--model.path {adapter_runs.folder}/dpo",
        f"--model.path {adapter}",
        f"--model.path {adapter_runs.base} --model.adapter {adapter}",
        f"--model.path {adapter_runs.base} --model.compute_dtype float32 --chat_template zephyr",
    )
    answers = []
    for words in names:
        monkeypatch.setattr("sys.stdin", io.StringIO("Name a color.\n/quit\n"))
        main(f"chat {words} --max_new_tokens 8 --temperature 0".split())
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2] != answers[3]


# ---- the base ----


def test_a_base_that_moved_is_named_beside_the_run_or_the_folder(
    adapter_runs: Runs, adapter: Path, tmp_path: Path
) -> None:
    """Problem and fix in one message, and the fix works."""
    run = Path(shutil.copytree(adapter_runs.folder / "dpo", tmp_path / "run"))
    record = json.loads((run / "provenance.json").read_text())
    record["config"]["model"]["path"] = str(tmp_path / "gone")
    (run / "provenance.json").write_text(json.dumps(record))
    folder = moved(adapter, tmp_path / "adapter", str(tmp_path / "gone"))
    expected = logits_of(adapter_runs.folder / "dpo")
    for path, reason in ((run, "holds an adapter on top of"), (folder, "holds an adapter of")):
        message = (
            f"{path} {reason} {tmp_path}/gone: .* is not a local folder.*--model.path BASE --model.adapter {path}`"
        )
        with pytest.raises(InputError, match=message):
            find_model(WeightsOptions(str(path)))
        assert np.array_equal(logits_of(adapter_runs.base, adapter=str(path)), expected)


def test_an_adapter_without_a_base_asks_for_one(adapter_runs: Runs, adapter: Path, tmp_path: Path) -> None:
    folder = moved(adapter, tmp_path / "adapter", None)
    with pytest.raises(InputError, match=f"is empty. Pass the base: `--model.path BASE --model.adapter {folder}`"):
        find_model(WeightsOptions(str(folder)))
    assert find_model(WeightsOptions(str(adapter_runs.base), adapter=str(folder))).adapter


def test_another_base_below_the_adapter_of_a_run_is_refused(
    adapter_runs: Runs, tmp_path: Path, tiny_model: Path
) -> None:
    """Other weights by their fingerprint, in every base format and also where the adapter is merged; other sizes by name."""
    other, run = scaled_base(adapter_runs.base, tmp_path / "other"), str(adapter_runs.folder / "dpo")
    for options in ({}, {"base_format": "bfloat16"}):
        with pytest.raises(InputError, match=r"expected weights \w+, got \w+\. Put the model back"):
            logits_of(other, adapter=run, **options)
    with pytest.raises(SystemExit):
        export(f"--model.path {other} --model.adapter {run}", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    with pytest.raises(InputError, match=f"{re.escape(run)} does not fit {tiny_model}: vocab_size: expected 512, got"):
        find_model(WeightsOptions(str(tiny_model), adapter=run))
    with pytest.raises(InputError, match="Give the base model that the adapter was trained on"):
        find_model(WeightsOptions(str(tiny_model), adapter=str(adapter_runs.folder / "adapter")))


# ---- the hub ----


@pytest.fixture
def hub_cache(adapter_runs: Runs, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub client's cache: `lab/base` in two revisions, of which `main` has other weights, and `lab/adapter` in two."""
    base = adapter_runs.base
    cached(tmp_path, "base", "main", scaled_base(base, tmp_path / "scaled"))
    cached(tmp_path, "base", "plain", base)
    cached(tmp_path, "adapter", "main", moved(adapter, tmp_path / "adapter", "lab/base", "plain"))
    zeros = moved(adapter, tmp_path / "zeros", "lab/base", "plain")
    tensors = load_file(zeros / "adapter_model.safetensors")
    save_file({name: np.zeros_like(value) for name, value in tensors.items()}, zeros / "adapter_model.safetensors")
    cached(tmp_path, "adapter", "untrained", zeros)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def cached(folder: Path, name: str, revision: str, content: Path) -> None:
    """A repository `lab/NAME` in the layout of the hub client's cache; its commit is a hash of the revision."""
    repository = folder / "hub" / f"models--lab--{name}"
    commit = blake2b(f"{name} {revision}".encode(), digest_size=20).hexdigest()
    shutil.copytree(content, repository / "snapshots" / commit, copy_function=shutil.copyfile)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)


@pytest.mark.usefixtures("hub_cache")
def test_an_adapter_of_the_hub_and_its_revisions(adapter_runs: Runs, tmp_path: Path) -> None:
    """The adapter's own revision of its base, unless the base is named; each id has its revision."""
    expected, base = logits_of(adapter_runs.folder / "dpo"), logits_of(adapter_runs.base)
    alone = find_model(WeightsOptions("lab/adapter"))
    assert alone.asked == "lab/adapter"
    assert alone.adapter and (alone.adapter.base.asked, alone.adapter.base_format) == ("lab/base", "float32")
    assert np.array_equal(logits_of("lab/adapter"), expected)
    assert np.array_equal(logits_of("lab/base", revision="plain", adapter="lab/adapter"), expected)
    assert np.array_equal(logits_of("lab/adapter", revision="untrained"), base)
    untrained = {"revision": "plain", "adapter": "lab/adapter", "adapter_revision": "untrained"}
    assert np.array_equal(logits_of("lab/base", **untrained), base)
    assert np.abs(logits_of("lab/base", adapter="lab/adapter") - expected).max() > 0.1
    folder = export("--model.path lab/adapter --format adapter", tmp_path / "again")
    fields = json.loads((folder / "adapter_config.json").read_text())
    commit = blake2b(b"base plain", digest_size=20).hexdigest()
    assert (fields["base_model_name_or_path"], fields["revision"]) == ("lab/base", commit)
    assert np.array_equal(logits_of(folder), expected)


@pytest.mark.usefixtures("hub_cache")
def test_the_record_of_a_foreign_adapter_names_both(adapter: Path, tmp_path: Path) -> None:
    """Path and commit of the adapter, and of its base as the parent."""
    for commit in (tmp_path / "hub" / "models--lab--adapter" / "snapshots").iterdir():
        (commit / "provenance.json").unlink()
    record = find_model(WeightsOptions("lab/adapter")).record
    commits = [blake2b(text, digest_size=20).hexdigest() for text in (b"adapter main", b"base plain")]
    assert [record["path"], record["parent"]["path"]] == ["lab/adapter", "lab/base"]
    assert [record["revision"], record["parent"]["revision"]] == commits


# ---- other folders ----


def test_what_is_no_adapter_is_refused(adapter_runs: Runs, adapter: Path, tmp_path: Path) -> None:
    base = str(adapter_runs.base)
    with pytest.raises(InputError, match="adapter_revision is set without `model.adapter`"):
        find_model(WeightsOptions(base, adapter_revision="main"))
    with pytest.raises(InputError, match="expected a folder with adapter_config.json .*A model goes to model.path"):
        find_model(WeightsOptions(base, adapter=base))
    with pytest.raises(InputError, match="is not a local folder"):
        find_model(WeightsOptions(base, adapter=str(tmp_path / "missing")))
    both = Path(shutil.copytree(adapter, tmp_path / "both"))
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(adapter_runs.base / name, both / name)
    with pytest.raises(InputError, match="can be read in two ways"):
        find_model(WeightsOptions(str(both)))
    assert find_model(WeightsOptions(base, adapter=str(both))).adapter


# ---- chains ----


@pytest.mark.parametrize("name", ["dpo", "merged-dpo"])
def test_a_merged_export_is_the_policy(adapter_runs: Runs, name: str) -> None:
    """After SFT and DPO on its adapter, or on a second one: the exported weights have the logits of the run."""
    run = adapter_runs.folder / name
    merged = export(f"--model.path {run} --dtype float32", adapter_runs.folder / f"hf-{name}")
    expected = logits_of(run)
    assert np.abs(expected - logits_of(adapter_runs.folder / "sft")).max() > 0.01
    check_logits(logits_of(merged), expected)


def test_a_second_adapter_lies_on_the_merged_first(adapter_runs: Runs) -> None:
    """`start merge`: the run's base is SFT with its adapter merged, which another name for it gives, too."""
    run, sft = adapter_runs.folder / "merged-dpo", adapter_runs.folder / "sft"
    source = find_model(WeightsOptions(str(run)))
    assert source.adapter and source.adapter.base.adapter and source.adapter.base.run
    assert source.adapter.spec.rank == 2
    continued = find_model(WeightsOptions(str(adapter_runs.folder / "dpo")))
    assert continued.adapter and continued.adapter.base.adapter is None
    assert np.array_equal(logits_of(sft, adapter=str(run)), logits_of(run))


# ---- answers and their caches ----


def test_a_base_format_is_part_of_the_identity_of_answers(adapter_runs: Runs) -> None:
    """`generate` and benchmarks must not mix answers of two formats in one journal."""
    path = str(adapter_runs.folder / "dpo")
    identities = [
        open_text_model("test", EvaluationOptions(path=path, **options), MeshOptions(), 1).identity
        for options in ({}, {"base_format": "bfloat16"}, {"base_format": "nf4", "block_size": 4})
    ]
    assert [identity["base_format"] for identity in identities] == ["float32", "bfloat16", "nf4-4"]
    assert len({identity["weights"] for identity in identities}) == 1


def test_load_model_takes_adapters_and_base_formats(adapter_runs: Runs, adapter: Path) -> None:
    """The Python API: a path, and options with an adapter and a format."""
    import zephyr_jax as zj

    options = zj.EvaluationOptions(
        path=str(adapter_runs.base), adapter=str(adapter), base_format="nf4", block_size=4, compute_dtype="float32"
    )
    formats = [
        zj.load_model(model).opened.weight_format.name for model in (adapter, options, zj.ScoringOptions(str(adapter)))
    ]
    assert formats == ["float32", "nf4-4", "float32"]
    assert open_model(options, ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1]))).weight_format.lora
