"""Settings change what they promise to change: each is set to another value, and the difference is looked at.

`setting_effects.EFFECTS` names a test for every setting; those that no other test shows are here.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from tests.clients.endpoints import judge_at
from tests.conftest import write_rows
from tests.evaluate.test_mt_bench import write_bench
from tests.feedback.conftest import answers_shown, judgment
from tests.methods.small import sft_config
from tests.models import load, packed_rows, random_segments
from tests.prepare.raw import plain, prepare
from zephyr_jax.batch import PairBatch
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.cli import main
from zephyr_jax.config.feedback import RateConfig
from zephyr_jax.config.inspect import DemoConfig
from zephyr_jax.config.models import ChatConfig, GenerateConfig, ServeConfig
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.config.sections import DataOptions, ForwardOptions, MeshOptions, WeightsOptions
from zephyr_jax.config.training_sections import (
    BatchOptions,
    DpoOptions,
    OptimizerOptions,
    ReportOptions,
    ScheduleOptions,
)
from zephyr_jax.data.examples import load_examples
from zephyr_jax.data.pack import plan_training
from zephyr_jax.data.segments import CONVERSATION, PREFERENCE
from zephyr_jax.data.sources import open_rows
from zephyr_jax.demo.demo import BASE, _Experiment, demo
from zephyr_jax.errors import InputError
from zephyr_jax.feedback.session import Session
from zephyr_jax.generate.generate import generate
from zephyr_jax.generate.load import TextModel, open_text_model
from zephyr_jax.objective.dpo import dpo_loss
from zephyr_jax.objective.example_loss import make_objective
from zephyr_jax.objective.sft import sft_loss
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.plan.shape import MISTRAL_7B, planned_shape
from zephyr_jax.prepare.raw import raw_rows
from zephyr_jax.serve.chat import ChatSession
from zephyr_jax.serve.serve import open_server, serve
from zephyr_jax.train.metrics import Reporter
from zephyr_jax.train.optimizer import make_optimizer
from zephyr_jax.train.step import accumulate
from zephyr_jax.train_command import train

type Row = dict[str, Any]


def chat_row(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def pair_row(question: str, good: str, bad: str) -> Row:
    return {"chosen": chat_row(question, good)["messages"], "rejected": chat_row(question, bad)["messages"]}


# ---- optimizer and objective ----


@pytest.mark.parametrize(
    "other",
    [
        {"name": "rmsprop"}, {"learning_rate": 1e-3}, {"lr_schedule": "constant"}, {"warmup_ratio": 0.0}, {"b1": 0.5},
        {"b2": 0.5}, {"eps": 1.0}, {"weight_decay": 0.5}, {"max_grad_norm": None}, {"first_moment_dtype": "bfloat16"},
        {"second_moment_dtype": "bfloat16"},
    ],
    ids=str,
)  # fmt: skip
def test_optimizer_settings_change_the_weights(other: dict[str, Any]) -> None:
    """Law: with any one setting changed, six steps of the same gradients lead to other weights."""

    def weights(options: OptimizerOptions) -> list[float]:
        optimizer = make_optimizer(options, 6)
        parameters = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
        state = optimizer.init(parameters)
        for step in range(6):
            gradients = jax.tree.map(lambda leaf, step=step: jnp.sin(leaf * (step + 1)) * 3, parameters)
            updates, state = optimizer.update(gradients, state, parameters)
            parameters = jax.tree.map(jnp.add, parameters, updates)
        return [*parameters["a"].tolist(), *parameters["b"].tolist()]

    base = OptimizerOptions(learning_rate=0.1, warmup_ratio=0.5)
    assert weights(replace(base, **other)) != weights(base)


def test_gradient_dtype_is_the_dtype_of_gradients(golden: Path) -> None:
    """Law: weights of matmuls have gradients of `optimizer.grad_dtype`, which halves them."""
    loaded = load(golden / "models" / "gqa", dtype="bfloat16")
    batch = jax.tree.map(lambda leaf: leaf[None], packed_rows([random_segments([9, 8])], 20))
    objective = make_objective(sft_loss, loaded.model.definition, None, segments=2, chunk=16)
    for options in (OptimizerOptions(grad_dtype="float32"), OptimizerOptions(grad_dtype="bfloat16")):
        gradients, _ = jax.eval_shape(
            lambda weights, options=options: accumulate(
                objective, weights, batch, loaded.model.shardings, options.grad_dtype
            ),
            loaded.parameters,
        )
        assert gradients["embedding"].dtype == options.grad_dtype


@pytest.mark.parametrize(
    "other", [{"loss": "hinge"}, {"beta": 0.5}, {"label_smoothing": 0.2}, {"sft_weight": 1.0}], ids=str
)
def test_dpo_settings_change_the_loss(golden: Path, other: dict[str, Any]) -> None:
    """Law: with any one setting changed, the loss of the same pair under the same weights is another."""
    loaded = load(golden / "models" / "gqa")
    batch = PairBatch(packed_rows([random_segments([9, 12])], 24), jnp.array([[-20.0, -31.0]]), jnp.array([[True]]))

    def loss(options: DpoOptions) -> float:
        objective = make_objective(dpo_loss, loaded.model.definition, options, segments=2, chunk=16)
        return float(jax.jit(objective)(loaded.parameters, batch)[0].sum)

    assert loss(DpoOptions(**other)) != loss(DpoOptions())


# ---- data ----


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    backend = load_tokenizer(str(tiny_model))
    return ChatTokenizer(backend, load_template("zephyr", backend))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    return write_rows(
        folder / "chats.jsonl", [chat_row(f"Question {n}?", "An answer. " * (1 + 6 * n)) for n in range(6)]
    )


@pytest.mark.parametrize(
    "other",
    [{"limit": 2}, {"targets": "all"}, {"max_length": 80}, {"max_length": 80, "on_bad_row": "drop"}],
    ids=str,
)
def test_data_settings_change_the_examples(rows: Path, tokenizer: ChatTokenizer, other: dict[str, Any]) -> None:
    """Law: with any one setting changed, the same file gives other tokens or other targets."""

    def examples(data: DataOptions) -> list[tuple[list[int], list[bool]]]:
        found = load_examples(CONVERSATION, data, tokenizer, str(rows), "train")
        return [
            (segment.tokens.tolist(), segment.targets.tolist())
            for index in range(len(found))
            for segment in found[index]
        ]

    base = DataOptions(max_length=512)
    if "on_bad_row" in other:
        base = replace(base, max_length=other["max_length"])
    assert examples(replace(base, **other)) != examples(base)


def test_max_prompt_length_cuts_prompts_of_long_pairs(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Law: of a pair that is too long, the prompt keeps `data.max_prompt_length` tokens."""
    path = write_rows(tmp_path / "pairs.jsonl", [pair_row("Why? " * 60, "Because. " * 4, "No.")])
    lengths = [
        load_examples(
            PREFERENCE,
            DataOptions(max_length=100, max_prompt_length=longest, row_length=200),
            tokenizer,
            str(path),
            "train",
        ).segment_lengths()
        for longest in (20, 40)
    ]
    assert np.all(lengths[1] - lengths[0] == 20)


@pytest.mark.parametrize(
    ("other", "changed"),
    [
        ({"row_length": 128}, "data"), ({"packing": False}, "data"), ({"packing_window": 4}, "data"),
        ({"rows": 8}, "batch"), ({"microbatch_rows": 2}, "batch"), ({"rows": None, "examples": 8}, "batch"),
        ({"epochs": 2}, "schedule"), ({"max_steps": 2}, "schedule"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_the_plan_change_the_plan(other: dict[str, Any], changed: str) -> None:
    """Law: rows, batches and epochs are laid out by these settings; with any one changed, the steps or their shape are others."""

    def laid_out(data: DataOptions, batch: BatchOptions, schedule: ScheduleOptions) -> Any:
        plan = plan_training(np.arange(5, 60), data, batch, schedule.epochs, schedule.max_steps, 0)
        return plan.steps, plan.shape

    base: dict[str, Any] = {
        "data": DataOptions(max_length=64, row_length=64), "batch": BatchOptions(rows=4, microbatch_rows=4),
        "schedule": ScheduleOptions(),
    }  # fmt: skip
    assert laid_out(**{**base, changed: replace(base[changed], **other)}) != laid_out(**base)


def test_eval_path_and_eval_split_name_what_is_evaluated() -> None:
    """Law: with neither, nothing is evaluated; each of them alone takes the other's default."""
    data = DataOptions(path="a")
    assert data.evaluation_source is None
    assert replace(data, eval_path="b").evaluation_source == ("b", "train")
    assert replace(data, eval_split="test").evaluation_source == ("a", "test")


def test_a_split_is_the_one_that_is_named(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Law: of a folder with splits, `data.split` is read, and by `prepare` its `split`."""
    splits = {"train": ["one"], "other": ["two", "three"]}
    table = {name: Dataset.from_list([chat_row(text, text) for text in texts]) for name, texts in splits.items()}
    DatasetDict(table).save_to_disk(tmp_path / "saved")
    path = str(tmp_path / "saved")
    assert [len(load_examples(CONVERSATION, DataOptions(split=name), tokenizer, path, name)) for name in splits] == [
        1,
        2,
    ]
    assert [sum(1 for _ in raw_rows(path, split)) for split in (None, "other")] == [1, 2]


def test_a_revision_of_rows_is_asked_for(tmp_path: Path) -> None:
    """Law: a revision goes to the hub with the name, and to no local file, which has none."""
    with pytest.raises(InputError, match="org/rows.* at revision older"):
        open_rows("org/rows", "train", "older")
    with pytest.raises(InputError, match="org/rows.* at revision older"):
        next(raw_rows("org/rows", None, "older"))
    path = write_rows(tmp_path / "rows.jsonl", [plain("q", 1, 2)])
    with pytest.raises(InputError, match="revision"):
        next(raw_rows(str(path), None, "older"))


def test_a_seed_orders_the_data() -> None:
    """Law: another `seed`, another order of the same examples."""
    data, batch = DataOptions(max_length=64, row_length=64), BatchOptions(rows=4)
    plans = [plan_training(np.arange(5, 60), data, batch, 1, None, seed) for seed in (1, 2)]
    assert plans[0].steps != plans[1].steps


# ---- model and mesh ----


@pytest.fixture
def hub(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub cache with two revisions of `org/tiny`, which differ in their window; the client reads it offline."""
    repo = tmp_path / "hub" / "models--org--tiny"
    for name, commit, window in (("main", "a" * 40, 64), ("older", "b" * 40, 32)):
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in tiny_model.iterdir():
            (snapshot / file.name).write_bytes(file.read_bytes())
        config = json.loads((tiny_model / "config.json").read_text())
        (snapshot / "config.json").write_text(json.dumps(config | {"sliding_window": window}))
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / name).write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield


def test_a_revision_of_weights_is_the_one_that_is_named(hub: None) -> None:
    """Law: `model.revision` chooses the hub's snapshot."""
    windows = [
        find_model(WeightsOptions("org/tiny", revision)).model_config.sliding_window for revision in (None, "older")
    ]
    assert windows == [64, 32]


@pytest.mark.parametrize("other", [{"data": 2}, {"tensor": 2}, {"context": 2}, {"fsdp": 4, "data": -1}], ids=str)
def test_mesh_settings_change_the_mesh(other: dict[str, int]) -> None:
    """Law: the sizes of the mesh are those that are named."""
    devices = jax.devices()[:8]
    assert make_mesh(MeshOptions(**other), devices).shape != make_mesh(MeshOptions(), devices).shape


def test_shape_plans_for_other_sizes(tiny_model: Path) -> None:
    """Law: `plan` takes the sizes of `model.path`, and with `shape` those that are named."""
    config = PlanConfig(model=replace(PlanConfig().model, path=str(tiny_model)))
    assert planned_shape(config) != MISTRAL_7B
    assert planned_shape(replace(config, model_preset="mistral-7b")) == MISTRAL_7B
    assert planned_shape(replace(config, model_preset="Qwen/Qwen3-8B")).num_layers == 36


# ---- a run ----


def test_what_a_run_reports(tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: `schedule.log_every` spaces the lines of metrics, `report.log_example_ids` writes ids."""
    config = sft_config(tiny_model, rows, tmp_path / "run", epochs=4)
    config = replace(config, batch=BatchOptions(rows=4, microbatch_rows=4), data=replace(config.data, packing=False))
    report = replace(config.report, log_example_ids=True)
    train(replace(config, schedule=replace(config.schedule, log_every=3, save_every=0), report=report))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    last = steps[-1]
    assert steps == [step for step in range(1, last + 1) if step % 3 == 0 or step == last]
    drawn = (tmp_path / "run" / "examples.jsonl").read_text().splitlines()
    assert len(drawn) == last
    assert capsys.readouterr().err.count(f"/{last} ") >= len(steps)  # `report.progress_bar` is off: plain lines


def test_a_wandb_project_needs_wandb(tmp_path: Path) -> None:
    """Law: with `report.wandb_project`, metrics go to wandb; where the package is absent, the setting is refused by name."""
    if find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    with pytest.raises(InputError, match="report.wandb_project is set, but the package `wandb` is not installed"):
        Reporter(tmp_path, ReportOptions(wandb_project="mine"), config={}, total=1, start=0, enabled=True)


# ---- generation ----


@pytest.fixture(scope="module")
def asked(tiny_model: Path) -> GenerateConfig:
    model = ForwardOptions(path=str(tiny_model), compute_dtype="float32")
    return GenerateConfig(
        model=model, prompts=("Name a colour.", "Why?"), max_new_tokens=6, temperature=1.0, chat_template="zephyr"
    )


@pytest.fixture(scope="module")
def usual(asked: GenerateConfig) -> list[Any]:
    return generate(asked)


@pytest.mark.parametrize(
    "other",
    [
        {"prompts": ("Name a colour.",)}, {"limit": 1}, {"chat_template": "none"}, {"system": "Be kind."}, {"max_new_tokens": 3},
        {"temperature": 0.0}, {"top_p": 0.01}, {"top_k": 1}, {"seed": 1},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_generate_change_the_answers(
    asked: GenerateConfig, usual: list[Any], other: dict[str, Any]
) -> None:
    """Law: with any one setting changed, the answers of the same weights are others."""
    assert generate(replace(asked, **other)) != usual


def test_generate_reads_the_rows_that_are_named(asked: GenerateConfig, tmp_path: Path) -> None:
    """Law: `data` and `split` name prompts, `output` the file of answers."""
    DatasetDict({name: Dataset.from_list([{"prompt": name}]) for name in ("train", "other")}).save_to_disk(
        tmp_path / "saved"
    )
    config = replace(asked, prompts=(), data=str(tmp_path / "saved"), max_new_tokens=2)
    for split in ("train", "other"):
        generate(replace(config, split=split, output=str(tmp_path / f"{split}.jsonl")))
        (line,) = (tmp_path / f"{split}.jsonl").read_text().splitlines()
        assert json.loads(line)["prompt"] == split


def test_rows_and_compute_dtype_change_the_engine(asked: GenerateConfig) -> None:
    """Law: `batch_size` prompts are decoded together, in `model.compute_dtype`."""
    small, large = (open_text_model("generate", asked.model, MeshOptions(), rows) for rows in (8, 24))
    assert (small.batch_size, large.batch_size) == (8, 24)
    narrow = open_text_model("generate", replace(asked.model, compute_dtype="bfloat16"), MeshOptions(), 8)
    assert narrow.engine(32)._model.compute.dtype == jnp.bfloat16 != small.engine(32)._model.compute.dtype


@pytest.fixture(scope="module")
def found(tiny_model: Path) -> TextModel:
    return open_text_model("chat", ForwardOptions(path=str(tiny_model), compute_dtype="float32"), MeshOptions(), 1)


@pytest.mark.parametrize(
    "other",
    [
        {"chat_template": "zephyr-no-system"}, {"system": "Be kind."}, {"max_new_tokens": 3}, {"temperature": 0.0},
        {"top_p": 0.01}, {"top_k": 1}, {"seed": 1},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_chat_change_the_answer(found: TextModel, other: dict[str, Any]) -> None:
    """Law: with any one setting changed, the answer of the same weights is another."""
    config = ChatConfig(chat_template="zephyr", max_new_tokens=12, temperature=1.0, top_p=1.0, top_k=0)

    def answer(config: ChatConfig) -> str:
        return "".join(ChatSession(config, found).answer("Hello there."))

    assert answer(replace(config, **other)) != answer(config)


def test_template_args_reach_the_prompts(
    asked: GenerateConfig, found: TextModel, tiny_model: Path, tmp_path: Path
) -> None:
    """Law: `template_args` of generate, chat and serve are what the template reads; plain text has none."""
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}{{ word | default('A') }}:\n")
    path, args = str(template), {"word": "never before"}
    ours = replace(asked, chat_template=path)
    assert generate(replace(ours, template_args=args)) != generate(ours)
    config = ChatConfig(chat_template=path, max_new_tokens=12, temperature=1.0, top_p=1.0, top_k=0)
    answers = [
        "".join(ChatSession(replace(config, template_args=given), found).answer("Hello.")) for given in (args, {})
    ]
    assert answers[0] != answers[1]
    served = open_server(
        ServeConfig(model=ForwardOptions(path=str(tiny_model)), chat_template=path, template_args=args)
    )
    served.worker.close()
    prompt = served.tokenizer.template.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True).text
    assert prompt.endswith("never before:")
    with pytest.raises(InputError, match="`template_args` are set with chat_template `none`"):
        replace(asked, chat_template="none", template_args=args).check()


# ---- serving ----


def test_settings_of_serve_are_those_of_the_server(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: name, chat_template, context_length, max_concurrency and the key's variable reach the server."""
    monkeypatch.setenv("SERVE_KEY", "sesame")
    model = ForwardOptions(path=str(tiny_model), compute_dtype="float32")
    config = ServeConfig(
        model=model,
        name="own",
        chat_template="zephyr-no-system",
        api_key_env="SERVE_KEY",
        max_concurrency=16,
        context_length=64,
    )
    served, plain_served = open_server(config), open_server(ServeConfig(model=model, chat_template="zephyr"))
    for each in (served, plain_served):
        each.worker.close()
    assert (served.name, served.api_key, served.context) == ("own", "sesame", 64)
    assert (plain_served.name, plain_served.api_key) == (tiny_model.name, None)
    assert plain_served.context > 64
    assert served.tokenizer.fingerprint != plain_served.tokenizer.fingerprint
    assert len(served.worker._engine._active) == 16


def test_host_is_where_the_server_listens(tiny_model: Path) -> None:
    """Law: the server listens at `host`; an address that this machine does not have is refused by name."""
    with pytest.raises(InputError, match="Cannot listen at 192.0.2.1 port 0"):
        serve(ServeConfig(model=ForwardOptions(path=str(tiny_model)), chat_template="zephyr", host="192.0.2.1", port=0))


# ---- feedback and benchmarks behind an address ----


def test_settings_of_a_checkpoint_in_this_process(tiny_model: Path, tmp_path: Path) -> None:
    """Law: compute_dtype, chat_template, batch_size and context_length of `feedback` are those of the checkpoint that answers."""
    base = RateConfig(chat_template="zephyr", compute_dtype="float32", batch_size=8, context_length=128)

    def opened(config: RateConfig, folder: str) -> tuple[Any, ...]:
        session = Session("feedback rate", replace(config, output=str(tmp_path / folder)), 0.0, keep=True)
        client: Any = session.models.open(str(tiny_model)).client
        text_model = client._text_model
        dtype, batch_size = text_model.identity["compute_dtype"], text_model.batch_size
        return dtype, client._tokenizer.fingerprint, batch_size, client._context

    usual = opened(base, "usual")
    others = {"compute_dtype": "bfloat16", "chat_template": "zephyr-no-system", "batch_size": 16, "context_length": 64}
    for place, (name, value) in enumerate(others.items()):
        changed = opened(replace(base, **{name: value}), name)
        assert [one != other for one, other in zip(usual, changed, strict=True)] == [place == n for n in range(4)]


def test_settings_of_feedback_reach_the_address(tmp_path: Path) -> None:
    """Law: limits, lengths, sampling and seeds of the three commands are in the requests."""
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Name a colour."}, {"prompt": "Name a fruit."}])
    rated = write_rows(
        tmp_path / "rated.jsonl", [plain("Name a colour.", 1, 2) | {"instruction": "Name a colour."}] * 2
    )
    common = "--limit 1 --top_p 0.5 --endpoint.max_retries 0 --seed"

    def reply(body: Row, number: int) -> tuple[int, str]:
        rated = "carry the code" in body["messages"][0]["content"]
        return 200, judgment(body) if rated else f"A reply, number {number}?"

    def bodies(words: str, data: Path, seed: int) -> list[Row]:
        with judge_at(reply) as (url, asked):
            line = f"feedback {words.format(url=url)} --data {data} --output {tmp_path}/{words.split()[0]}{seed} {common} {seed}"
            main(line.split())
        assert {body["top_p"] for body in asked} == {0.5}
        return asked

    talk = "conversations --assistant {url} --turns 2 --system Kind. --temperature 0.3"
    talk += " --user_max_new_tokens 7 --max_new_tokens 9"
    asked = bodies(talk, prompts, 1)
    assert {body["max_tokens"] for body in asked} == {7, 9}
    assert {body["temperature"] for body in asked} == {0.3}
    assert len(asked) == 3  # limit: one dialogue; two turns: an answer, a question, an answer
    assert asked[0]["messages"][0] == {"role": "system", "content": "Kind."}
    answers = "answers --models {url} --temperature 0.4 --max_new_tokens 11 --principles"
    (one,), (other,) = (bodies(answers, prompts, seed) for seed in (1, 2))
    assert (one["temperature"], one["max_tokens"]) == (0.4, 11)
    assert one["seed"] != other["seed"]
    rate = "rate --judge {url} --temperature 0.2 --max_new_tokens 13 --max_answer_chars 3"
    for body in bodies(rate, rated, 1):
        assert (body["temperature"], body["max_tokens"]) == (0.2, 13)
        assert not any("answer" in text for text in answers_shown(body).values())  # cut to three characters


def test_a_split_of_feedback_is_the_one_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: `split` of a folder with splits names the rows that are asked about."""
    splits = {"train": 1, "other": 3}
    table = {name: Dataset.from_list([{"prompt": f"p{n}"} for n in range(count)]) for name, count in splits.items()}
    DatasetDict(table).save_to_disk(tmp_path / "saved")
    with judge_at(lambda body, _: (200, "Yes.")) as (url, asked):
        main(f"feedback answers --models {url} --data {tmp_path}/saved --output {tmp_path}/out --split other".split())
    assert len(asked) == 3


def test_the_model_of_an_address_is_the_one_that_is_named(tmp_path: Path) -> None:
    """Law: the model before the URL is in the requests; without it, the only model that is served."""
    (tmp_path / "i.json").write_text(json.dumps([{"dataset": "d", "instruction": "Say."}]))
    with judge_at(lambda body, _: (200, "Yes.")) as (url, asked):
        for number, model in enumerate((url, f"other@{url}")):
            main(
                f"evaluate alpaca-eval --model {model} --instructions {tmp_path}/i.json --output {tmp_path}/{number}".split()
            )
    assert [body["model"] for body in asked] == ["wise", "other"]


class _Enough(Exception):
    """The rest of a command is of no interest."""


def test_rows_of_benchmarks_are_answered_together(
    golden: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: `batch_size` of MT-Bench, AlpacaEval and lm-eval is the number of rows that the model is opened with."""
    opened: list[int] = []

    def note(verb: str, model: ForwardOptions, mesh: MeshOptions, rows: int) -> TextModel:
        opened.append(open_text_model(verb, model, mesh, rows).batch_size)
        raise _Enough

    (tmp_path / "i.json").write_text(json.dumps([{"dataset": "d", "instruction": "Say."}]))
    bench = write_bench(tmp_path / "bench")
    commands = {
        "mt-bench": f"mt-bench --questions {bench} --output {tmp_path}/mt",
        "alpaca-eval": f"alpaca-eval --instructions {tmp_path}/i.json --output {tmp_path}/alpaca",
        "lm-eval": f"lm-eval --tasks zephyr_end --include_path {golden}/lm_eval",
    }
    monkeypatch.setattr("zephyr_jax.clients.open.open_text_model", note)
    monkeypatch.setattr("zephyr_jax.evaluate.lm_eval.open_text_model", note)
    for words in commands.values():
        for rows in (8, 24):
            with pytest.raises(_Enough):
                main(f"evaluate {words} --model {tiny_model} --batch_size {rows}".split())
    assert opened == [8, 24] * 3


def test_settings_of_benchmarks_reach_the_address(tmp_path: Path) -> None:
    """Law: lengths and sampling of AlpacaEval's model, and `name` and `limit`, are in requests and files."""
    (tmp_path / "instructions.json").write_text(
        json.dumps([{"dataset": "d", "instruction": f"Say {n}."} for n in range(3)])
    )
    with judge_at(lambda body, _: (200, "Yes.")) as (url, asked):
        main(
            f"evaluate alpaca-eval --model {url} --instructions {tmp_path}/instructions.json --output {tmp_path}/out --name own "
            "--limit 2 --max_new_tokens 5 --temperature 0.3 --top_p 0.4".split()
        )
    assert [(body["max_tokens"], body["temperature"], body["top_p"]) for body in asked] == [(5, 0.3, 0.4)] * 2
    assert len(json.loads((tmp_path / "out" / "own.json").read_text())) == 2


# ---- preparation and looks ----


def test_samples_and_seed_of_preparations(tmp_path: Path) -> None:
    """Law: `num_samples` bounds the texts written out for the eye, `seed` decides the order of rows."""
    chats = write_rows(tmp_path / "c.jsonl", [{"data": [f"hello {n}. how are you?", f"fine {n}."]} for n in range(12)])
    rated = write_rows(tmp_path / "r.jsonl", [plain(f"q{n}", 1, 2, 3) for n in range(12)] + [plain("q", 1)] * 3)
    for kind, path in (("ultrachat", chats), ("ultrafeedback", rated)):
        none, some = tmp_path / f"{kind}-none", tmp_path / f"{kind}-some"
        prepare(kind, path, none, "--num_samples", 0)
        prepare(kind, path, some, "--num_samples", 2, "--seed", 1)
        assert len((none / "samples.md").read_text()) < len((some / "samples.md").read_text())
        split = "train_sft.parquet" if kind == "ultrachat" else "train_prefs.parquet"
        assert (some / split).read_bytes() != (none / split).read_bytes()


def test_preview_starts_where_it_is_asked_to(rows: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: `start` is the index of the first row that is shown, `num_examples` their number."""
    shown = {}
    for start, number in ((0, 1), (2, 1), (2, 2)):
        main(f"preview --model {tiny_model} --data {rows} --num_examples {number} --start {start}".split())
        text = capsys.readouterr().out
        shown[start, number] = [n for n in range(6) if f"Question {n}?" in text]
    assert shown == {(0, 1): [0], (2, 1): [2], (2, 2): [2, 3]}


def test_settings_of_the_demo_reach_its_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: `seed` makes other data, `base` and `emulated_devices` are those of every stage, `seeds` repeats it all."""
    experiments: list[Any] = []
    monkeypatch.setattr(_Experiment, "run", lambda self: experiments.append(self))
    base = shutil.copytree(BASE, tmp_path / "base")
    with pytest.raises(TypeError):  # no stages, no table
        demo(DemoConfig(output=str(tmp_path / "demo"), seed=5, num_seeds=2, emulated_devices=4, base_model=str(base)))
    first, second = experiments
    assert (first.seed, second.seed) == (5, 6)
    assert first._mesh == {"emulated_devices": 4}
    assert first._base == str(base) != str(BASE)
    data = [Path(each._write_data()["prompts"]).read_text() for each in experiments]
    assert data[0] != data[1]
