"""Mistakes of users: each ends with exit code 2 and one paragraph, and leaves nothing half-written."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import jax.numpy as jnp
import numpy as np
import pytest

from tests.desk import CHAT, PAIR, Desk, Words, check_refused, contents, open_desk
from tests.tokenizers import CHATML
from zephyr_jax.checkpoint.manager import CheckpointManager
from zephyr_jax.cli import main
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.yaml_file import from_dict, to_dict
from zephyr_jax.reference.table import Identity
from zephyr_jax.train_command import train


@dataclass(frozen=True)
class Mistake:
    """What the user does, and what the message must hold: the offending values and a way out."""

    do: Callable[[Desk], Words]
    says: tuple[str, ...] = field(default=())


MISTAKES: dict[str, Mistake] = {}


def mistake(*says: str) -> Callable[[Callable[[Desk], Words]], Callable[[Desk], Words]]:
    """Register a function that prepares a mistake and gives the command line that makes it."""

    def register(do: Callable[[Desk], Words]) -> Callable[[Desk], Words]:
        MISTAKES[do.__name__] = Mistake(do, says)
        return do

    return register


# ---- rows ----


@mistake("rows.jsonl", "no column messages", "it has text", "need messages")
def missing_column(desk: Desk) -> Words:
    return desk.sft("--data.path", desk.rows({"text": "Hello."}))


@mistake("no column rejected", "it has chosen", "need chosen, rejected")
def missing_preference_column(desk: Desk) -> Words:
    return desk.dpo("--data.path", desk.rows({"chosen": CHAT}), verb="reference")


@mistake("no column rejected", "Did you mean `rejected` for `rejekted`?")
def misspelled_column(desk: Desk) -> Words:
    return desk.dpo("--data.path", desk.rows({"chosen": CHAT, "rejekted": CHAT}), verb="reference")


@mistake("of 1 rows none can be used", "roles go user user", "must go [system] user assistant", "row 0", "Fix the rows")
def wrong_role_order(desk: Desk) -> Words:
    return desk.sft("--data.path", desk.rows({"messages": [CHAT[0], *CHAT]}))


@mistake("the role 'robot'", "system, user, assistant", "Fix the rows")
def unknown_role(desk: Desk) -> Words:
    return desk.sft("--data.path", desk.rows({"messages": [CHAT[0], {"role": "robot", "content": "Beep."}]}))


@mistake("an assistant answer is empty", "ids e7", "Fix the rows")
def empty_answer(desk: Desk) -> Words:
    row = {"prompt_id": "e7", "messages": [CHAT[0], {"role": "assistant", "content": " \n"}]}
    return desk.sft("--data.path", desk.rows(row))


@mistake("no assistant answer", "ids row 0", "Fix the rows")
def no_assistant_turn(desk: Desk) -> Words:
    return desk.sft("--data.path", desk.rows({"messages": CHAT[:1]}))


@mistake("1 of 2 rows", "assistant answer is empty", "ids bad", "data.on_bad_row", "`drop` or `truncate`")
def bad_row_under_error(desk: Desk) -> Words:
    bad = {"id": "bad", "messages": [CHAT[0], {"role": "assistant", "content": ""}]}
    rows = desk.rows({"id": "good", "messages": CHAT}, bad)
    return desk.sft("--data.on_bad_row", "error", "--data.path", rows)


@mistake("do not share one prompt", "p2", "Fix the rows")
def answers_to_different_prompts(desk: Desk) -> Words:
    other = [{"role": "user", "content": "Name a fruit."}, CHAT[1]]
    row = {"prompt_id": "p2", "chosen": CHAT, "rejected": other}
    return desk.dpo("--data.path", desk.rows(row), verb="reference")


@mistake("chosen holds str", "messages with role and content", "Fix the rows")
def answers_as_lists_of_text(desk: Desk) -> Words:
    rows = desk.rows({"chosen": ["Hello.", "Hi."], "rejected": ["Hello.", "No."]})
    return desk.dpo("--data.path", rows, verb="reference")


@mistake("rows.jsonl line 2", "{'messages': []}", "must be one object", "fix or remove")
def broken_line(desk: Desk) -> Words:
    good = json.dumps({"messages": CHAT})
    return desk.sft("--data.path", desk.file("rows.jsonl", f"{good}\n{{'messages': []}}\n{good}\n"))


@mistake("rows.jsonl", "row")
def empty_file(desk: Desk) -> Words:
    return desk.sft("--data.path", desk.file("rows.jsonl", ""))


@mistake("saved has no rows", "at least one")
def empty_dataset(desk: Desk) -> Words:
    datasets.Dataset.from_dict({"messages": []}).save_to_disk(str(desk.home / "saved"))
    return desk.sft("--data.path", desk.home / "saved")


@mistake("single file", "`train`", "got `held_out`", "data.eval_path")
def split_of_a_file(desk: Desk) -> Words:
    return desk.sft("--data.split", "held_out")


@mistake("no rows for the split `test`", "it holds train", "test.jsonl")
def unknown_split_of_a_folder(desk: Desk) -> Words:
    folder = desk.home / "splits"
    folder.mkdir()
    desk.file("splits/train.jsonl", json.dumps({"messages": CHAT}) + "\n")
    return desk.sft("--data.path", folder, "--data.split", "test")


@mistake("no split `dev`", "it has test, train")
def unknown_split_of_a_saved_folder(desk: Desk) -> Words:
    rows = datasets.Dataset.from_list([{"messages": CHAT}])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(desk.home / "saved"))
    return desk.sft("--data.path", desk.home / "saved", "--data.split", "dev")


@mistake("rows.xlsx", "`.xlsx`", ".jsonl", ".parquet")
def unknown_kind_of_file(desk: Desk) -> Words:
    return desk.sft("--data.path", desk.file("rows.xlsx", "a,b\n1,2\n"))


@mistake("rows.csv has no column messages", "it has a, b", "Rename or rewrite")
def table_of_other_columns(desk: Desk) -> Words:
    return desk.sft("--data.path", desk.file("rows.csv", "a,b\n1,2\n"))


@mistake("sund.jsonl' is not a local file or folder", "Did you mean `", "sound.jsonl`?", "Check the spelling")
def rows_nearby(desk: Desk) -> Words:
    return desk.sft("--data.path", desk.home / "sund.jsonl")


@mistake("Cannot read the card", "Did you mean `", "card.yaml`?", "Pass the path")
def card_nearby(desk: Desk) -> Words:
    return [word.replace("card.yaml", "card.yml") for word in desk.sft()]


@mistake("'nobody/no-such-rows'", "split `train`", "Check the spelling")
def rows_nowhere(desk: Desk) -> Words:
    return desk.sft("--data.path", "nobody/no-such-rows")


@mistake("nowhere://rows.jsonl", "Check")
def unknown_protocol(desk: Desk) -> Words:
    return desk.sft("--data.path", "nowhere://rows.jsonl")


# ---- templates and tokenizers ----


@mistake("own.jinja", "no special token", "{% generation %}", "zephyr")
def template_without_markers_or_end(desk: Desk) -> Words:
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    return desk.sft("--data.chat_template", desk.file("own.jinja", template))


@mistake("own.jinja", "rewrites earlier turns", "{% generation %}")
def template_that_rewrites(desk: Desk) -> Words:
    template = "{{ messages | length }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    return desk.sft("--data.chat_template", desk.file("own.jinja", template))


@mistake("data.template_args.enable", "own.jinja", "it reads no variable", "Remove it")
def argument_that_no_template_reads(desk: Desk) -> Words:
    return desk.sft("--data.template_args.enable", "true", "--data.chat_template", desk.file("own.jinja", CHATML))


@mistake("--data.template_args", "--data.template_args.NAME VALUE", "got no name")
def argument_without_a_name(desk: Desk) -> Words:
    return desk.sft("--data.template_args", "enable_thinking", "false")


@mistake("own.jinja", "two answers", "first answer", "move the generation markers")
def template_with_markers_astray(desk: Desk) -> Words:
    everyone = "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    template = f"{{% for m in messages %}}{everyone}{{% endfor %}}"
    return desk.sft("--data.chat_template", desk.file("own.jinja", template))


@mistake("own.jinja", "cannot be used", "zephyr")
def template_that_is_no_jinja(desk: Desk) -> Words:
    return desk.sft("--data.chat_template", desk.file("own.jinja", "{% for m in messages %}"))


@mistake("'zephir'", "cannot be read", "zephyr, zephyr-no-system, `tokenizer`")
def unknown_template(desk: Desk) -> Words:
    return desk.sft("--data.chat_template", "zephir")


@mistake("`tokenizer`", "no chat template", "Use `zephyr`")
def tokenizer_has_no_template(desk: Desk) -> Words:
    return desk.sft("--data.chat_template", "tokenizer")


@mistake("No tokenizer", "model", "tokenizer.json")
def tokenizer_missing(desk: Desk) -> Words:
    folder = desk.model()
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return desk.sft("--model.path", folder)


@mistake("1024 tokens", "embeds 1000", "checkpoint's own folder")
def vocabulary_mismatch(desk: Desk) -> Words:
    return desk.sft("--model.path", desk.model(vocab_size=1000))


@mistake("no end token", "eos_token", "tokenizer_config.json")
def tokenizer_without_end(desk: Desk) -> Words:
    folder = desk.model()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return desk.sft("--model.path", folder)


# ---- models ----


@mistake("'nobody/no-such-model'", "not a local folder", "Check the spelling")
def model_nowhere(desk: Desk) -> Words:
    return desk.sft("--model.path", "nobody/no-such-model")


@mistake("mdel' is not a local folder", "Did you mean `", "model`?", "Check the spelling")
def model_nearby(desk: Desk) -> Words:
    return desk.sft("--model.path", desk.model().with_name("mdel"))


@mistake("config.json", "No such file", "needs this file")
def no_config(desk: Desk) -> Words:
    folder = desk.model()
    (folder / "config.json").unlink()
    return desk.sft("--model.path", folder)


@mistake("config.json is not valid JSON", "line 1", "Copy it again")
def broken_config(desk: Desk) -> Words:
    folder = desk.model()
    (folder / "config.json").write_text("{'model_type': mistral}")
    return desk.sft("--model.path", folder)


@mistake("config.json holds a list", "Copy it again")
def config_is_a_list(desk: Desk) -> Words:
    folder = desk.model()
    (folder / "config.json").write_text("[]")
    return desk.sft("--model.path", folder)


@mistake("lacks hidden_size", "Take the config.json")
def config_lacks_a_size(desk: Desk) -> Words:
    return desk.sft("--model.path", desk.model(hidden_size=None))


@mistake("config.json", "hidden_size", "'128 wide'")
def config_with_text_for_a_size(desk: Desk) -> Words:
    return desk.sft("--model.path", desk.model(hidden_size="128 wide", head_dim=None))


@mistake("config.json", "num_attention_heads", "0")
def config_without_heads(desk: Desk) -> Words:
    return desk.sft("--model.path", desk.model(num_attention_heads=0, num_key_value_heads=0, head_dim=None))


@mistake("model_type 'gpt2'", "llama, ministral3, mistral", "Choose")
def foreign_architecture(desk: Desk) -> Words:
    return desk.sft("--model.path", desk.model(model_type="gpt2"))


@mistake("`rope_scaling`", "'dynamic'", "Choose a checkpoint without it")
def rope_scaling(desk: Desk) -> Words:
    return desk.sft("--model.path", desk.model(rope_scaling={"rope_type": "dynamic", "factor": 2.0}))


@mistake("`attention_bias`", "True", "Choose a checkpoint without it")
def attention_bias(desk: Desk) -> Words:
    return desk.sft("--model.path", desk.model(model_type="llama", attention_bias=True))


@mistake("`hidden_act`", "'gelu'", "Choose a checkpoint without it")
def foreign_activation(desk: Desk) -> Words:
    return desk.sft("--model.path", desk.model(hidden_act="gelu"))


@mistake("num_attention_heads (4)", "got 3")
def kv_heads_do_not_divide(desk: Desk) -> Words:
    return desk.sft("--model.path", desk.model(num_key_value_heads=3))


@mistake("1 missing", "model.norm.weight", "0 unknown", "same checkpoint")
def missing_tensor(desk: Desk) -> Words:
    return desk.export("--model.path", desk.tensors(lambda tensors: tensors.__delitem__("model.norm.weight")))


@mistake("0 missing", "1 unknown", "model.layers.9.extra.weight", "same checkpoint")
def unknown_tensor(desk: Desk) -> Words:
    spare = np.zeros(3, np.float32)
    folder = desk.tensors(lambda tensors: tensors.update({"model.layers.9.extra.weight": spare}))
    return desk.export("--model.path", folder)


@mistake("model.norm.weight", "(7,)", "(128,)", "same checkpoint")
def tensor_of_another_size(desk: Desk) -> Words:
    short = np.ones(7, np.float32)
    folder = desk.tensors(lambda tensors: tensors.update({"model.norm.weight": short}))
    return desk.export("--model.path", folder)


@mistake("model.safetensors", "ends at byte", "copy it again")
def truncated_safetensors(desk: Desk) -> Words:
    folder = desk.model()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return desk.export("--model.path", folder)


@mistake("no *.safetensors", "pytorch_model.bin", "no pickle", "convert")
def pickle_only(desk: Desk) -> Words:
    folder = desk.model()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return desk.export("--model.path", folder)


@mistake("model-00001-of-00002.safetensors", "missing", "copy it again")
def index_names_a_missing_file(desk: Desk) -> Words:
    folder = desk.model()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return desk.export("--model.path", folder)


@mistake("expected a checkpoint", "Train it first")
def run_without_checkpoints(desk: Desk) -> Words:
    run = desk.home / "run"
    shutil.copytree(desk.tiny, run / "model")
    return desk.export("--model.path", run)


# ---- the mesh ----


@mistake("data 3 x fsdp -1 x tensor 1", "product is 8")
def mesh_does_not_divide_the_devices(desk: Desk) -> Words:
    return desk.sft("--mesh.data", 3)


@mistake("data -1 x fsdp -1", "at most one -1")
def two_free_axes(desk: Desk) -> Words:
    return desk.sft("--mesh.data", -1)


@mistake("`kv_heads`", "decoder.attention.key", "multiple of 4", "got 2")
def mesh_does_not_divide_a_weight(desk: Desk) -> Words:
    return desk.export("--mesh.tensor", 4)


@mistake("batch.microbatch_rows (or batch.rows)", "multiple of 8", "got 4", "`batch`")
def microbatch_does_not_divide_the_mesh(desk: Desk) -> Words:
    return desk.sft("--batch.microbatch_rows", 4)


@mistake("data.row_length", "multiple of 512", "mesh.context", "got 128")
def mesh_does_not_divide_the_rows(desk: Desk) -> Words:
    return desk.sft("--mesh.context", 2)


@mistake("mesh.context", "expected 1, got 2", "token by token", "mesh.tensor")
def generation_splits_no_rows(desk: Desk) -> Words:
    return desk.generate("--prompts", "Hello", "--mesh.context", 2)


@mistake("mesh.emulated_devices", "expected 8", "got 3", "new process")
def emulated_devices_too_late(desk: Desk) -> Words:
    return desk.sft("--mesh.emulated_devices", 3)


# ---- places for results ----


@mistake("taken", "Cannot create the folder", "Choose another")
def output_is_a_file(desk: Desk) -> Words:
    return desk.sft("--output", desk.file("taken", "mine"))


@mistake("taken/run", "Cannot create the folder", "Choose another")
def output_under_a_file(desk: Desk) -> Words:
    return desk.sft("--output", desk.file("taken", "mine") / "run")


@mistake("taken", "already exists", "Choose another", "nothing was overwritten")
def export_into_an_existing_folder(desk: Desk) -> Words:
    (desk.home / "taken").mkdir()
    return desk.export("--output", desk.home / "taken")


@mistake("taken", "Choose another")
def export_under_a_file(desk: Desk) -> Words:
    return desk.export("--output", desk.file("taken", "mine") / "folder")


@mistake("taken", "Choose another")
def reference_is_a_file(desk: Desk) -> Words:
    return desk.dpo("--reference", desk.file("taken", "mine"), verb="reference")


@mistake("nowhere/answers.jsonl", "hoose another")
def answers_into_a_missing_folder(desk: Desk) -> Words:
    output = desk.home / "nowhere" / "answers.jsonl"
    return desk.generate("--prompts", "Hi", "--max_new_tokens", 1, "--chat_template", "none", "--output", output)


@mistake("nowhere/numbers.json", "hoose another")
def numbers_into_a_missing_folder(desk: Desk) -> Words:
    return desk.evaluate(desk.rows({"messages": CHAT}), "--output", desk.home / "nowhere" / "numbers.json")


# ---- cards and settings ----


@mistake("missing.yaml", "No such file", "YAML file")
def card_missing(desk: Desk) -> Words:
    return ["sft", "--config", str(desk.home / "missing.yaml")]


@mistake("card.yaml", "not valid YAML", "line 2", "Fix it")
def card_broken(desk: Desk) -> Words:
    return ["sft", "--config", str(desk.file("card.yaml", "model:\n  path: [unclosed\n"))]


@mistake("`optimizer.learning_rat` is not a setting", "Did you mean `optimizer.learning_rate`?")
def card_with_unknown_key(desk: Desk) -> Words:
    return ["sft", "--config", str(desk.file("card.yaml", "optimizer:\n  learning_rat: 1.0e-3\n"))]


@mistake("`batch.rows`", "integer", "'many'")
def card_with_wrong_type(desk: Desk) -> Words:
    return ["sft", "--config", str(desk.file("card.yaml", "batch:\n  rows: many\n"))]


@mistake("`optimizer`", "got 'adamw'", "name: value")
def card_with_value_for_a_section(desk: Desk) -> Words:
    return ["sft", "--config", str(desk.file("card.yaml", "optimizer: adamw\n"))]


@mistake("`--config`")
def card_not_named(desk: Desk) -> Words:
    return ["sft", "--config"]


@mistake("`model.path` is not set", "Hugging Face folder", "--model.path")
def no_model(desk: Desk) -> Words:
    return ["sft"]


@mistake("batch.rows is 8", "batch.examples 4", "--batch.rows")
def rows_and_examples(desk: Desk) -> Words:
    return desk.sft("--batch.examples", 4)


@mistake("batch.microbatch_rows", "batch.rows (8)", "got 3")
def microbatch_does_not_divide_rows(desk: Desk) -> Words:
    return desk.sft("--batch.microbatch_rows", 3)


@mistake("data.row_length", "data.max_length (64)", "got 100", "at least 128")
def row_too_short_for_a_pair(desk: Desk) -> Words:
    return desk.dpo("--data.row_length", 100, "--data.no_share_prompts")


@mistake("row_length", "100")
def row_too_short_for_a_pair_that_is_not_cut(desk: Desk) -> Words:
    words = "word " * 12
    row = {"prompt": "Say it.", "chosen": words, "rejected": words + "."}
    sizes = ("--data.row_length", 100, "--data.max_length", 100, "--data.on_bad_row", "drop")
    return desk.dpo(*sizes, "--data.path", desk.rows(row), verb="reference")


@mistake("row_length", "100")
def row_too_short_for_a_pair_to_evaluate(desk: Desk) -> Words:
    words = "word " * 12
    rows = desk.rows({"prompt": "Say it.", "chosen": words, "rejected": words + "."})
    return desk.evaluate(rows, "--data.row_length", 100, "--data.max_length", 100)


@mistake("data.row_length", "data.max_length (256)", "got 128")
def row_too_short_for_a_conversation(desk: Desk) -> Words:
    return desk.sft("--data.max_length", 256)


@mistake("data.max_prompt_length", "data.max_length (64)", "got 64")
def prompt_leaves_no_room(desk: Desk) -> Words:
    return desk.dpo("--data.max_prompt_length", 64)


@mistake("dpo.label_smoothing is 0.1", "dpo.loss `hinge`")
def smoothing_with_hinge(desk: Desk) -> Words:
    return desk.dpo("--dpo.loss", "hinge", "--dpo.label_smoothing", 0.1)


@mistake("`rmsprop`", "weight_decay 0.1", "use `adamw`")
def rmsprop_with_weight_decay(desk: Desk) -> Words:
    return desk.sft("--optimizer.name", "rmsprop", "--optimizer.weight_decay", 0.1)


@mistake("`optimizer.learning_rate`", "greater than 0", "got -1.0")
def negative_learning_rate(desk: Desk) -> Words:
    return desk.sft("--optimizer.learning_rate", -1)


@mistake("seed", "-1")
def negative_seed(desk: Desk) -> Words:
    return desk.sft("--seed", -1)


@mistake("optimizer.grad_dtype is bfloat16", "model.compute_dtype float32")
def gradients_coarser_than_the_computation(desk: Desk) -> Words:
    return desk.sft("--optimizer.grad_dtype", "bfloat16")


@mistake("model.logprob_chunk", "0")
def empty_chunks(desk: Desk) -> Words:
    return desk.sft("--model.logprob_chunk", 0)


@mistake("data.targets", "`assistant`", "`all`")
def all_targets_of_preferences(desk: Desk) -> Words:
    return desk.dpo("--data.targets", "all")


# ---- the reference table ----


@mistake("lacks 1 of 1 pairs", "ids p1", "zephyr-jax reference --config")
def no_reference_table(desk: Desk) -> Words:
    return desk.dpo()


@mistake("lacks 1 of 2 pairs", "ids p9", "zephyr-jax reference --config")
def incomplete_reference_table(desk: Desk) -> Words:
    desk.fill(PAIR)
    other = {**PAIR, "prompt_id": "p9", "rejected": [CHAT[0], {"role": "assistant", "content": "Hm."}]}
    return desk.dpo("--data.path", desk.rows(PAIR, other))


@mistake("does not belong to this run", f"weights: table has '{'0' * 32}'", "zephyr-jax reference --config")
def reference_table_of_other_weights(desk: Desk) -> Words:
    desk.fill(PAIR, weights="0" * 32)
    return desk.dpo()


@mistake("shard-made-up.parquet", "cannot be read", "Delete this file", "zephyr-jax reference")
def damaged_reference_table(desk: Desk) -> Words:
    table = desk.fill(PAIR)
    (table.folder / "shard-made-up.parquet").write_bytes(b"PAR1 but not for long")
    return desk.dpo()


@mistake("lacks 1 of 1 pairs", "zephyr-jax reference")
def damaged_manifest_of_another_table(desk: Desk) -> Words:
    table = desk.fill(PAIR, weights="0" * 32)
    (table.folder / "manifest.json").write_text("{")
    return desk.dpo()


@mistake("Expected a reference table", "nowhere", "zephyr-jax reference")
def evaluate_without_the_table(desk: Desk) -> Words:
    return desk.evaluate(desk.rows(PAIR), "--reference", desk.home / "nowhere")


# ---- prompts ----


@mistake("exactly one", "--prompts")
def no_prompts(desk: Desk) -> Words:
    return desk.generate()


@mistake("a prompt of", "max_new_tokens 2000", "1024 positions", "lower max_new_tokens")
def prompt_too_long(desk: Desk) -> Words:
    return desk.generate("--prompts", "Hello", "--max_new_tokens", 2000)


@mistake("rows.jsonl line 1 cannot be used", "no known format", "`prompt`", "Fix the row")
def rows_without_prompts(desk: Desk) -> Words:
    return desk.generate("--data", desk.rows({"text": "What?"}))


@mistake("rows.jsonl line 1", "messages")
def prompts_that_are_answers_only(desk: Desk) -> Words:
    return desk.generate("--data", desk.rows({"messages": CHAT[1:]}))


@mistake("rows.jsonl line 1", "role")
def prompts_without_roles(desk: Desk) -> Words:
    return desk.generate("--data", desk.rows({"messages": [{"content": "Hi"}]}))


@mistake("top_p is 0.5 and top_k 0 at temperature 0")
def nucleus_of_nothing(desk: Desk) -> Words:
    return desk.generate("--prompts", "Hello", "--top_p", 0.5)


# ---- the tests ----


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A fresh desk, offline, with a cache of its own."""
    return open_desk(tmp_path, tiny_model, monkeypatch)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_paragraph_and_leaves_nothing(
    name: str, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: bad input exits 2; one paragraph names the values and the remedy; no file is new or changed."""
    check_refused(MISTAKES[name].do(desk), MISTAKES[name].says, desk, capsys)


def test_a_verb_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Law: a misspelt verb is answered with the nearest verb."""
    with pytest.raises(SystemExit) as stopped:
        main(["exprot"])
    assert stopped.value.code == 2
    assert "`exprot`. Did you mean `export`?" in capsys.readouterr().err


def test_a_resumed_run_must_be_the_same_run(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: resuming with changed settings is refused by name, old and new value; nothing is touched."""
    words = desk.sft("--optimizer.learning_rate", 0.5, "--schedule.keep_last", 7)
    config = from_dict(SftConfig, desk.settings("sft"), "test")
    desk.output.mkdir()
    manager = CheckpointManager(desk.output, config.schedule)
    weights = {"weight": jnp.ones(8)}
    manager.save(3, weights, (jnp.int32(3), weights), {"data": {}, "config": to_dict(config), "identity": {}}, None)
    manager.close()
    before = contents(desk.home)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "optimizer.learning_rate was 2e-05, now 0.5" in message
    assert "keep_last" not in message
    assert "choose another output" in message
    assert contents(desk.home) == before


def test_resume_off_refuses_a_run_that_is_there(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: with `resume` off, an output that holds a run is never touched."""
    (desk.output / "checkpoints").mkdir(parents=True)
    with pytest.raises(SystemExit) as stopped:
        main(desk.sft("--no_resume"))
    assert stopped.value.code == 2
    assert "holds a run already" in capsys.readouterr().err


def test_a_mistake_does_not_stand_in_the_way_of_the_next_try(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: a refused run leaves its output free: with `resume` off, the same mistake is reported again."""
    rows = desk.home / "bad.jsonl"
    rows.write_text(json.dumps({"text": "Hello."}) + "\n")
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(desk.sft("--no_resume", "--data.path", rows))
        assert "no column messages" in capsys.readouterr().err


def test_the_right_command_is_named_for_a_table_that_lacks_pairs(desk: Desk) -> None:
    """Law: `dpo` called from Python names a command too."""
    with pytest.raises(ValueError, match="zephyr-jax reference"):
        train(desk.config())


def test_the_identity_of_a_table_covers_every_field() -> None:
    """Law: tables that differ in any one field of their identity never share a folder."""
    first = Identity("w", "t", "rule", "float32", 1)
    changed = [
        replace(first, weights="v"),
        replace(first, tokenizer="u"),
        replace(first, length_rule="other"),
        replace(first, compute_dtype="bfloat16"),
        replace(first, logprob_version=2),
    ]
    assert len({each.name for each in [first, *changed]}) == 6
