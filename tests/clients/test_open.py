"""Opening models by their specs: one budget, one client per model, and no key for the wrong host."""

from pathlib import Path

import pytest

from tests.checkpoint.adapters import query_adapter
from zephyr_jax.clients.open import LocalOptions, ModelOpener
from zephyr_jax.config.adapter import InferenceOptions
from zephyr_jax.config.benchmarks import MtBenchConfig
from zephyr_jax.config.sections import EndpointOptions, ForwardOptions, MeshOptions
from zephyr_jax.errors import InputError

MODEL = "m@http://127.0.0.1:9/v1"


def opener(folder: Path, forward: ForwardOptions | None = None, **endpoint: object) -> ModelOpener:
    local = LocalOptions(
        forward=forward or ForwardOptions(),
        mesh=MeshOptions(),
        batch_size=1,
        chat_template=None,
        context_length=None,
        keep=False,
    )
    return ModelOpener("a test", folder, EndpointOptions(**endpoint), local)


def test_a_limit_in_dollars_needs_prices_and_accepts_zero(tmp_path: Path) -> None:
    """A free model may stand beside a paid one."""
    models = opener(tmp_path, max_cost_usd=1.0)
    with pytest.raises(InputError, match="needs the prices of http://127.0.0.1:9/v1"):
        models.open(MODEL)
    assert models.open(f"{MODEL},price_per_mtok_in=0,price_per_mtok_out=0").price_per_mtok_in == 0
    assert models.open("paid@http://127.0.0.1:9/v1,price_per_mtok_out=10").price_per_mtok_out == 10


@pytest.mark.parametrize("option", ["price_per_mtok_in=99", "api_key_env=ZEPHYR_TEST_KEY"])
def test_one_model_has_one_client_and_one_set_of_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Two clients would share a journal: a reply could be paid twice, or counted at another price."""
    monkeypatch.setenv("ZEPHYR_TEST_KEY", "a-key-for-this-test")
    models = opener(tmp_path)
    first = models.open(f"{MODEL},price_per_mtok_in=1")
    assert models.open(f"{MODEL},price_per_mtok_in=1,name=again").client is first.client
    with pytest.raises(InputError, match="twice with different options"):
        models.open(f"{MODEL},{option}")


def test_one_key_is_not_sent_to_two_hosts() -> None:
    def check(model: str, judge: str) -> None:
        config = MtBenchConfig(
            model=InferenceOptions(path=model), judge=judge, endpoint=EndpointOptions(api_key_env="OPENAI_API_KEY")
        )
        config.check()

    check("m@https://api.openai.com/v1", "j@https://api.openai.com/v1")
    check("m@http://other/v1,api_key_env=OTHER", "j@https://api.openai.com/v1,api_key_env=OPENAI_API_KEY")
    with pytest.raises(InputError, match="would send one key to"):
        check("m@http://other/v1", "j@https://api.openai.com/v1")


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    """Equal names would mix their answers; another name makes one of them distinct."""
    models = opener(tmp_path)
    with pytest.raises(InputError, match=r"distinct model names, got 'm' twice.*name=OTHER"):
        models.open_all([MODEL, "m@http://127.0.0.1:10/v1"])
    assert [one.name for one in models.open_all([MODEL, "m@http://127.0.0.1:10/v1,name=other"])] == ["m", "other"]


def test_answers_of_an_adapter_have_its_name(tiny_model: Path, tmp_path: Path) -> None:
    """Not that of the base beside which it is named, unless the spec has a name."""
    adapter = query_adapter(tiny_model, tmp_path / "my-adapter")
    models = opener(tmp_path, forward=ForwardOptions(adapter=str(adapter)))
    assert [models.open(f"{tiny_model}{name}").name for name in ("", ",name=other")] == ["my-adapter", "other"]


def test_usage_is_logged_also_when_the_work_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a remote model there is nothing to log."""
    models = opener(tmp_path)
    with models.log_usage():
        pass
    assert not capsys.readouterr().err and models.usage_summary() == ""
    models.open(MODEL)
    with pytest.raises(InputError, match="stopped"), models.log_usage():
        raise InputError("stopped")
    assert "API usage: 0 tokens" in capsys.readouterr().err


def test_a_local_model_is_opened_once(tiny_model: Path, tmp_path: Path) -> None:
    """Under any name and temperature: its weights are in memory once, and its replies in one journal."""
    models = opener(tmp_path)
    one, other = models.open(str(tiny_model)), models.open(f"{tiny_model},name=other,temperature=0.5")
    assert one.client is other.client and (one.temperature, other.temperature) == (0.0, 0.5)
    assert (one.name, other.name) == (tiny_model.name, "other")
    assert models.usage_summary() == "", "only remote models cost"
