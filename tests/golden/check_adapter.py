"""Adapters by peft: `python check_adapter.py BASE FOLDER` (needs torch, transformers, peft).

Writes into FOLDER: `logits.npy` of BASE with the adapter in `ours` on `tokens.npy`, an adapter `theirs`, and `features` with one
adapter per feature of peft that is more than LoRA; `features.json` maps their names to the field that asks for it.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

base, folder = Path(sys.argv[1]), Path(sys.argv[2])
FEATURES = {
    "dora": ("use_dora", {"use_dora": True}),
    "bias": ("bias", {"bias": "all"}),
    "lora_bias": ("lora_bias", {"lora_bias": True}),
    "modules_to_save": ("modules_to_save", {"modules_to_save": ["norm"]}),
    "tokens": ("trainable_token_indices", {"trainable_token_indices": [1, 2]}),
    "rank_pattern": ("rank_pattern", {"rank_pattern": {"q_proj": 2}}),
    "alpha_pattern": ("alpha_pattern", {"alpha_pattern": {"q_proj": 2}}),
    "one_layer": ("layers_to_transform", {"layers_to_transform": [0]}),
    "replication": ("layer_replication", {"layer_replication": [[0, 2], [1, 2]]}),
    "alora": ("alora_invocation_tokens", {"alora_invocation_tokens": [5]}),
    "pissa": ("init_lora_weights", {"init_lora_weights": "pissa"}),
    "pissa_niter": ("init_lora_weights", {"init_lora_weights": "pissa_niter_4"}),
    "olora": ("init_lora_weights", {"init_lora_weights": "olora"}),
    "embedding": ("embed", {"target_modules": ["q_proj", "embed_tokens"]}),
    "unembedding": ("lm_head", {"target_modules": ["q_proj", "lm_head"]}),
    "first_layer": ("missing", {"target_modules": r".*layers\.0\..*q_proj"}),
}


def plain() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def new(**fields: object) -> torch.nn.Module:
    """The base with an adapter of random A and B."""
    model = get_peft_model(
        plain(), LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **fields})
    )
    for name, value in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(value)
    return model


torch.manual_seed(0)
with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)  # peft warns of tensors that it misses or does not know
    model = PeftModel.from_pretrained(plain(), folder / "ours")
with torch.no_grad():
    np.save(folder / "logits.npy", model(torch.from_numpy(np.load(folder / "tokens.npy")).long()).logits.numpy())
new(r=6, lora_alpha=12, use_rslora=True, lora_dropout=0.05).save_pretrained(folder / "theirs")
for name, (_, fields) in FEATURES.items():
    new(**fields).save_pretrained(folder / "features" / name)
(folder / "features.json").write_text(json.dumps({name: field for name, (field, _) in FEATURES.items()}))
