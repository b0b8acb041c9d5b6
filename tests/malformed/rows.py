"""Files of rows that must be refused, by name."""

import io
import json
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.malformed.mutations import DEEP, DIGITS

CHAT = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]
GOOD = json.dumps({"messages": CHAT})
ANSWER = CHAT[1]


def _line(raw: bytes) -> bytes:
    """A file whose second line is spoilt."""
    return GOOD.encode() + b"\n" + raw + b"\n" + GOOD.encode() + b"\n"


def _row(value: Any) -> bytes:
    """A file of one row with such `messages`."""
    return json.dumps({"messages": value}).encode() + b"\n"


def _with(role: Any, content: Any) -> Any:
    return [{"role": role, "content": content}, ANSWER]


LINES: dict[str, bytes] = {
    **{f"line 2 is {value}": _line(value.encode()) for value in ("null", "true", "17", '"text"', "[]", "[1, 2]", "NaN", "//")},
    **{f"line 2 cut after {size}": _line(GOOD[:size].encode()) for size in (1, 5, 12, 14, 20, 27, 40, 60, len(GOOD) - 1)},
    "empty": b"",
    "blank lines": b"\n \n\t\n",
    "empty objects": b"{}\n{}\n",
    "NUL bytes": bytes(100),
    "a line of NUL bytes": _line(bytes(20)),
    "UTF-16": GOOD.encode("utf-16"),
    "UTF-32": GOOD.encode("utf-32"),
    "invalid UTF-8 in text": _line(GOOD.encode().replace(b"Blue", b"Bl\xff\xfe")),
    "half a letter in text": _line(GOOD.encode().replace(b"Blue", b"Bl\xc3")),
    "half a surrogate pair": _line(GOOD.encode().replace(b"Blue", b"Bl\\ud800")),
    "invalid UTF-8 in a name": _line(GOOD.encode().replace(b"role", b"ro\xff\xfe")),
    "a raw line break in text": _line(GOOD.encode().replace(b"Blue", b"Bl\nue")),
    "a raw NUL in text": _line(GOOD.encode().replace(b"Blue", b"Bl\0ue")),
    "an escape that is none": _line(GOOD.encode().replace(b"Blue", b"Bl\\xue")),
    "a column twice": _line(b'{"messages": [], ' + GOOD.encode()[1:]),
    "single quotes": _line(GOOD.replace('"', "'").encode()),
    "a comma after a row": _line(GOOD.encode() + b","),
    "lists nested without end": _line(b'{"messages": ' + b"[" * DEEP),
    "lists nested": _line(b'{"messages": ' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "lists nested over lines": b'{"messages": ' + b"[\n" * DEEP + b"]\n" * DEEP + b"}\n",
    "objects nested": _line(b'{"messages": ' + b'{"a": ' * DEEP + b"1" + b"}" * DEEP + b"}"),
    "lists nested 200 deep": _line(b'{"messages": ' + b"[" * 200 + b"]" * 200 + b"}"),
    "another column": b'{"text": "Hello."}\n',
    "a column in capitals": GOOD.replace("messages", "Messages").encode(),
    "a number of 5000 digits": f'{{"messages": {DIGITS}}}\n'.encode(),
    "NaN": b'{"messages": NaN}\n',
    "gzip": b"\x1f\x8b\x08\x00" + bytes(60),
    "Parquet": b"PAR1" + bytes(60) + b"PAR1",
    "pickle": b"\x80\x04\x95" + bytes(60),
}  # fmt: skip
"""What is wrong -> rows.jsonl."""

MESSAGES: dict[str, bytes] = {
    f"messages are {str(value)[:60]}": _row(value)
    for value in (
        None, 3, "Hello.", {}, [], [None], ["Hello."], [3], [[]], [{}], [CHAT], {"role": "user"}, CHAT[:1], CHAT[1:],
        [*CHAT, *CHAT[1:]], [CHAT[0], CHAT[0], CHAT[1]], _with("tool", "x"), _with(None, "x"), _with(3, "x"), _with("User", "x"),
        _with("user\0", "x"), _with(["user"], "x"), _with("user", None), _with("user", 3), _with("user", ["x"]),
        _with("user", {"text": "x"}), _with("user", True), [CHAT[0], {"role": "assistant", "content": ""}],
        [CHAT[0], {"role": "assistant", "content": " \n\t"}], [{"from": "human", "value": "Hi"}], [{"role": "user"}, ANSWER],
        [{"content": "x"}, ANSWER], _with("r" * 100_000, "x"), _with("user\nerror: \x1b[31m", "x"),
    )
}  # fmt: skip
"""What is wrong -> rows.jsonl of one conversation."""

PAIRS: dict[str, bytes] = {
    f"pair {number}: {str(row)[:60]}": json.dumps(row).encode() + b"\n"
    for number, row in enumerate(
        (
            {"chosen": CHAT}, {"rejected": CHAT}, {"chosen": CHAT, "rejected": None}, {"chosen": CHAT, "rejected": 3},
            {"chosen": CHAT, "rejected": "No."}, {"chosen": CHAT, "rejected": []}, {"chosen": CHAT, "rejected": CHAT[:1]},
            {"chosen": CHAT, "rejected": [{"role": "user", "content": "Other."}, ANSWER]}, {"chosen": "Yes.", "rejected": "No."},
            {"prompt": 3, "chosen": "Yes.", "rejected": "No."}, {"prompt": ["Hi"], "chosen": "Yes.", "rejected": "No."},
            {"prompt": "Hi", "chosen": "", "rejected": "No."}, {"prompt": "Hi", "chosen": None, "rejected": "No."},
            {"prompt": {}, "chosen": CHAT[1:], "rejected": CHAT[1:]}, {"chosen": CHAT[1:], "rejected": CHAT[1:]},
            {"prompt": [ANSWER], "chosen": CHAT[1:], "rejected": CHAT[1:]}, {"chosen": ["Yes."], "rejected": ["No."]},
            {"id": "a\nerror: b", "chosen": CHAT, "rejected": CHAT[:1]}, {"id": "i" * 100_000, "chosen": CHAT, "rejected": []},
            {"id": {"a": [1]}, "chosen": CHAT, "rejected": []},
        )
    )
}  # fmt: skip
"""What is wrong -> rows.jsonl of one pair."""


def parquet(table: pyarrow.Table) -> bytes:
    """A table as a Parquet file."""
    found = io.BytesIO()
    pyarrow.parquet.write_table(table, found)
    return found.getvalue()


def _binary() -> pyarrow.Table:
    kind = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.binary())]))
    chat = [{"role": each["role"], "content": each["content"].encode()} for each in CHAT]
    return pyarrow.table({"messages": pyarrow.array([chat], kind)})


def _no_text() -> pyarrow.Table:
    bad = (
        _binary()["messages"]
        .combine_chunks()
        .cast(pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])))
    )
    buffers = [None if each is None else bytes(each) for each in bad.buffers()]
    spoilt = [each.replace(b"Blue.", b"Bl\xff\xfe.") if each else each for each in buffers]
    made = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None if each is None else pyarrow.py_buffer(each) for each in spoilt[-3:]]
    )
    roles = pyarrow.array([each["role"] for each in CHAT])
    lists = pyarrow.ListArray.from_arrays([0, 2], pyarrow.StructArray.from_arrays([roles, made], ["role", "content"]))
    return pyarrow.table({"messages": lists})


MAP = pyarrow.map_(pyarrow.string(), pyarrow.int64())
SOUND = parquet(pyarrow.table({"messages": pyarrow.array([CHAT] * 50)}))
PARQUET: dict[str, bytes] = {
    **{f"cut to {size} bytes": SOUND[:size] for size in (0, 1, 4, 12, 100, len(SOUND) // 2)},
    **{f"{size} bytes cut off": SOUND[:-size] for size in (1, 4, 8, 100)},
    "its start cut off": SOUND[50:],
    "a footer longer than the file": SOUND[:-8] + b"\xff\xff\xff\x7f" + SOUND[-4:],
    "a footer of no length": SOUND[:-8] + bytes(4) + SOUND[-4:],
    "a footer of zeros": SOUND[:-308] + bytes(300) + SOUND[-8:],
    "a footer of ones": SOUND[:-308] + b"\xff" * 300 + SOUND[-8:],
    "pages of zeros": SOUND[:4] + bytes(200) + SOUND[204:],
    "JSON lines": GOOD.encode(),
    "another column": parquet(pyarrow.table({"text": ["x"]})),
    "no rows": parquet(pyarrow.table({"messages": pyarrow.array([], pyarrow.string())})),
    "messages that are text": parquet(pyarrow.table({"messages": ["x"]})),
    "messages that are numbers": parquet(pyarrow.table({"messages": [1.5]})),
    "messages that are null": parquet(pyarrow.table({"messages": pyarrow.array([None], pyarrow.null())})),
    "content that is bytes": parquet(_binary()),
    "text that is no UTF-8": parquet(_no_text()),
    "messages that are a map": parquet(pyarrow.table({"messages": pyarrow.array([[("a", 1)]], MAP)})),
}  # fmt: skip
"""What is wrong -> rows.parquet."""

OBJECTS: dict[str, bytes] = {
    "a list of nulls": b"[null, null]",
    "a list of texts": b'["a", "b"]',
    "a list of lists": b"[[1], [2]]",
    "a list that ends early": f"[{GOOD}, {GOOD}".encode(),
    "a list nested without end": b"[" * DEEP,
    "a list over lines nested": b"[\n" * DEEP + b"]\n" * DEEP,
    "an object of objects": b'{"train": {"messages": 3}}',
    "a null": b"null",
    "a list with a null": f"[{GOOD}, null]".encode(),
}
"""What is wrong -> rows.json."""
