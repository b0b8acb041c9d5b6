"""launch/flags.sh: flags by kind of TPU, yours behind ours, and each of them known to the libtpu that we pin."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FLAGS = Path(__file__).parents[2] / "launch" / "flags.sh"
TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
NEEDS_LIBTPU = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="libtpu is not installed: uv run --extra tpu pytest"
)
STEP = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

devices = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices
mesh = Mesh(np.array(devices), ("fsdp",))
array = lambda spec, *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
loss = lambda w, x: (jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, w)[0] ** 2).mean()
step = jax.jit(lambda w, x: w - jax.grad(loss)(w, x))
print("compiled", len(step.lower(array(P(None, "fsdp"), 2, 512, 512), array(P("fsdp"), 512, 512)).compile().as_text()))
"""


def flags(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """LIBTPU_INIT_ARGS after sourcing with these words; stderr is what it said."""
    script = 'set -euo pipefail; . "$0" "$@"; printf %s "${LIBTPU_INIT_ARGS:-}"'
    environment = {"PATH": "/usr/bin:/bin", "GCE_METADATA_IP": "127.0.0.1:9", **settings}
    command = ["bash", "-c", script, str(FLAGS), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True)


@pytest.mark.parametrize(
    ("said", "kind"),
    [("v4-32", "v4"), ("v5litepod-8", "v5e"), ("v5e", "v5e"), ("v5p-8", "v5p"), ("v6e-16", "v6e")],
)
def test_the_kind_is_found(said: str, kind: str) -> None:
    """As an argument, or in either variable."""
    wanted = flags(kind).stdout
    assert wanted
    assert flags(said).stdout == wanted
    assert flags("", TPU_CHIP=said).stdout == wanted
    assert flags("", TPU_ACCELERATOR_TYPE=said).stdout == wanted


def test_kinds_differ_where_chips_do() -> None:
    assert "--xla_tpu_scoped_vmem_limit_kib=98304" in flags("v6e").stdout.split()
    assert not [kind for kind in ("v4", "v5e", "v5p") if "scoped_vmem" in flags(kind).stdout]
    assert [kind for kind in TOPOLOGIES if "async_collective_fusion" in flags(kind).stdout] == ["v5e"]


def test_yours_win() -> None:
    """Behind ours, once, also when sourced twice; or none of ours."""
    mine = "--xla_tpu_scoped_vmem_limit_kib=65536"
    once = flags("v6e", LIBTPU_INIT_ARGS=mine).stdout
    assert once.split()[-1] == mine
    assert flags("v6e", LIBTPU_INIT_ARGS=once).stdout == once
    assert flags("v6e", LIBTPU_INIT_ARGS=mine, TPU_FLAGS="no").stdout == mine


def test_an_unknown_kind_sets_nothing_and_says_so() -> None:
    for words in (("v9",), ("",)):
        said = flags(*words)
        assert said.stdout == ""
        assert "Set TPU_CHIP=v5e" in said.stderr


def compile_step(topology: str, arguments: str) -> subprocess.CompletedProcess[str]:
    """A tiny FSDP step for the topology in a process of its own; libtpu reads its flags once."""
    environment = {
        **os.environ,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", STEP, topology]
    environment["LIBTPU_INIT_ARGS"] = arguments
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@NEEDS_LIBTPU
@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_libtpu_knows_every_flag(kind: str) -> None:
    said = compile_step(TOPOLOGIES[kind], flags(kind).stdout)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("compiled")


@NEEDS_LIBTPU
def test_one_kinds_flags_are_not_anothers() -> None:
    """MaxText's list, which was for all kinds once, is an error off v5e in the libtpu that we pin."""
    said = compile_step(TOPOLOGIES["v6e"], flags("v5e").stdout)
    assert said.returncode != 0
    assert "not supported/recommended on platforms other than TPU v5e" in said.stderr


@NEEDS_LIBTPU
def test_libtpu_ends_at_a_flag_that_it_does_not_know() -> None:
    """Which is what makes the test above one."""
    said = compile_step(TOPOLOGIES["v5e"], "--xla_tpu_no_such_flag=true")
    assert said.returncode != 0
    assert "xla_tpu_no_such_flag" in said.stderr
