"""Profiled steps: a trace in the run, and shares that add up."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from jax.profiler import ProfileData

from tests.conftest import write_rows
from tests.methods.small import sft_config
from zephyr_jax.checkpoint.steps import restore_parameters
from zephyr_jax.config.step_range import StepRange
from zephyr_jax.config.training import SftConfig
from zephyr_jax.demo.corpus import conversations
from zephyr_jax.errors import InputError
from zephyr_jax.report.run_record import read_run
from zephyr_jax.train.profiler import ProfiledStep
from zephyr_jax.train.trace import BATCH, KINDS, Shares, operation_kinds, time_shares
from zephyr_jax.train_command import train

PROGRAM = """
HloModule jit_step

%inner (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0} parameter(0)
  ROOT %dot.1 = f32[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (arg: (f32[4,4], s32[])) -> (f32[4,4], s32[]) {
  %arg = (f32[4,4]{1,0:T(8,128)}, s32[]) parameter(0)
  %fusion.2 = f32[4,4]{1,0} fusion(%arg), kind=kOutput, calls=%inner, metadata={op_name="jit(step)/mlp/dot_general"}
  %scores = f32[4,4]{1,0} fusion(%arg), kind=kLoop, calls=%inner, metadata={op_name="jit(step)/jvp(attention)/dot_general"}
  ROOT %tuple.1 = (f32[4,4]{1,0}, s32[]) tuple(%fusion.2, %arg)
}

ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  %while.1 = (f32[4,4]{1,0}, s32[]) while(%x), condition=%cond, body=%body
  %gemm = f32[4,4]{1,0} custom-call(%x), custom_call_target="__cublas$gemm"
  %all-reduce.3 = f32[4,4]{1,0} all-reduce(%x), to_apply=%sum
  ROOT %wrapped_tanh = f32[4,4]{1,0} fusion(%x), kind=kLoop, calls=%tanh
}
"""


def trace(*lines: list[tuple[str, float, float]], host: Sequence[tuple[float, float]] = ()) -> ProfileData:
    """A trace with one line of (operation, start, end) for each device, and times in which the host makes batches."""

    def event(name: str, start: float, end: float, **stats: Any) -> SimpleNamespace:
        return SimpleNamespace(name=name, start_ns=start, duration_ns=end - start, stats=list(stats.items()))

    devices = [
        SimpleNamespace(
            name=str(at),
            events=[
                event(
                    name, start, end, hlo_op=name.split("/")[-1], hlo_module=name.partition("/")[0], device_ordinal=at
                )
                if "/" in name
                else event(name, start, end, hlo_op=name, hlo_module="jit_step", device_ordinal=at)
                for name, start, end in events
            ],
        )
        for at, events in enumerate(lines)
    ]
    batches = SimpleNamespace(name="python", events=[event(BATCH, *times) for times in host])
    return cast(ProfileData, SimpleNamespace(planes=[SimpleNamespace(name="/host:CPU", lines=[*devices, batches])]))


def test_kinds_come_from_the_compiled_program() -> None:
    """A fusion that multiplies, a library's matmul, attention by its scope, transfers, and what is left."""
    kinds = operation_kinds(PROGRAM)
    expected = {
        "dot.1": "matmul",
        "fusion.2": "matmul",
        "gemm": "matmul",
        "scores": "attention",
        "all-reduce.3": "collective",
        "while.1": "other",
        "wrapped_tanh": "other",
    }
    assert {name: kinds[name] for name in expected} == expected


def test_shares_count_what_is_inside_a_loop_once() -> None:
    """Law: a loop's own time is what its body leaves; gaps are idle, or wait for data while the host makes a batch."""
    one = [
        ("while.1", 0, 60),
        ("fusion.2", 0, 30),
        ("scores", 30, 50),
        ("all-reduce.3", 70, 80),
        ("wrapped_tanh", 80, 100),
    ]
    other = [("fusion.2", 0, 100)]
    shares = time_shares(trace(one, other, host=[(64, 90)]), PROGRAM, (3, 4), num_longest=1)
    expected = {"matmul": 130, "attention": 20, "collective": 10, "other": 30, "waits for data": 6, "idle": 4}
    assert shares.by_kind == pytest.approx({kind: part / 200 for kind, part in expected.items()})
    assert list(shares.by_kind) == list(KINDS)
    assert (shares.steps, shares.num_devices, shares.seconds) == ((3, 4), 2, pytest.approx(100e-9))
    assert shares.longest == [("fusion.2", "matmul", pytest.approx(0.65))]


def test_other_programs_between_the_steps_are_other() -> None:
    """An evaluation's operations may have the names of the step's."""
    shares = time_shares(trace([("fusion.2", 0, 30), ("jit_evaluate/fusion.2", 30, 100)]), PROGRAM, (1, 2))
    assert shares.by_kind["matmul"] == pytest.approx(0.3) and shares.by_kind["other"] == pytest.approx(0.7)
    assert shares.longest[0][0] == "jit_evaluate/fusion.2"


def test_a_trace_of_another_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no operation of the step"):
        time_shares(trace([("unknown", 0, 1)]), PROGRAM, (1, 1))


@pytest.fixture(scope="module")
def config(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> SftConfig:
    """A run of three steps."""
    folder = tmp_path_factory.mktemp("profiled")
    rows = write_rows(folder / "chats.jsonl", list(conversations(0, 40, "train")))
    config = sft_config(tiny_model, rows, folder / "run", epochs=1)
    return replace(config, schedule=replace(config.schedule, max_steps=3, save_every=0))


def test_a_run_with_a_profile_is_the_run_without(
    config: SftConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same weights bit for bit; the trace, its summary and the report's table are in the run."""
    profiled = replace(config, output=str(tmp_path / "run"), profile="2:3")
    with caplog.at_level(logging.INFO):
        train(profiled)
    train(config)
    one, other = (restore_parameters(Path(each.output), None, None) for each in (config, profiled))
    np.testing.assert_array_equal(one["embedding"], other["embedding"])
    assert list((tmp_path / "run" / "profile" / "plugins" / "profile" / "steps-2-3").glob("*.xplane.pb"))
    shares = read_run(tmp_path / "run").profile
    assert shares is not None and shares.steps == (2, 3) and shares.num_devices == 8
    assert sum(shares.by_kind.values()) == pytest.approx(1)
    assert all(shares.by_kind[kind] > 0.005 for kind in ("matmul", "attention", "collective"))
    assert "profile of steps 2 to 3: " in caplog.text
    assert "Longest operations" in (tmp_path / "run" / "report.html").read_text()


def test_steps_that_the_run_does_not_have(config: SftConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected steps of the run, 1 to 3; got 3:4"):
        train(replace(config, output=str(tmp_path / "run"), profile="3:4"))
    assert not (tmp_path / "run").exists()


def test_steps_that_were_done_before_a_restart_are_reported(
    config: SftConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = StepRange(2, 3)
    ProfiledStep(None, steps, start=1, folder=tmp_path)
    assert not caplog.text
    ProfiledStep(None, steps, start=2, folder=tmp_path)
    assert "no profile: step 2 has been done already" in caplog.text


@pytest.mark.parametrize("content", [{}, {"steps": [1, 2]}, [], None, {"steps": "ab"}])
def test_a_damaged_summary_is_named(content: object) -> None:
    with pytest.raises(ValueError, match=r"expected a summary of profiled steps|invalid literal"):
        Shares.from_json(content)


@pytest.mark.parametrize("text", ["", "3", "0:2", "4:3", "1:2:3", "-1:2", "a:b", "1:9999999999"])
def test_ranges_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"profile: expected the first and the last step to profile, such as 10:13"):
        StepRange.parse(text, "profile")
