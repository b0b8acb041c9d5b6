"""Cards that must be refused, by name."""

from tests.malformed.mutations import DIGITS, cuts
from tests.settings import setting_names
from zephyr_jax.config.training import DpoConfig

SOUND = """\
output: runs/one
reference: runs/table
seed: 3
model: {path: a-model, compute_dtype: float32}
data:
  path: "rows.jsonl"
  max_length: 64
  max_prompt_length: 32
  row_length: 128
batch: {rows: 8}
optimizer:
  learning_rate: 5.0e-7
  b1: 0.9
  weight_decay: 0.0
schedule: {epochs: 1, save_every: 10}
dpo: {beta: 0.01}
"""


def changed(name: str, value: str) -> str:
    """The sound card with one setting more, or another value of one, in flow style so that nothing is said twice."""
    section, _, inner = name.rpartition(".")
    if not section:
        return (
            "".join(line for line in SOUND.splitlines(True) if not line.startswith(f"{name}:")) + f"{name}: {value}\n"
        )
    lines, kept = SOUND.splitlines(True), list[str]()
    inside = False
    for line in lines:
        inside = line.startswith(f"{section}:") or (inside and line.startswith(" "))
        kept += [] if inside else [line]
    needs = {"data": "path: a, ", "model": "path: b, ", "batch": "rows: 8, "}.get(section, "")
    needs = "" if inner in needs else needs
    return "".join(kept) + f"{section}: {{{needs}{inner}: {value}}}\n"


def laughs(head: str, item: str, joint: str) -> str:
    """Ten lines, each ten times the one before."""
    lines = [head, *(item.format(this=n, before=joint.join([f"*a{n - 1}"] * 10)) for n in range(1, 10))]
    return "\n".join(lines) + "\n"


NUMBERS = (
    "optimizer.learning_rate", "optimizer.b1", "optimizer.b2", "optimizer.eps", "optimizer.weight_decay",
    "optimizer.max_grad_norm", "optimizer.warmup_ratio", "dpo.beta", "dpo.sft_weight", "dpo.label_smoothing",
    "schedule.grace_seconds",
)  # fmt: skip
COUNTS = (
    "data.max_length", "data.max_prompt_length", "data.row_length", "data.packing_window", "data.limit", "data.num_workers",
    "batch.rows", "batch.microbatch_rows", "schedule.epochs", "schedule.max_steps", "schedule.keep_last",
    "schedule.save_every", "model.logprob_chunk",
)  # fmt: skip

CARDS: dict[str, bytes] = {
    **{f"{name} is a list": changed(name, "[1, {a: [b]}]").encode() for name in setting_names(DpoConfig)},
    **{f"{name} is {value}": changed(name, value).encode() for name in NUMBERS for value in (".nan", "-.inf", ".inf")},
    **{f"{name} is 1e30": changed(name, "1" + "0" * 30).encode() for name in COUNTS},
    **{f"{name} is negative": changed(name, "-7").encode() for name in COUNTS},
    **{
        name: cut.encode() for name, cut in cuts(SOUND, ':{",')
        if (cut[-1] in '{",' and not cut.endswith('rows.jsonl"')) or cut.endswith(("seed:", "model:"))
    },
    "a setting twice": (SOUND + "seed: 4\n").encode(),
    "a section twice": (SOUND + "dpo: {beta: 0.5}\n").encode(),
    "a setting of a section twice": SOUND.replace("beta: 0.01", "beta: 0.01, beta: 0.5").encode(),
    "a Python object": (SOUND + "report: !!python/object:os.system {}\n").encode(),
    "a Python call": (SOUND + "report: !!python/object/apply:os.system ['true']\n").encode(),
    "a Python name": changed("output", "!!python/name:os.system").encode(),
    "a tag of its own": changed("output", "!own thing").encode(),
    "a billion laughs": (SOUND + laughs("report: &a0 [lol]", "z{this}: &a{this} [{before}]", ", ")).encode(),
    "a billion laughs at once": (laughs("a0: &a0 [lol]", "a{this}: &a{this} [{before}]", ", ") + "seed: *a9\n").encode(),
    "merges of merges": laughs("a0: &a0 {x: 1}", "a{this}: &a{this} {{<<: [{before}]}}", ", ").encode(),
    "an alias inside itself": b"model: &m\n  path: *m\n",
    "an alias of nothing": b"seed: *nothing\n",
    "nested lists": b"seed: " + b"[" * 5000,
    "nested objects": b"seed: " + b"{a: " * 5000,
    "nested lists that close": b"seed: " + b"[" * 3000 + b"]" * 3000,
    "a NUL byte": SOUND.encode().replace(b"runs/one", b"runs\0one"),
    "a NUL by escape": changed("output", '"runs\\0one"').encode(),
    "control characters": SOUND.encode().replace(b"runs/one", b"runs\x07one"),
    "invalid UTF-8": SOUND.encode().replace(b"runs/one", b"runs/\xff\xfe"),
    "Latin-1": SOUND.encode().replace(b"runs/one", "süß".encode("latin-1")),
    "UTF-16 without its mark": SOUND.encode("utf-16-le"),
    "a list": b"- seed: 3\n- output: x\n",
    "a text": b"just words\n",
    "zero": b"0\n",
    "false": b"false\n",
    "an empty list": b"[]\n",
    "two documents": (SOUND + "---\n" + SOUND).encode(),
    "a tab": SOUND.encode().replace(b"  max_length", b"\tmax_length"),
    "indentation gone": SOUND.encode().replace(b"  max_length", b" max_length"),
    "two colons": changed("output", "a: b: c").encode(),
    "an unknown section": (SOUND + "modle: {path: x}\n").encode(),
    "a key that is a list": (SOUND + "? [a, b]\n: 3\n").encode(),
    "a key that is a number": (SOUND + "17: 3\n").encode(),
    "a key without a name": (SOUND + "'': 3\n").encode(),
    "a key of a million letters": (SOUND + "? " + "k" * 1_000_000 + "\n: 3\n").encode(),
    "a value of a million letters": changed("seed", "k" * 1_000_000).encode(),
    "an integer of 5000 digits": changed("seed", DIGITS).encode(),
    "a count of 5000 hexadecimal digits": changed("batch.rows", "0x" + "f" * 5000).encode(),
    "a rate of 5000 hexadecimal digits": changed("optimizer.learning_rate", "0x" + "f" * 5000).encode(),
    "a text of 5000 hexadecimal digits": changed("output", "0x" + "f" * 5000).encode(),
    "a section of 5000 hexadecimal digits": (SOUND + "mesh: 0x" + "f" * 5000 + "\n").encode(),
    "a key of 5000 hexadecimal digits": (SOUND + "0x" + "f" * 500 + ": 3\n? 0x" + "f" * 5000 + "\n: 3\n").encode(),
    "a day that is none": changed("seed", "!!timestamp 2024-99-99").encode(),
    "a date": changed("output", "2024-01-02").encode(),
    "an integer that is none": changed("seed", "!!int many").encode(),
    "bytes that are none": changed("output", "!!binary '***'").encode(),
    "a set": changed("output", "!!set {a, b}").encode(),
    "a truth value for a number": changed("seed", "yes").encode(),
    "JSON cut short": b'{"seed": 3, "model": {"path"',
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
}  # fmt: skip
"""What is wrong -> the card."""
