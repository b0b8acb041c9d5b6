"""The other launchers: GKE, SkyPilot, SLURM, one host's side, and the recipe file's part in them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from tests.launch.shell import LAUNCH, Desk, commands, desk_in, options

SCRIPTS = sorted(LAUNCH.glob("*.sh"))
JOB = {"NAME": "zephyr", "IMAGE": "registry/zephyr:1", "ACCELERATOR": "v5litepod-16", "OUT": "gs://bucket/zephyr"}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return desk_in(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shell_is_sound(script: Path) -> None:
    """Parses, is strict unless it is sourced, says what it does, and can be run."""
    text = script.read_text()
    subprocess.run(["bash", "-n", script], check=True)
    sourced = text.startswith("# shellcheck shell=bash\n")
    assert sourced or "\nset -euo pipefail\n" in text
    assert sourced or os.access(script, os.X_OK)
    assert text.splitlines()[1].startswith(("# ", "#SBATCH"))
    assert max(map(len, text.splitlines())) <= 130


def test_shellcheck_is_silent() -> None:
    said = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "-x", *SCRIPTS],
        cwd=LAUNCH.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stdout + said.stderr == ""


def manifest(desk: Desk, *words: str, **settings: str) -> dict[str, Any]:
    """What a dry run of `apply` prints, which is YAML and called no tool."""
    said = desk.run("gke.sh", "--dry-run", "apply", *words, **{**JOB, **settings})
    assert said.returncode == 0, said.stderr
    assert not desk.calls()
    return yaml.safe_load(said.stdout)


def pod(job: dict[str, Any]) -> dict[str, Any]:
    """The pod template's spec of a JobSet."""
    return job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def lost(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Paths of what we wrote and a reader of the schema dropped or changed."""
    if isinstance(ours, dict):
        return [line for key in ours for line in lost(ours[key], (theirs or {}).get(key), f"{where}.{key}")]
    if isinstance(ours, list):
        pairs = zip(ours, theirs or [None] * len(ours), strict=True)
        return [line for at, (one, other) in enumerate(pairs) for line in lost(one, other, f"{where}[{at}]")]
    return [] if ours == theirs else [where]


@pytest.mark.parametrize("settings", [{}, {"SPOT": "1", "SECRET": "tokens", "CARDS": "c", "SLICES": "2"}])
def test_the_manifest_is_a_jobset(desk: Desk, settings: dict[str, str]) -> None:
    """Every key is known to the models made from JobSet's and Kubernetes' schemas, and keeps its value there."""
    job = manifest(desk, **settings)
    read = JobsetV1alpha2JobSet.from_dict(job)
    assert read is not None
    assert lost(job, json.loads(read.to_json())) == []


def test_a_misspelt_key_would_be_noticed(desk: Desk) -> None:
    job = manifest(desk)
    pod(job)["restartpolicy"] = pod(job).pop("restartPolicy")
    read = JobsetV1alpha2JobSet.from_dict(job)
    assert read is not None
    assert lost(job, json.loads(read.to_json())) == [
        ".spec.replicatedJobs[0].template.spec.template.spec.restartpolicy"
    ]


@pytest.mark.parametrize(
    ("accelerator", "label", "grid", "hosts", "chips"),
    [
        ("v5litepod-8", "tpu-v5-lite-podslice", "2x4", 1, 8),
        ("v5litepod-16", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v6e-256", "tpu-v6e-slice", "16x16", 64, 4),
        ("v5p-8", "tpu-v5p-slice", "2x2x1", 1, 4),
        ("v5p-128", "tpu-v5p-slice", "4x4x4", 16, 4),
        ("v4-16", "tpu-v4-podslice", "2x2x2", 2, 4),
    ],
)
def test_one_pod_a_host(desk: Desk, accelerator: str, label: str, grid: str, hosts: int, chips: int) -> None:
    job = manifest(desk, ACCELERATOR=accelerator, SLICES="3")
    slices = job["spec"]["replicatedJobs"][0]
    spec = slices["template"]["spec"]
    assert (slices["replicas"], spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (3, hosts, hosts, 0)
    selector = pod(job)["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == label
    assert selector["cloud.google.com/gke-tpu-topology"] == grid
    assert pod(job)["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips
    sides = [int(side) for side in grid.split("x")]
    assert hosts * chips == sides[0] * sides[1] * (sides + [1])[2]


def test_a_preempted_set_starts_again_and_goes_on(desk: Desk) -> None:
    job = manifest(desk, RESTARTS="7")
    assert job["spec"]["failurePolicy"] == {"maxRestarts": 7}
    assert pod(job)["restartPolicy"] == "Never"
    name = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert job["metadata"]["annotations"] == {name: "cloud.google.com/gke-nodepool"}


def test_words_of_the_command_survive_yaml(desk: Desk) -> None:
    words = ["launch/zephyr.sh", "--a", 'say "hi": \\n {x} # $(y) yes', "", "0x10", "- - -", "true"]
    assert pod(manifest(desk, *words))["containers"][0]["command"] == ["launch/host.sh", "exec", *words]


def test_kubectl_gets_what_was_printed(desk: Desk) -> None:
    printed = desk.run("gke.sh", "--dry-run", "apply", **JOB).stdout
    assert desk.run("gke.sh", "apply", **JOB, NAMESPACE="team").returncode == 0
    assert desk.calls() == [["kubectl", "--namespace=team", "apply", "--filename=-"]]
    assert (desk.folder / "stdin").read_text() == printed


@pytest.mark.parametrize("words", [["status"], ["logs"], ["logs", "all"], ["delete"]])
def test_kubectl_is_called_as_printed(desk: Desk, words: list[str]) -> None:
    printed = commands(desk.run("gke.sh", "--dry-run", *words, **JOB).stdout)
    assert printed
    desk.run("gke.sh", *words, **JOB)
    assert desk.calls() == printed


SKY, SLURM = {"OUT": "gs://bucket/zephyr"}, {"OUT": "/shared/zephyr"}


@pytest.mark.parametrize(
    ("script", "words", "settings", "complaint"),
    [
        ("gke.sh", ["aply"], JOB, "Unknown action 'aply'. Expected one of: apply status logs delete"),
        ("gke.sh", ["--spot", "apply"], JOB, "Unknown option '--spot'"),
        ("gke.sh", ["apply"], {**JOB, "IMAGE": ""}, "IMAGE is not set"),
        ("gke.sh", ["apply"], {**JOB, "ACCELERATOR": ""}, "ACCELERATOR is not set"),
        ("gke.sh", ["apply"], {**JOB, "ACCELERATOR": "a100"}, "ACCELERATOR is 'a100'"),
        ("gke.sh", ["apply"], {**JOB, "OUT": "/data"}, "since pods have no persistent disk"),
        ("gke.sh", ["apply"], {**JOB, "SLICES": "0"}, "SLICES is '0'"),
        ("gke.sh", ["apply", "a\nb"], JOB, "contains a line break or tab"),
        ("gke.sh", ["delete"], {"NAME": "9x"}, "NAME is '9x'"),
        ("skypilot.sh", [], {}, "OUT is ''"),
        ("skypilot.sh", ["--run.name", "two words"], SKY, "The setting 'two words' has a space"),
        ("skypilot.sh", [], {**SKY, "ACCELERATOR": "tpu-v6e-8"}, "ACCELERATOR is 'tpu-v6e-8'"),
        ("slurm.sh", [], {}, "OUT is not set. Set it to a folder that all nodes can write to"),
        ("slurm.sh", [], {"OUT": "/tmp/z"}, "which is local to each node"),
        ("slurm.sh", [], {**SLURM, "NODES": "x"}, "NODES is 'x'"),
        ("host.sh", ["strat"], {}, "Unknown action 'strat'"),
        ("host.sh", ["start"], {}, "start needs a command"),
    ],
)
def test_bad_settings_are_refused(
    desk: Desk, script: str, words: list[str], settings: dict[str, str], complaint: str
) -> None:
    said = desk.run(script, *words, **settings)
    assert said.returncode == 2
    assert complaint in said.stderr
    assert not desk.calls()


def test_skypilot_submits_a_managed_job(desk: Desk) -> None:
    settings = {**SKY, "ACCELERATOR": "v6e-16", "HF_TOKEN": "hidden"}
    (printed,) = commands(desk.run("skypilot.sh", "--dry-run", "--batch.examples", "64", **settings).stdout)
    assert printed[:3] == ["sky", "jobs", "launch"]
    assert {"tpu-v6e-16", "--use-spot", "OUT=gs://bucket/zephyr", "ARGS=--batch.examples 64"} <= set(printed)
    assert "hidden" not in " ".join(printed)
    assert not desk.calls()
    desk.run("skypilot.sh", "--batch.examples", "64", **settings)
    assert desk.calls() == [printed]


def test_the_skypilot_task_names_what_it_is_given(desk: Desk) -> None:
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    (printed,) = commands(desk.run("skypilot.sh", "--dry-run", "--x", "1", CARDS="c", HF_TOKEN="h", **SKY).stdout)
    given = [word.partition("=")[0] for flag, word in zip(printed, printed[1:], strict=False) if flag == "--env"]
    assert set(given) == {"OUT", "CARDS", "ARGS"} <= set(task["envs"])
    assert "HF_TOKEN" in task["secrets"]
    assert task["resources"]["use_spot"]
    assert (LAUNCH.parent / task["run"].split()[0]).exists()


def test_skypilot_itself_reads_the_task() -> None:
    """Its own schema and its own reader; only where SkyPilot is installed."""
    sky = pytest.importorskip("sky")
    jsonschema = pytest.importorskip("jsonschema")
    from sky.utils import schemas

    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    jsonschema.Draft202012Validator(schemas.get_task_schema()).validate(task)
    jsonschema.Draft202012Validator(schemas.get_resources_schema()).validate(task["resources"])
    read = sky.Task.from_yaml_config({**task, "envs": {**task["envs"], "OUT": "gs://bucket/zephyr"}})
    assert all(each.use_spot for each in read.resources)


def test_slurm_submits_itself(desk: Desk) -> None:
    words = ["--partition=tpu", "--", "launch/zephyr.sh", "--x", "two words"]
    said = desk.run("slurm.sh", "--dry-run", *words, NODES="4", **SLURM)
    submit, inside = commands(said.stdout)
    later = desk.run("slurm.sh", words[0], "--dry-run", *words[1:], NODES="4", **SLURM)
    assert later.stdout == said.stdout
    assert not desk.calls()
    assert options(submit)["--nodes"] == "4"
    assert submit[-4:] == ["launch/slurm.sh", *words[2:]]
    assert submit.index("--partition=tpu") < submit.index("launch/slurm.sh")
    desk.run("slurm.sh", *words, NODES="4", **SLURM)
    desk.run("slurm.sh", *words[2:], SLURM_JOB_ID="7", **SLURM)
    assert desk.calls() == [submit, inside]


def test_slurm_requeues_when_time_runs_out(desk: Desk) -> None:
    """What sbatch's flags at the top ask for, and the signal that comes three minutes before the limit."""
    asked = [line for line in (LAUNCH / "slurm.sh").read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --ntasks-per-node=1", "#SBATCH --signal=B:USR1@180"} <= set(asked)
    (desk.folder / "bin" / "srun").write_text("#!/usr/bin/env bash\nkill -USR1 $PPID\nsleep 0.3\n")
    desk.run("slurm.sh", "launch/zephyr.sh", SLURM_JOB_ID="7", **SLURM)
    assert desk.calls() == [["scontrol", "requeue", "7"]]


def until(desk: Desk, wanted: str, **settings: str) -> str:
    """host.sh's state, once it is `wanted` or ten seconds have passed."""
    said = ""
    for _ in range(100):
        said = desk.run("host.sh", "state", **settings).stdout.strip()
        if said == wanted:
            break
        time.sleep(0.1)
    return said


def test_a_host_runs_a_command_in_the_background(desk: Desk, tmp_path: Path) -> None:
    """It outlives the shell that started it, its end is known, and only one runs at a time."""
    run = {"RUN_FOLDER": str(tmp_path / "run")}
    assert until(desk, "none", **run) == "none"
    assert desk.run("host.sh", "start", "bash", "-c", "echo told; exit 3", **run).returncode == 0
    assert until(desk, "ended 3", **run) == "ended 3"
    assert desk.run("host.sh", "log", **run).stdout == "told\n"
    desk.run("host.sh", "start", "sleep", "60", **run)
    assert until(desk, "running", **run) == "running"
    again = desk.run("host.sh", "start", "sleep", "60", **run)
    assert again.returncode == 2
    assert "A command is already running" in again.stderr
    desk.run("host.sh", "stop", **run)
    assert until(desk, "lost", **run) == "lost"
    assert desk.run("host.sh", "stop", **run).returncode == 0


def test_a_restarted_machine_has_lost_its_command(desk: Desk, tmp_path: Path) -> None:
    """The number of a process of before may be another's now."""
    (tmp_path / "process").write_text(f"{os.getpid()} another-boot\n")
    assert desk.run("host.sh", "state", RUN_FOLDER=str(tmp_path)).stdout == "lost\n"


def test_state_is_that_of_the_command_asked_about(desk: Desk, tmp_path: Path) -> None:
    """Another command's end, or the same one's with other runs, says nothing about this one."""
    run = {"RUN_FOLDER": str(tmp_path / "run"), "OUT": "gs://bucket/a"}
    desk.run("host.sh", "start", "true", "two words", **run)
    assert until(desk, "ended 0", **run) == "ended 0"
    for words, out, said in (
        (["true", "two words"], "gs://bucket/a", "ended 0"),
        (["true", "two", "words"], "gs://bucket/a", "none"),
        (["true", "two words"], "gs://bucket/b", "none"),
    ):
        assert desk.run("host.sh", "state", *words, **{**run, "OUT": out}).stdout == f"{said}\n"


def test_every_host_runs_every_stage(desk: Desk) -> None:
    """Each stage is one program on all hosts; on a TPU, under our compiler flags."""
    assert desk.run("zephyr.sh", "--x", "1", OUT="gs://bucket/z").returncode == 0
    assert [call[1] for call in desk.calls() if call[0] == "zephyr-jax"] == ["sft", "reference", "dpo", "export"]
    (desk.folder / "bin" / "zephyr-jax").write_text('#!/usr/bin/env bash\necho "flags=${LIBTPU_INIT_ARGS:-}"\n')
    on_tpu = desk.run("zephyr.sh", TPU_CHIP="v6e", LIBTPU_INIT_ARGS="--mine").stdout.splitlines()
    assert len(on_tpu) == 4
    assert all("scoped_vmem_limit_kib" in line and line.endswith(" --mine") for line in on_tpu)
    assert set(desk.run("zephyr.sh").stdout.splitlines()) == {"flags="}


def test_a_host_installs_what_the_tpu_needs(desk: Desk) -> None:
    printed = commands(desk.run("host.sh", "--dry-run", "install").stdout)
    assert printed[-1][:2] == ["uv", "sync"]
    assert printed[-1][printed[-1].index("--extra") + 1] == "tpu"
