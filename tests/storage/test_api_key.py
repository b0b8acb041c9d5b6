"""Keys are checked where they are read, and no message holds one."""

from urllib.parse import quote

import pytest

from zephyr_jax.errors import InputError
from zephyr_jax.storage.api_key import read_api_key, redact

ODD = {
    "sk-sesame-open\n": "line end at character 15 of 15",
    "sk-sesame-open\r\n": "line end at character 15 of 16",
    "\nsk-sesame-open": "line end at character 1 of 15",
    "sk-sesame open": "space at character 10 of 14",
    "sk-sesame-open\t": "space at character 15",
    "sk-sesame-\x1bopen": "control character at character 11",
    "sk-sesame-\x7fopen": "control character at character 11",
    "sk-sesame-öpen": "letter beyond ASCII at character 11",
    "sk-sesame-\ud800open": "letter beyond ASCII",
    "sk-sesame\u2028open": "space at character 10",
}


@pytest.mark.parametrize("key", ODD)
def test_keys_that_no_header_carries_are_refused_unseen(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"MY_KEY": key})
    with pytest.raises(InputError, match=f"The key in MY_KEY .endpoint.api_key_env. has a {ODD[key]}") as found:
        read_api_key("MY_KEY", "endpoint.api_key_env")
    assert "sesame" not in str(found.value)


def test_keys_of_every_usual_letter_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "".join(map(chr, range(ord("!"), ord("~") + 1)))
    monkeypatch.setenv("MY_KEY", key)
    assert read_api_key("MY_KEY", "x") == key
    for form in (key, repr(key), repr(key.encode())[1:], quote(key, safe=""), f"Bearer {key}!"):
        assert "ABCDEFGH" not in redact(f"a {form} b", key)
    assert redact("EMPTY", "EMPTY") == "EMPTY"
