"""Checkpoint folders that must be refused, by name: safetensors files, their index, config.json and adapter_config.json."""

import json
from typing import Any

from tests.malformed.mutations import DEEP, DIGITS, broken_json, cuts

X, Y = (
    {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]},
    {"dtype": "F32", "shape": [8], "data_offsets": [64, 96]},
)
HEADER: dict[str, Any] = {"__metadata__": {"format": "pt"}, "x": X, "y": Y}
PAYLOAD = bytes(range(96))


def file(header: Any = HEADER, payload: bytes = PAYLOAD, size: int | None = None) -> bytes:
    """A safetensors file; `header` is an object or the very bytes, `size` what it claims of its header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if size is None else size).to_bytes(8, "little") + raw + payload


def with_x(**fields: Any) -> bytes:
    """A file whose tensor x is described otherwise."""
    return file(HEADER | {"x": {name: value for name, value in {**X, **fields}.items() if value is not ...}})


def _descriptions() -> dict[str, bytes]:
    values: dict[str, tuple[Any, ...]] = {
        "dtype": (..., None, 7, ["F32"], {"F32": 1}, "F64", "BF16"),
        "shape": (..., None, 4, "4,4", [4], [4, 5], [-4, -4], [4.0, 4], ["4", "4"], [[4], 4], [True, 16], [10**30, 0], [2**62]),
        "data_offsets": (
            ..., None, 64, [], [0], [0, 64, 64], ["0", "64"], [0.0, 64.0], [-64, 0], [64, 0], [0, -1], [0, 63], [0, 65],
            [1, 65], [32, 96], [64, 128], [0, 10**30], [2**63, 2**63 + 64], [False, 64], [10**400, 10**400 + 64],
        ),
    }  # fmt: skip
    return {
        f"x's {name} is {'absent' if value is ... else str(value)[:40]}": with_x(**{name: value})
        for name, options in values.items()
        for value in options
    }


FILES: dict[str, bytes] = {
    **{f"{size} bytes": file()[:size] for size in (0, 1, 7, 8, 9, 50)},
    **{f"header {name}": file(cut.encode(), size=None) for name, cut in list(cuts(json.dumps(HEADER), '{[:,"]}'))[::4]},
    **{f"{size} bytes cut off": file()[:-size] for size in (1, 32, 33, 95, 96)},
    **{f"header {name}": file(raw) for name, raw in broken_json(HEADER).items() if "cut" not in name},
    **_descriptions(),
    "a header of no length": file(size=0),
    "a header one byte longer": file(size=len(json.dumps(HEADER)) + 1),
    "a header one byte shorter": file(size=len(json.dumps(HEADER)) - 1),
    "a header as long as the file": file(size=len(file())),
    "a header longer than the file": file(size=len(file()) + 1),
    "a header of 100 MB": file(size=100_000_001),
    "a header of 2^63": file(size=2**63),
    "a header of 2^64 - 1": file(size=2**64 - 1),
    "its length big-endian": len(json.dumps(HEADER)).to_bytes(8, "big") + file()[8:],
    "a byte more": file() + b"\0",
    "a hole between tensors": file(HEADER | {"y": Y | {"data_offsets": [68, 100]}}, PAYLOAD + bytes(4)),
    "a hole before tensors": file({"y": Y}, PAYLOAD),
    "overlapping tensors": file(HEADER | {"y": Y | {"data_offsets": [32, 64]}}, PAYLOAD[:64]),
    "the same bytes twice": file(HEADER | {"z": X}),
    "a tensor that is a list": file(HEADER | {"x": [1]}),
    "a tensor that is null": file(HEADER | {"x": None}),
    "a tensor that is text": file(HEADER | {"x": "F32" * 100_000}),
    "a tensor twice": file(json.dumps(HEADER).replace('"y"', '"x"').encode()),
    "a name of a million letters": file({"x" * 1_000_000: X | {"dtype": 3}}),
    "a name with a line break": file({"x\n\x1b[31mred": X | {"dtype": 3}}),
    "offsets that are NaN": file(json.dumps(HEADER).replace("[0, 64]", "[NaN, 64]").encode()),
    "offsets of 5000 digits": file(json.dumps(HEADER).replace("64]", f"{DIGITS}]").encode()),
    "a shape nested without end": file(json.dumps(HEADER).replace("[4, 4]", "[" * DEEP).encode()),
    "a zip file": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x04\x95" + bytes(100),
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 123\n",
}
"""What is wrong -> model.safetensors."""

INDEX: dict[str, bytes] = broken_json({"metadata": {"total_size": 96}, "weight_map": {"x": "model.safetensors"}}) | {
    f"weight_map is {str(value)[:50]!r}": json.dumps({"weight_map": value}).encode()
    for value in (
        None, [], {}, 3, "model.safetensors", ["model.safetensors"], {"x": None}, {"x": 3}, {"x": ["model.safetensors"]},
        {"x": {}}, {"x": ""}, {"x": "."}, {"x": ".."}, {"x": "/etc/passwd"}, {"x": "/etc/model.safetensors"},
        {"x": "../model.safetensors"}, {"x": "a/../model.safetensors"}, {"x": "./model.safetensors"},
        {"x": "..\\model.safetensors"}, {"x": "model.safetensors/"}, {"x": "model.safetensors\0"}, {"x": "\0.safetensors"},
        {"x": "\ud800.safetensors"}, {"x": "a\nb.safetensors"}, {"x": "n" * 5000 + ".safetensors"}, {"x": "absent.safetensors"},
        {"x": "config.json"}, {"x": "folder.safetensors"}, {"x": "gs://bucket/model.safetensors"}, {"x": "~/m.safetensors"},
    )
}  # fmt: skip
"""What is wrong -> model.safetensors.index.json."""

_SIZES = (
    "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers",
    "head_dim", "sliding_window", "max_position_embeddings",
)  # fmt: skip
_ODD: tuple[Any, ...] = ("128", 128.5, -1, True, [128], {"a": 1}, 10**30, float("nan"), float("inf"))
_WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(_SIZES, _ODD),
    "rms_norm_eps": ("1e-5", 0, -1e-5, True, [1], float("nan"), float("inf"), 10**400),
    "rope_theta": ("1e4", -1, [1], float("nan"), float("inf"), True),
    "tie_word_embeddings": ("no", 0, 1, [], {}),
    "model_type": (None, 3, ["mistral"], "gpt2", "", "mistral\0"),
    "hidden_act": (3, ["silu"], "gelu", {}),
    "rope_scaling": ("linear", 3, [1], {"rope_type": "linear", "factor": "2"}, {"rope_type": ["default"]}, {"factor": 2.0}),
    "rope_parameters": ("x", 3, [1], {"rope_type": "yarn"}, {"rope_theta": "x"}, {"rope_theta": float("nan")}),
    "quantization_config": ("x", 3, {"quant_method": "gptq"}),
    "attention_bias": ("no", 1, True),
    "head_dim ": (31, 1),
}  # fmt: skip


def configs(sound: dict[str, Any]) -> dict[str, bytes]:
    """What is wrong -> config.json."""
    wrong = {
        f"{name.strip()} is {str(value)[:30]}": json.dumps(sound | {name.strip(): value}).encode()
        for name, values in _WRONG.items()
        for value in values
    }
    lacking = {
        f"no {name}": json.dumps({key: value for key, value in sound.items() if key != name}).encode()
        for name in ("hidden_size", "num_hidden_layers", "vocab_size", "rms_norm_eps", "model_type")
    }
    return wrong | lacking | broken_json({"hidden_size": 128, **sound})


ADAPTER: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
_WRONG_ADAPTER: dict[str, tuple[Any, ...]] = {
    "peft_type": (None, 3, [], "lora", "LORA\0", {"LORA": 1}, "x" * 100_000),
    "r": (*_ODD, 0, 2**24 + 1, 10**400),
    "lora_alpha": ("16", 0, -1, True, [16], float("nan"), float("inf"), 10**400),
    "use_rslora": (0, 1, "true", [], {}),
    "target_modules": (3, {"q_proj": 1}, [None], [["q_proj"]], True),
    "exclude_modules": (3, {"q_proj": 1}, [None], True),
    "init_lora_weights": (3, [], {"pissa": 1}, "x" * 100_000, "pissa\n"),
    "base_model_name_or_path": (3, ["a"], True),
    "x" * 1_000_000: (True, [1] * 1000),
    "a\n\x1b[31mred": (1,),
}


def adapter_configs() -> dict[str, bytes]:
    """What is wrong -> adapter_config.json."""
    wrong = {
        f"{name[:20]} is {str(value)[:30]}": json.dumps(ADAPTER | {name: value}).encode()
        for name, values in _WRONG_ADAPTER.items()
        for value in values
    }
    lacking = {
        f"no {name}": json.dumps({key: value for key, value in ADAPTER.items() if key != name}).encode()
        for name in ADAPTER
    }
    return wrong | lacking | broken_json(ADAPTER)
