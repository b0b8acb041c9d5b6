"""Make the golden files of model families: tiny random models whose numbers torch and transformers 5 computed.

This needs torch and transformers, which the product does not depend on. The outputs lie beside this script and are kept in the
repository, so only someone who changes them runs it. From the repository root:

    python tests/golden/make_family_golden.py              # all
    python tests/golden/make_family_golden.py qwen3 gemma2

Outputs, in families/<name>/:
    config.json, model.safetensors    the model in Hugging Face form, float32
    golden.npz    tokens [2, 24]; logits; logprobs, the sums of log p(token t | those before) over t = FIRST_SCORED .. 23;
                  greedy [2, 120], continuations of the first PROMPT tokens
    gradients.safetensors    gradients of -sum(logprobs) by every tensor, under its name
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional

HERE = Path(__file__).resolve().parent / "families"
BATCH, LENGTH, FIRST_SCORED, PROMPT, GREEDY = 2, 24, 5, 8, 120
WINDOW = 7
BASE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
MINISTRAL = {**YARN, "llama_4_scaling_beta": 0.3}
THETA_1E6 = {"rope_type": "default", "rope_theta": 1e6}
TIED = {"tie_word_embeddings": True}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
CASES: dict[str, tuple[str, dict]] = {
    # name -> configuration class of transformers, what differs from BASE
    "llama31": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama32": ("LlamaConfig", {"rope_parameters": LLAMA3, "head_dim": 16, **TIED}),
    "llama_linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama_yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "qwen2": ("Qwen2Config", {"rope_parameters": THETA_1E6, "use_sliding_window": False}),
    "qwen2_tied": ("Qwen2Config", {"rope_parameters": THETA_1E6, "use_sliding_window": False, **TIED}),
    "qwen2_window": (
        "Qwen2Config",
        {"rope_parameters": THETA_1E6, "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": WINDOW,
         "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"rope_parameters": THETA_1E6, "head_dim": 16}),
    "qwen3_tied": ("Qwen3Config", {"rope_parameters": THETA_1E6, "head_dim": 16, **TIED}),
    "gemma": ("GemmaConfig", {"head_dim": 16, **TIED}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, "num_hidden_layers": 4,
         "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, **TIED},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, "num_hidden_layers": 5,
         "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
         "rope_parameters": {
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
             "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
         }, **TIED},
    ),
    "smollm3": (
        "SmolLM3Config",
        {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "rope_parameters": THETA_1E6, **TIED},
    ),
    "olmo2": ("Olmo2Config", {"num_key_value_heads": 4, "rope_parameters": THETA_1E6}),
    "olmo3": (
        "Olmo3Config",
        {"num_key_value_heads": 4, "num_hidden_layers": 4, "sliding_window": WINDOW,
         "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
         "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                             "full_attention": {**YARN, "rope_theta": 5e5}}},
    ),
    "granite": (
        "GraniteConfig",
        {"attention_multiplier": 0.25, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0, **TIED},
    ),
    "phi3": ("Phi3Config", {"sliding_window": WINDOW, "pad_token_id": 0}),
    "phi4_mini": (
        "Phi3Config",
        {"num_key_value_heads": 2, "head_dim": None, "pad_token_id": 0, "sliding_window": None,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}, **TIED},
    ),
    "phi_longrope": (
        "Phi3Config",
        {"head_dim": None, "pad_token_id": 0, "sliding_window": None, "max_position_embeddings": 512,
         "original_max_position_embeddings": 128,
         "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
                             "short_factor": [1.0, 1.3, 2.1], "long_factor": [4.0, 8.0, 12.0]}},
    ),
    "ministral3": ("Ministral3Config", {"head_dim": 16, "rope_parameters": MINISTRAL}),
    "ministral3_tied": ("Ministral3Config", {"head_dim": 16, "rope_parameters": MINISTRAL, "sliding_window": WINDOW, **TIED}),
    "qwen3_window": (
        "Qwen3Config",
        {"rope_parameters": THETA_1E6, "head_dim": 16, "num_hidden_layers": 3, "use_sliding_window": True,
         "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "smollm3_untied": (
        "SmolLM3Config", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "rope_parameters": THETA_1E6},
    ),
    "olmo2_tied": ("Olmo2Config", {"num_key_value_heads": 4, "rope_parameters": THETA_1E6, **TIED}),
    "granite_untied": (
        "GraniteConfig",
        {"attention_multiplier": 0.25, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    ),
}  # fmt: skip
LATER = {
    "ministral3": 17, "phi_longrope": 101, "qwen2_window": 100, "ministral3_tied": 102, "qwen3_window": 103,
    "smollm3_untied": 104, "olmo2_tied": 105, "granite_untied": 106,
}  # fmt: skip
"""Seeds of cases that were added later, so that those of the others stay."""
OFFSET_NORMS = ("gemma",)
"""Beginnings of names whose norms multiply by 1 + weight."""
CLASSICAL = {"llama31", "qwen2", "qwen3", "gemma2", "granite"}
"""These get config.json as transformers 4 wrote it, with `rope_theta` and `rope_scaling`."""


def build(name: str) -> torch.nn.Module:
    kind, changes = CASES[name]
    settings = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    settings |= {key: None for key, value in changes.items() if value is None and key == "sliding_window"}
    config = getattr(transformers, kind)(**settings)
    config._attn_implementation = "eager"
    torch.manual_seed(LATER[name] if name in LATER else sorted(CASES.keys() - LATER.keys()).index(name))
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            centre = 1.0 if key.endswith("norm.weight") or "layernorm" in key else 0.0
            if name.startswith(OFFSET_NORMS):
                centre = 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    return model


def write_classical(path: Path) -> None:
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters", None) or {}
    config["rope_theta"] = rope.pop("rope_theta", 1e4)
    config["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    config["torch_dtype"] = config.pop("dtype", "float32")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make(name: str) -> None:
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    model = build(name)
    tokens = torch.randint(3, 96, (BATCH, LENGTH))
    logits = model(tokens).logits
    every = functional.log_softmax(logits[:, :-1].float(), dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
    logprobs = every[:, FIRST_SCORED - 1 :].sum(-1)
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(-logprobs.sum(), list(named.values()))
    greedy = model.generate(
        tokens[:, :PROMPT], max_new_tokens=GREEDY, do_sample=False, eos_token_id=None, use_cache=False,
        attention_mask=torch.ones_like(tokens[:, :PROMPT]),
    )[:, PROMPT:]  # fmt: skip
    with torch.no_grad():  # a tie would make the continuation depend on rounding
        full = model(torch.cat([tokens[:, :PROMPT], greedy], dim=1)).logits[:, PROMPT - 1 : -1]
        best = full.topk(2, dim=-1).values
        gap = (best[..., 0] - best[..., 1]).min().item()
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name in CLASSICAL:
        write_classical(folder / "config.json")
    save_file(dict(zip(named, (one.contiguous() for one in gradients), strict=True)), folder / "gradients.safetensors")
    np.savez(
        folder / "golden.npz", tokens=tokens.numpy().astype(np.int32), logits=logits.detach().numpy(),
        logprobs=logprobs.detach().numpy(), greedy=greedy.numpy().astype(np.int32),
    )  # fmt: skip
    print(f"{name}: logits of deviation {logits.std().item():.2f}, smallest greedy gap {gap:.1e}")


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        make(case)
