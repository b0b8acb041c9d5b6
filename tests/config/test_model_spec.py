"""The grammar of a model on the command line."""

import pytest

from zephyr_jax.config.model_spec import parse_model_spec
from zephyr_jax.errors import InputError


def test_local_paths() -> None:
    spec = parse_model_spec("runs/zephyr, a copy,temperature=0.3")
    assert (spec.path, spec.url, spec.name, spec.temperature) == ("runs/zephyr, a copy", None, None, 0.3)
    bucket = parse_model_spec("gs://bucket/run,name=mine")
    assert (bucket.path, bucket.name) == ("gs://bucket/run", "mine")


def test_remote_models() -> None:
    spec = parse_model_spec(
        "org/model@v2@https://host/v1,api_key_env=MY_KEY,price_per_mtok_in=0.5,price_per_mtok_out=2"
    )
    assert (spec.path, spec.url, spec.model, spec.api_key_env) == (None, "https://host/v1", "org/model@v2", "MY_KEY")
    assert (spec.price_per_mtok_in, spec.price_per_mtok_out) == (0.5, 2.0)
    assert (
        parse_model_spec("m@http://h/v1,max_tokens_param=max_completion_tokens").max_tokens_param
        == "max_completion_tokens"
    )
    unnamed = parse_model_spec("http://host:8000/v1")
    assert (unnamed.url, unnamed.model) == ("http://host:8000/v1", None)


MALFORMED = {
    "": "got ''", ",name=x": "got ',name=x'", "run,temprature=1": "Did you mean `temperature`",
    "run,temperature=hot": "`temperature`.* got 'hot'", "run,temperature=-1": "got '-1'", "run,temperature=nan": "got 'nan'",
    "run,name=": "`name`.* got none", "run,name=a,name=b": "`name`.* got two",
    "m@http://h/v1,max_tokens_param=n": "`max_tokens_param`.* got 'n'",
    "run,api_key_env=K": "api_key_env applies to remote",
    "run,price_per_mtok_in=1,price_per_mtok_out=2": "price_per_mtok_in, price_per_mtok_out applies",
}  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_specs(text: str) -> None:
    with pytest.raises(InputError, match=MALFORMED[text]):
        parse_model_spec(text)
