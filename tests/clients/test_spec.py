"""Models by the words that name them."""

import pytest

from zephyr_jax.clients.spec import read_voice
from zephyr_jax.errors import InputError


def test_paths_and_addresses() -> None:
    own = read_voice("runs/zephyr, a copy,temperature=0.3")
    assert (own.path, own.url, own.called, own.temperature) == ("runs/zephyr, a copy", None, "zephyr, a copy", 0.3)
    bucket = read_voice("gs://bucket/run,name=mine")
    assert (bucket.path, bucket.called) == ("gs://bucket/run", "mine")
    other = read_voice("org/model@v2@https://host/v1,key=MY_KEY,price_per_mtok_in=0.5,price_per_mtok_out=2")
    assert (other.path, other.url, other.model, other.key) == (None, "https://host/v1", "org/model@v2", "MY_KEY")
    assert (other.price_per_mtok_in, other.price_per_mtok_out, other.called) == (0.5, 2.0, "org/model@v2")
    only = read_voice("http://host:8000/v1")
    assert (only.url, only.model) == ("http://host:8000/v1", None)


WRONG = {
    "": "names nothing", ",name=x": "names nothing", "run,temprature=1": "Did you mean `temperature`",
    "run,temperature=hot": "needs a number", "run,temperature=-1": "needs a number", "run,temperature=nan": "needs a number",
    "run,name=": "no value", "run,name=a,name=b": "twice", "run,key=K": "is no address, so key would do nothing",
    "run,price_per_mtok_in=1,price_per_mtok_out=2": "price_per_mtok_in, price_per_mtok_out would do nothing",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_words_that_name_no_model(words: str) -> None:
    with pytest.raises(InputError, match=WRONG[words]):
        read_voice(words)
