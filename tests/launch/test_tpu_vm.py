"""launch/tpu_vm.sh: what it would do, that it does just that, and that preemptions do not end it."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.launch.shell import Desk, commands, desk_in, options

SLICE = {"NAME": "zephyr", "ZONE": "us-west4-a", "ACCELERATOR": "v5litepod-16", "OUT": "gs://bucket/zephyr"}
FAST = {"POLL": "0"}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return desk_in(tmp_path)


def dry(desk: Desk, *words: str, **settings: str) -> list[list[str]]:
    """The commands of a dry run, which calls no tool."""
    said = desk.run("tpu_vm.sh", "--dry-run", *words, **{**SLICE, **settings})
    assert said.returncode == 0, said.stderr
    assert not desk.calls()
    return commands(said.stdout)


def verbs(calls: list[list[str]]) -> list[str]:
    """What was asked of gcloud, in one word a call: create, describe, scp, delete, or what ssh was to do on the hosts."""
    done = []
    for call in calls:
        remote = options(call).get("--command", "")
        inner = [word for word in ("install", "start", "state", "stop", "log") if f"host.sh {word}" in remote]
        done += inner or [call[4]]
    return done


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_create_asks_for_the_slice_and_looks_at_it(desk: Desk, accelerator: str, runtime: str) -> None:
    ask, look = dry(desk, "create", ACCELERATOR=accelerator, PROJECT="mine")
    assert ask[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "zephyr"]
    assert options(ask) == {
        "--zone": "us-west4-a",
        "--project": "mine",
        "--accelerator-type": accelerator,
        "--runtime-version": runtime,
        "--node-id": "zephyr",
    }
    assert look[4:6] == ["describe", "zephyr"]


def test_spot_slices_and_flags_of_gcloud(desk: Desk) -> None:
    ask = dry(desk, "create", "--spot", "--slices", "2", "--", "--network=fast", RUNTIME="v9")[0]
    assert {"--spot", "--node-count=2", "--node-prefix=zephyr", "--network=fast", "--runtime-version=v9"} <= set(ask)
    assert not any(word.startswith("--node-id") for word in ask)


def test_without_the_queue(desk: Desk) -> None:
    ask, look = dry(desk, "create", "--spot", QUEUE="no")
    assert ask[3:5] == ["tpu-vm", "create"]
    assert options(ask)["--version"] == "v2-alpha-tpuv5-lite"
    assert options(look)["--format"] == "value(state)"
    assert "--node" not in options(dry(desk, "run", QUEUE="no")[0])


def test_install_copies_this_commit_to_every_host(desk: Desk) -> None:
    pack, copy, unpack = dry(desk, "install")
    assert pack[:2] == ["git", "archive"]
    assert pack[-1] == "HEAD"
    assert options(pack)["--output"] == copy[5]
    for command in (copy, unpack):
        assert (options(command)["--node"], options(command)["--worker"]) == ("all", "all")
    assert "host.sh install" in options(unpack)["--command"]


def test_install_may_clone_and_hands_over_secrets_as_a_file(desk: Desk) -> None:
    clone, secrets = dry(desk, "install", GIT="https://example.com/it.git", ENV_FILE="my.env")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert f"checkout --quiet {head}" in options(clone)["--command"]
    assert secrets[4:7] == ["scp", "my.env", "zephyr:zephyr-jax/.env"]


def test_run_starts_the_same_command_on_every_host(desk: Desk) -> None:
    (run,) = dry(desk, "run", "launch/zephyr.sh", "--run.name", "it's two words", LIBTPU_INIT_ARGS="--a=1 --b=2")
    assert (options(run)["--node"], options(run)["--worker"]) == ("all", "all")
    remote = shlex.split(options(run)["--command"])
    assert remote[:4] == ["cd", "zephyr-jax", "&&", "env"]
    assert {"OUT=gs://bucket/zephyr", "TPU_CHIP=v5e", "LIBTPU_INIT_ARGS=--a=1 --b=2"} <= set(remote)
    assert remote[-5:] == ["launch/host.sh", "start", "launch/zephyr.sh", "--run.name", "it's two words"]


def test_logs_fetch_status_stop_delete(desk: Desk) -> None:
    assert options(dry(desk, "logs", "-f")[0])["--command"].endswith("log -f")
    assert options(dry(desk, "logs", "3", NODE="1")[0])["--worker"] == "3"
    assert options(dry(desk, "logs", "all")[0])["--node"] == "all"
    assert dry(desk, "fetch") == [["gcloud", "storage", "cp", "--recursive", "gs://bucket/zephyr-hf", "."]]
    assert dry(desk, "fetch", "dpo", "here", OUT="runs/z")[0][4:8] == [
        "scp",
        "--recurse",
        "zephyr:zephyr-jax/runs/z-dpo",
        "here",
    ]
    assert verbs(dry(desk, "status")) == ["describe", "state"]
    assert verbs(dry(desk, "stop")) == ["stop"]
    assert set(options(dry(desk, "delete")[0])) == {"--zone", "--force", "--quiet"}


@pytest.mark.parametrize("verb", ["create", "install", "run", "logs", "fetch", "status", "stop", "delete"])
def test_what_is_printed_is_what_is_done(desk: Desk, verb: str) -> None:
    printed = [command for command in dry(desk, verb) if command[0] == "gcloud"]
    desk.answer("describe", "ACTIVE")
    assert desk.run("tpu_vm.sh", verb, **SLICE, **FAST).returncode == 0
    assert desk.calls() == printed


def test_create_waits_and_says_when_nothing_came(desk: Desk) -> None:
    desk.answer("describe", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    said = desk.run("tpu_vm.sh", "create", **SLICE, **FAST)
    assert verbs(desk.calls()) == ["create", "describe", "describe", "describe"]
    assert "WAITING_FOR_RESOURCES" in said.stderr
    desk.answer("describe", "FAILED")
    said = desk.run("tpu_vm.sh", "create", **SLICE, **FAST)
    assert said.returncode == 2
    assert "The slice is FAILED" in said.stderr


@pytest.mark.parametrize(("lost", "queue"), [("SUSPENDED", "yes"), ("PREEMPTED", "no")])
def test_auto_starts_again_after_a_preemption(desk: Desk, lost: str, queue: str) -> None:
    """Asked for, installed, started; taken away; all of it once more; deleted when the command has ended well."""
    there = "ACTIVE" if queue == "yes" else "READY"
    desk.answer("describe", "!NOT_FOUND", "PROVISIONING", there, there, lost, "!NOT_FOUND", there)
    desk.answer("state", "none", "running", "none", "running", "ended 0")
    said = desk.run("tpu_vm.sh", "auto", "--spot", **SLICE, **FAST, QUEUE=queue)
    assert said.returncode == 0, said.stderr
    once = ["create", "describe", "describe", "state", "scp", "install", "stop", "start", "describe", "state"]
    again = ["create", "describe", "state", "scp", "install", "stop", "start", "describe", "state", "describe", "state"]
    assert verbs(desk.calls()) == ["describe", *once[:1], *once[1:], "describe", "delete", "describe", *again, "delete"]
    starts = [call for call in desk.calls() if "host.sh start" in " ".join(call)]
    assert starts[0] == starts[1]


def test_auto_begins_with_what_a_dry_run_prints(desk: Desk) -> None:
    printed = dry(desk, "auto", "--spot")
    assert verbs([command for command in printed if command[0] == "gcloud"]) == [
        *("create", "scp", "install", "stop", "start", "describe", "state", "delete")
    ]
    desk.answer("describe", "!NOT_FOUND", "ACTIVE")
    desk.answer("state", "none", "ended 0")
    assert desk.run("tpu_vm.sh", "auto", "--spot", **SLICE, **FAST).returncode == 0
    assert [call for call in desk.calls() if call not in printed] == []
    assert [command for command in printed if command[0] == "gcloud" and command not in desk.calls()] == []


def test_auto_gives_up_on_a_command_that_fails_by_itself(desk: Desk) -> None:
    desk.answer("describe", "ACTIVE")
    desk.answer("state", "running", "ended 4", "running", "lost", "ended 1")
    said = desk.run("tpu_vm.sh", "auto", **SLICE, **FAST, RETRIES="2")
    assert said.returncode == 1
    assert "failed 3 times without a preemption" in said.stderr
    assert verbs(desk.calls()).count("start") == 2
    assert "delete" not in verbs(desk.calls())


def test_auto_goes_on_with_what_it_finds(desk: Desk) -> None:
    """A host that does not answer is asked again; so is gcloud."""
    desk.answer("describe", "ACTIVE", "ACTIVE", "!network is down", "ACTIVE")
    desk.answer("state", "none", "!cannot connect", "running", "ended 0")
    said = desk.run("tpu_vm.sh", "auto", **SLICE, **FAST)
    assert said.returncode == 0, said.stderr
    assert verbs(desk.calls()).count("start") == 1
    assert "network is down" in said.stderr


@pytest.mark.parametrize(
    ("words", "settings", "complaint"),
    [
        (["creat"], {}, "Unknown action 'creat'. Expected one of: create install run"),
        ([], {}, "Unknown action ''"),
        (["create", "--sopt"], {}, "Unknown option '--sopt'"),
        (["create"], {"NAME": ""}, "NAME is ''. Expected 1 to 40 lower-case"),
        (["create"], {"NAME": "My_Slice"}, "NAME is 'My_Slice'"),
        (["create"], {"ZONE": ""}, "ZONE is not set"),
        (["create"], {"ACCELERATOR": ""}, "ACCELERATOR is not set"),
        (["create"], {"ACCELERATOR": "v7-8"}, "ACCELERATOR is 'v7-8'. Expected a Google Cloud accelerator type"),
        (["create"], {"ACCELERATOR": "v5e"}, "ACCELERATOR is 'v5e'"),
        (["create"], {"ACCELERATOR": "v6e-12"}, "a v6e slice has 1, 4, 8, 16"),
        (["create"], {"ACCELERATOR": "v5p-4"}, "v5p counts cores, two per chip: 8, 16"),
        (["create", "--slices", "two"], {}, "SLICES is 'two'. Expected an integer"),
        (["create", "--slices"], {}, "SLICES is ''"),
        (["create", "--slices", "2"], {"QUEUE": "no"}, "Several slices need a queued resource"),
        (["run"], {"OUT": ""}, "OUT is ''. Expected a bucket folder that all hosts can write to"),
        (["run"], {"OUT": "runs/z"}, "since v5litepod-16 times 1 is 4 hosts"),
        (["run"], {"OUT": "runs/z", "ACCELERATOR": "v6e-8", "SLICES": "2"}, "v6e-8 times 2 is 2 hosts"),
        (["auto"], {"OUT": "runs/z", "ACCELERATOR": "v6e-8"}, "a preempted VM loses its disk"),
        (["fetch"], {"OUT": ""}, "OUT is not set"),
    ],
)
def test_bad_settings_are_refused(desk: Desk, words: list[str], settings: dict[str, str], complaint: str) -> None:
    said = desk.run("tpu_vm.sh", *words, **{**SLICE, **settings})
    assert said.returncode == 2
    assert complaint in said.stderr
    assert not desk.calls()


def test_one_host_may_write_to_its_own_disk(desk: Desk) -> None:
    assert "OUT=runs/z" in options(dry(desk, "run", OUT="runs/z", ACCELERATOR="v5litepod-8")[0])["--command"]
