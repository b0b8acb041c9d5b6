"""Ways to spoil bytes, the same every time."""

import json
import re
from collections.abc import Iterator
from random import Random
from typing import Any

DEEP = 100_000
DIGITS = "9" * 5000


def cuts(text: str, marks: str) -> Iterator[tuple[str, str]]:
    """The text cut right after each of the marks but the last one that closes it; with a name."""
    for number, found in enumerate(re.finditer(f"[{re.escape(marks)}]", text.rstrip())):
        if found.end() < len(text.rstrip()):
            yield f"cut after mark {number} {text[: found.end()].splitlines()[-1][-12:]}", text[: found.end()]


def flipped(raw: bytes, start: int, stop: int, count: int) -> Iterator[tuple[str, bytes]]:
    """The bytes with one of them turned over, `count` times somewhere from start to stop."""
    random = Random(f"{start} {stop} {count}")
    for at in sorted(random.sample(range(start, stop), count)):
        yield f"byte {at} of {len(raw)} flipped", raw[:at] + bytes([raw[at] ^ random.randrange(1, 256)]) + raw[at + 1 :]


def broken_json(sound: dict[str, Any], **more: Any) -> dict[str, bytes]:
    """Texts that are no usable JSON object where `sound` would be one. `more` are fields for which a value would do."""
    text = json.dumps(sound)
    name = next(iter(sound))
    found = {name: cut.encode() for name, cut in cuts(text, '{:,"')}
    return found | {
        "empty": b"",
        "a space": b" ",
        "null": b"null",
        "a list": b"[1, 2]",
        "a number": b"17",
        "a text": b'"text"',
        "NUL bytes": b"\0" * 64,
        "a NUL byte inside": text.replace("{", "{\0", 1).encode(),
        "UTF-16": text.encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "invalid UTF-8": text.encode().replace(b'"', b'"\xff\xfe', 1),
        "nested lists without end": b"[" * DEEP,
        "nested objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "a number of 5000 digits": f'{{"a": {DIGITS}}}'.encode(),
        "a key twice": text.replace("{", f'{{"{name}": "another", ', 1).encode(),
        "single quotes": text.replace('"', "'").encode(),
        "a comma too many": text.replace("}", ",}").encode(),
        "two of them": (text + text).encode(),
        "YAML": b"a: b\n",
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94.",
    }
